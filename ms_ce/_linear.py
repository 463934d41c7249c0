"""The linear loss below its public functions: tensors are checked, gradients and a form chosen; the form computes."""

from __future__ import annotations

from typing import Any

from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce import _divisor, _linear_checks
from ms_ce.backend import linear_form
from ms_ce.functional import constant
from ms_ce.ops import precision
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.eager import recording
from ms_ce.ops.graph import Known, OfKnown, is_class_index, may_need_gradient
from ms_ce.ops.options import Gradients
from ms_ce.sweep import in_order

_cast = P.Cast()


@OfKnown
def gradients(
    in_forward, may_scale_later, training, frozen, input, linear_weight, linear_bias
) -> Gradients:
    """Which gradients to make and where; `frozen` names what is known not to need one."""
    if not may_scale_later:
        in_forward = False
    elif in_forward == "auto":
        in_forward = training if isinstance(input, Known) else recording()
    wanted = (
        "input" not in frozen and may_need_gradient(input),
        "linear_weight" not in frozen and may_need_gradient(linear_weight),
        "linear_bias" not in frozen and (linear_bias is None or may_need_gradient(linear_bias)),
    )
    return Gradients(in_forward and any(wanted), *wanted)


@constexpr
def _are_any(names) -> bool:
    return len(names) > 0


def constants(frozen, input, linear_weight, linear_bias):
    """(input, linear_weight, linear_bias), those named in `frozen` without a gradient."""
    if _are_any(frozen):
        return _constants(frozen, input, linear_weight, linear_bias)
    return input, linear_weight, linear_bias


def _constants(frozen, input, linear_weight, linear_bias):
    if "input" in frozen:
        input = without_gradient(input)
    if "linear_weight" in frozen:
        linear_weight = without_gradient(linear_weight)
    if "linear_bias" in frozen and linear_bias is not None:
        linear_bias = without_gradient(linear_bias)
    return input, linear_weight, linear_bias


def _in_float32(input, linear_weight, target, linear_bias, weight):
    """Hidden states of 16 bits beside parameters of float32, which are not rounded and get gradients of their own
    dtype."""
    if not is_class_index(target.dtype):
        target = target.astype(mstype.float32)
    if linear_bias is not None:
        linear_bias = linear_bias.astype(mstype.float32)
    if weight is not None:
        weight = weight.astype(mstype.float32)
    input, linear_weight = input.astype(mstype.float32), linear_weight.astype(mstype.float32)
    return input, linear_weight, target, linear_bias, weight


@OfKnown
def _decided(
    backend, constants, in_forward, training, frozen, input, linear_weight, linear_bias
) -> tuple[Any, Gradients, bool, bool]:
    """(input's dtype under mixed precision, which gradients to make, whether all is computed in float32, whether
    any tensor changes)."""
    dtype = input.dtype if isinstance(input, Known) else precision.begin_as(input.dtype)
    later = linear_form(backend, linear_weight.ndim).may_scale_later(dtype)
    tensors = (input, linear_weight, linear_bias)
    wanted = gradients(in_forward, later, training, frozen, *tensors)
    mixed = _linear_checks.is_mixed(dtype, linear_weight, linear_bias)
    return dtype, wanted, mixed, dtype != input.dtype or mixed or len(constants) > 0


def _prepared(dtype, mixed, constants, input, linear_weight, target, linear_bias, weight):
    input = input.astype(dtype)
    input, linear_weight, linear_bias = _constants(constants, input, linear_weight, linear_bias)
    if mixed:
        return _in_float32(input, linear_weight, target, linear_bias, weight)
    return input, linear_weight, target, linear_bias, weight


def begun(plan, in_forward, training, frozen, input, linear_weight, target, linear_bias, weight):
    """(input's dtype, which gradients to make, the tensors as a form takes them); `precision.end` ends what follows.
    in_forward is gradient_in_forward, and `frozen` names what needs no gradient, constants and more."""
    tensors = (input, linear_weight, target, linear_bias, weight)
    dtype, wanted, mixed, changing = _decided(
        plan.backend, plan.frozen, in_forward, training, frozen, input, linear_weight, linear_bias
    )
    if changing:
        tensors = _prepared(dtype, mixed, plan.frozen, *tensors)
    return dtype, wanted, tensors


def token_log_probs_on(plan, entropy, input, linear_weight, target, linear_bias):
    """(log-probabilities, entropies), as a plan says."""
    plan = _linear_checks.checked_tokens(plan, input, linear_weight, target, linear_bias)
    tensors = (input, linear_weight, target, linear_bias, None)
    dtype, wanted, tensors = begun(plan, False, False, plan.frozen, *tensors)
    form, exact = linear_form(plan.backend, 2), exact_dtype(dtype)
    log_prob, entropies = form.token_log_probs(plan, wanted, entropy, *tensors[:4])
    log_prob, entropies = log_prob.astype(exact), entropies.astype(exact)
    precision.end()
    return log_prob, entropies


def linear_cross_entropy_on(
    plan,
    with_stats,
    training,
    frozen,
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    row_weight,
    total_weight=None,
):
    """(loss,), or with_stats the fields of LossStats, as a plan says; `frozen` names what needs no gradient, constants
    and more."""
    tensors = (input, linear_weight, target, linear_bias, weight)
    plan = _linear_checks.checked(plan, with_stats, *tensors, row_weight)
    divisor = None
    if total_weight is not None:
        divisor, row_weight, plan = _over_total_weight(
            plan, total_weight, row_weight, input, linear_weight, target
        )
    dtype, wanted, tensors = begun(plan, plan.gradient_in_forward, training, frozen, *tensors)
    form = linear_form(plan.backend, linear_weight.ndim)
    results = form.linear_cross_entropy(plan, wanted, with_stats, *tensors, constant(row_weight))
    if with_stats:
        results = in_order(results, divisor, dtype)
    else:
        loss = _cast(results[0], dtype)
        results = (loss if divisor is None else _divisor.quotient(loss, divisor),)
    precision.end()
    return results


def _over_total_weight(plan, total_weight, row_weight, input, linear_weight, target):
    rows = _linear_checks.rows_shape(input, linear_weight)
    axis = -1 if linear_weight.ndim == 2 else 1
    return _divisor.from_outside(plan, total_weight, row_weight, rows, target, axis)
