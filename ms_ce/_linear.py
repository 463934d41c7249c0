"""The linear loss below its public functions: tensors are checked, gradients and a form chosen; the form computes."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore.ops import constexpr

from ms_ce import _checks, _divisor, _linear_checks
from ms_ce.backend import linear_form, resolved
from ms_ce.functional import constant
from ms_ce.ops import precision
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import compiling, is_class_index, may_need_gradient, recording
from ms_ce.ops.options import Gradients
from ms_ce.sweep import in_order


@constexpr
def _wanted(in_forward, frozen, input, linear_weight, linear_bias):
    wanted = (
        input and "input" not in frozen,
        linear_weight and "linear_weight" not in frozen,
        linear_bias and "linear_bias" not in frozen,
    )
    return Gradients(in_forward and any(wanted), *wanted)


def gradients(
    in_forward, may_scale_later, training, frozen, input, linear_weight, linear_bias
) -> Gradients:
    """Which gradients to make and where; `frozen` names what is known not to need one."""
    if not may_scale_later:
        in_forward = False
    elif in_forward == "auto":
        in_forward = training if compiling() else recording()
    return _wanted(
        in_forward,
        frozen,
        may_need_gradient(input),
        may_need_gradient(linear_weight),
        linear_bias is None or may_need_gradient(linear_bias),
    )


def constants(frozen, input, linear_weight, linear_bias):
    """(input, linear_weight, linear_bias), those named in `frozen` without a gradient."""
    if "input" in frozen:
        input = without_gradient(input)
    if "linear_weight" in frozen:
        linear_weight = without_gradient(linear_weight)
    if "linear_bias" in frozen and linear_bias is not None:
        linear_bias = without_gradient(linear_bias)
    return input, linear_weight, linear_bias


def _in_one_dtype(input, linear_weight, target, linear_bias, weight):
    """Everything in float32 where hidden states of 16 bits meet parameters of float32: the parameters are not rounded
    and get gradients of their own dtype."""
    bias_dtype = None if linear_bias is None else linear_bias.dtype
    if not _linear_checks.is_mixed(input.dtype, linear_weight.dtype, bias_dtype):
        return input, linear_weight, target, linear_bias, weight
    input, linear_weight = input.astype(mstype.float32), linear_weight.astype(mstype.float32)
    if not is_class_index(target.dtype):
        target = target.astype(mstype.float32)
    if linear_bias is not None:
        linear_bias = linear_bias.astype(mstype.float32)
    if weight is not None:
        weight = weight.astype(mstype.float32)
    return input, linear_weight, target, linear_bias, weight


def begun(plan, in_forward, training, frozen, input, linear_weight, target, linear_bias, weight):
    """(input's dtype, which gradients to make, the tensors as a form takes them); `precision.end` ends what follows.
    in_forward is gradient_in_forward, and `frozen` names what needs no gradient, constants and more."""
    input = precision.begin(input)
    input, linear_weight, linear_bias = constants(plan.frozen, input, linear_weight, linear_bias)
    later = linear_form(plan.backend, linear_weight.ndim).may_scale_later(input.dtype)
    wanted = gradients(in_forward, later, training, frozen, input, linear_weight, linear_bias)
    tensors = _in_one_dtype(input, linear_weight, target, linear_bias, weight)
    return input.dtype, wanted, tensors


def token_log_probs_on(plan, entropy, input, linear_weight, target, linear_bias):
    """(log-probabilities, entropies), as a plan says."""
    plan = resolved(plan)
    target = _checks.check_tensor(plan.op, "target", target)
    _checks.check_class_indices(plan.op, target.dtype)
    _linear_checks.check_tensors(plan, input, linear_weight, target, linear_bias, None, None)
    _linear_checks.check_matrix(plan.op, linear_weight.ndim)
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
    plan = resolved(plan)
    _linear_checks.check_tensors(
        plan, input, linear_weight, target, linear_bias, weight, row_weight
    )
    if with_stats:
        _linear_checks.check_matrix(plan.op, linear_weight.ndim)
    divisor = None
    if total_weight is not None:
        rows = _linear_checks.rows_shape(
            _checks.known_shape(input), _checks.known_shape(linear_weight)
        )
        axis = -1 if linear_weight.ndim == 2 else 1
        divisor, row_weight, plan = _divisor.from_outside(
            plan, total_weight, row_weight, rows, target, axis
        )
    tensors = (input, linear_weight, target, linear_bias, weight)
    dtype, wanted, tensors = begun(plan, plan.gradient_in_forward, training, frozen, *tensors)
    form = linear_form(plan.backend, linear_weight.ndim)
    results = form.linear_cross_entropy(plan, wanted, with_stats, *tensors, constant(row_weight))
    if not with_stats:
        loss = results[0].astype(dtype)
        results = (loss if divisor is None else _divisor.quotient(loss, divisor),)
    else:
        results = in_order(results, divisor, dtype)
    precision.end()
    return results
