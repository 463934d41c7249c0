"""What the second derivatives of the `cpu` backend ask of packed options and of a mean's divisor."""

from __future__ import annotations

from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import operations as P

from ms_ce.ops.cpu.operators import option_index, reduction
from ms_ce.ops.graph import select
from ms_ce.ops.mean import per_weight
from ms_ce.ops.pieces import weight_totals

_gather = P.Gather()


def option(options, name):
    """options[name]; the brackets refused a Python int once, in a thread of PyNative's backward pass."""
    return _gather(options, Tensor(option_index(name), mstype.int32), 0)


def is_mean(options):
    return option(options, "reduction") == reduction("mean")


def _weights_of_classes(target, weight, row_weight, options):
    """Σ row_weight of the rows that count, class by class: the derivative of Σ weight[target]."""
    keep = target.astype(mstype.int64) != option(options, "ignore_index")
    given = option(options, "has_row_weight") != 0
    rows = select(given, row_weight.astype(mstype.float64), 1.0)
    rows = select(keep, rows, 0.0).reshape((-1,))
    index = select(keep, target, 0).astype(mstype.int32).reshape((-1,))
    return weight_totals(rows, index, weight)


def through_divisor(direction, direction_weight, grad_weight, target, row_weight, saved, options):
    """(Σ direction[target] / Σ weight[target], the derivative of Σ direction·grad_weight by the weight) of a mean over
    class indices, 0 without one; `saved` are the weight and the total weight."""
    weight, total_weight = saved
    inverse = select(is_mean(options), per_weight(ops.ones_like(total_weight), total_weight), 0.0)
    ratio = direction_weight.astype(mstype.float64) * inverse
    share = _weights_of_classes(target, weight, row_weight, options) * inverse
    exact = grad_weight.astype(mstype.float64)
    along = (direction.astype(mstype.float64) * exact).sum()
    return ratio, (-ratio * exact - share * along).astype(weight.dtype)
