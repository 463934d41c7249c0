"""The mean's divisor, and what a divisor of 0 means: one rule for every form of the losses.

Where Σ weight is 0 the value is what the division gives, as in torch: nan, or ±inf where losses of rows remain that
weights of both signs count. The gradient is 0: no step is better than a step of nan.
"""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import operations as P

from ms_ce.ops.graph import is_class_index, select
from ms_ce.ops.pieces import weight_of

_sum = P.ReduceSum()


def total_weight(target, rows, weight, row_weight, ignore_index, dtype):
    """Σ row_weight·weight[target] over the rows that count, or Σ row_weight with probabilities, where without one it is
    the number of rows; a scalar of `dtype`. `rows` is their number or their shape."""
    if not is_class_index(target.dtype):
        return _sum(ops.ones(rows, dtype) if row_weight is None else row_weight.astype(dtype))
    return _sum(counted(target, weight, row_weight, ignore_index, dtype))


def counted(target, weight, row_weight, ignore_index, dtype):
    """What each row of class indices adds to the divisor: row_weight·weight[target], 0 where it does not count."""
    target = target.astype(mstype.int64)
    keep = ops.not_equal(target, ignore_index)
    factor = keep.astype(dtype)
    if row_weight is not None:
        factor = factor * row_weight.astype(dtype)
    if weight is not None:
        # A class out of range has been reported, or made the loss nan.
        known = ops.logical_and(keep, ops.logical_and(target >= 0, target < weight.shape[0]))
        index = select(known, target, 0)
        factor = factor * weight_of(weight.astype(dtype), index)
    return factor


def per_weight(upstream, divisor):
    """What arrives at the loss of a row when `upstream` arrives at the mean."""
    empty = divisor == 0
    return select(empty, 0.0, upstream / select(empty, 1.0, divisor))


def by_zero(total, divisor):
    """total / divisor, which is 0: by it MindSpore's CPU divides nan to -inf."""
    return total * (1.0 / divisor)


def mean(total, divisor):
    """total / divisor."""
    empty = divisor == 0
    value = total / select(empty, 1.0, divisor)
    return select(empty, ops.stop_gradient(by_zero(total, divisor)), value)


def reduced(total, divisor, reduction):
    """'sum' or 'mean' from the sum of the row losses."""
    return total if reduction == "sum" else mean(total, divisor.astype(total.dtype))
