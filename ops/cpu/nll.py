"""nll_loss of the `cpu` backend: linear in the log-probabilities, so that its derivatives are its own calls again."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.divisor import is_mean, through_divisor
from ms_ce.ops.cpu.operators import factors, make_operator, option_index, reduction
from ms_ce.ops.graph import select
from ms_ce.ops.mean import per_weight
from ms_ce.ops.options import ClassBlock


def _nll_like(grad_loss, log_prob, target, weight, row_weight, options):
    """The forward call whose loss has grad_loss's shape."""
    if grad_loss.ndim == 0:
        return _nll(log_prob, target, weight, row_weight, options)
    return _nll_rows(log_prob, target, weight, row_weight, options)


def _nll_weight_grad(grad_loss, log_prob, target, weight, row_weight, options):
    """The total weight must not be rounded to 16 bits first."""
    exact = weight if weight.dtype == mstype.float64 else weight.astype(mstype.float32)
    total_weight = _nll_like(grad_loss, log_prob, target, exact, row_weight, options)[1]
    total_weight = total_weight.astype(mstype.float64)
    lse = zeros_like(target).astype(mstype.float64)
    tensors = (log_prob, target, weight, row_weight, lse, total_weight, options)
    return _nll_distance(grad_loss, grad_loss, *tensors)


def _sum_for_mean(options):
    """The options with 'sum' in the place of 'mean'."""
    place = ops.arange(options.shape[0]) == option_index("reduction")
    mean = ops.logical_and(place, options == reduction("mean"))
    return select(mean, reduction("sum"), options)


def _nll_distance_bprop(
    grad_loss,
    grad_z_loss,
    log_prob,
    target,
    weight,
    row_weight,
    lse,
    total_weight,
    options,
    out,
    dout,
):
    """As _weight_grad_bprop: with d the direction, Σ d·grad_weight = -Σ g·x_y·(d_y - w_y·Σd/Σw), over Σw for a mean."""
    at_direction = _nll_like(grad_loss, log_prob, target, dout, row_weight, options)
    ratio, grad_weight = through_divisor(
        dout, at_direction[1], out, target, row_weight, (weight, total_weight), options
    )
    inverse = per_weight(ops.ones_like(total_weight), total_weight)
    factor = select(is_mean(options), inverse, 1.0)
    real = mstype.float64 if log_prob.dtype == mstype.float64 else mstype.float32
    moved = (dout.astype(real) - ratio.astype(real) * weight.astype(real)) * factor.astype(real)
    undivided = _sum_for_mean(options)
    grad_log_prob = _nll_backward(grad_loss, target, moved, row_weight, log_prob, undivided)
    if grad_loss.ndim == 0:
        one = ops.ones_like(grad_loss)
        tensors = (log_prob, target, weight, row_weight, lse, total_weight, options)
        unit = _nll_distance(one, one, *tensors)
        grad_grad = (dout * unit).sum().astype(grad_loss.dtype)
    else:
        grad_grad = at_direction[0]
    nothing = zeros_like(target)
    rest = (row_weight, lse, total_weight, options)
    return grad_grad, zeros_like(grad_z_loss), grad_log_prob, nothing, grad_weight, *rest


def _nll_bprop(log_prob, target, weight, row_weight, options, out, dout):
    grad = _nll_backward(dout[0], target, weight, row_weight, log_prob, options)
    grad_weight = weight
    if weight.ndim == 1:
        grad_weight = _nll_weight_grad(dout[0], log_prob, target, weight, row_weight, options)
    return grad, zeros_like(target), grad_weight, row_weight, options


def _nll_backward_bprop(grad_loss, target, weight, row_weight, log_prob, options, out, dout):
    """The loss is linear in log_prob: the derivative with respect to grad_loss is the loss of the direction."""
    grad_grad = _nll_like(grad_loss, dout, target, weight, row_weight, options)[0]
    grad_weight = weight
    if weight.ndim == 1:
        grad_weight = _nll_weight_grad(grad_loss, dout, target, weight, row_weight, options)
    nothing = zeros_like(log_prob)
    return grad_grad, zeros_like(target), grad_weight, row_weight, nothing, options


# Cross entropy's operator, where lse is 0 and no function of the inputs.
_nll_distance = make_operator("CrossEntropyWeightGrad", _nll_distance_bprop)
_nll_backward = make_operator("NLLBackward", _nll_backward_bprop)
_nll = make_operator("NLLForward", _nll_bprop)
_nll_rows = make_operator("NLLForwardRows", _nll_bprop)


def nll_loss(log_prob, target, weight, row_weight, options):
    """(loss, total_weight): loss in log_prob's dtype, total_weight in the weight's, or log_prob's without one."""
    given = factors(log_prob.dtype, weight, row_weight, options, ClassBlock())
    if options.reduction == "none":
        return _nll_rows(log_prob, target, *given)
    return _nll(log_prob, target, *given)
