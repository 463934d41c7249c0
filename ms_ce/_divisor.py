"""A mean's divisor from outside, `total_weight=`: the rows' weights are divided by it, and the rows summed.

So no sum is rounded to 16 bits before it is divided, what arrives at the sum is what arrives at the mean, and every
backend serves. A divisor of 0 does what it does in `ops.mean`: the value is the division's, the gradient 0.
"""

from __future__ import annotations

import math
from numbers import Real

from mindspore import Tensor, ops

from ms_ce import _checks
from ms_ce.ops import precision
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import compiling, is_class_index, select
from ms_ce.ops.mean import by_zero
from ms_ce.ops.options import Plan, named
from ms_ce.ops.precision import constexpr
from ms_ce.ops.rows import on_cpu, statistics_dtype

wide_dtype = constexpr(statistics_dtype)


@constexpr
def _known(op: str, value):
    """A number as it is, but for 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{op}: total_weight must be a number or a mindspore.Tensor of shape (), got {value!r} of type "
            f"{type(value).__name__}"
        )
    if not math.isfinite(value):
        raise ValueError(f"{op}: total_weight must be finite, got {value}")
    return float(value) if value else Tensor(0.0, statistics_dtype())


def divisor_of(op, reduction, total_weight):
    """`total_weight` as a constant: a float, which is not 0, or a scalar tensor."""
    _checks.check_divides(op, reduction)
    if not isinstance(total_weight, Tensor):
        return _known(op, total_weight)
    _checks.check_total_weight(op, total_weight.dtype, total_weight.shape)
    if not compiling() and on_cpu():
        return _known(op, total_weight.item())  # it costs less there than what it saves
    return without_gradient(total_weight).astype(wide_dtype())


@constexpr
def of_sum(plan) -> Plan:
    """The plan with 'sum' for its reduction."""
    plan = named(plan)
    return plan._replace(options=plan.options._replace(reduction="sum"))


def _ones(rows, target, axis):
    """1 for each row; where a graph does not know their shape, from class indices, or what has classes on `axis`."""
    dtype = wide_dtype()
    if rows is not None:
        return ops.ones(rows, dtype)
    target = without_gradient(target)
    if not is_class_index(target.dtype):
        target = target.astype(dtype).sum(axis if target.ndim > 1 else 0)
    return ops.ones_like(target).astype(dtype)


def weights_of(row_weight, rows, target, axis):
    """The rows' weights, 1 each without any; `rows` is their shape or None, as for `_ones`."""
    if row_weight is None:
        return _ones(rows, target, axis)
    return without_gradient(row_weight).astype(wide_dtype())


def shared_out(divisor, row_weight, rows, target, axis):
    """The rows' weights, as of `weights_of`, over the divisor."""
    precision.pause()
    if isinstance(divisor, Tensor):
        divisor = select(divisor == 0, 1.0, divisor)
    weights = weights_of(row_weight, rows, target, axis) / divisor
    precision.end()
    return weights


def from_outside(plan, total_weight, row_weight, rows, target, axis=1):
    """(the divisor, the rows' weights over it, the plan of the sum that is left)."""
    divisor = divisor_of(plan.op, plan.options.reduction, total_weight)
    return divisor, shared_out(divisor, row_weight, rows, target, axis), of_sum(plan)


def quotient(total, divisor):
    """The loss, from the sum of rows whose weights were shared out."""
    if not isinstance(divisor, Tensor):
        return total
    precision.pause()
    exact = total.astype(exact_dtype(total.dtype))
    divided = by_zero(without_gradient(exact), divisor).astype(exact.dtype)
    loss = select(divisor == 0, divided, exact).astype(total.dtype)
    precision.end()
    return loss
