"""The `cpu` backend: one call of the compiled kernel forward and one backward."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import operations as P

from ms_ce._versions import zeros_like
from ms_ce.ops import library
from ms_ce.ops.cpu_operators import (
    factors,
    make_operator,
    option_index,
    reduction,
)
from ms_ce.ops.cpu_partial import (  # noqa: F401  every backend offers them
    partial,
    partial_backward,
    partial_target_grad,
    partial_weight_grad,
)
from ms_ce.ops.cpu_tokens import token_log_probs  # noqa: F401
from ms_ce.ops.eager import Derivative, wanted
from ms_ce.ops.graph import compiling, is_class_index, known_one
from ms_ce.ops.mean import per_weight
from ms_ce.ops.options import ClassBlock

_gather = P.Gather()


probe = library.problem
BLOCKS_OF_PROBABILITIES, BLOCKS_IN_PARTITIONED_GRAPHS = True, False


def _data_gradients(
    grad_loss, logits, target, weight, row_weight, lse, total_weight, options, first
):
    """Gradients of the loss with respect to target, weight, row_weight and options, an operator's inputs from `first`
    on. A row's weight is a constant."""
    rest = (row_weight, lse, total_weight, options)
    grad_target, grad_weight = target, weight
    if is_class_index(target.dtype):
        grad_target = zeros_like(target)
    elif wanted(first):
        grad_target = _target_grad(grad_loss, logits, target, weight, *rest)
    if wanted(first + 1) and weight.ndim == 1:
        grad_weight = _weight_grad(grad_loss, logits, target, weight, *rest)
    return grad_target, grad_weight, row_weight, options


def _gradients(grad_loss, grad_z_loss, logits, target, weight, row_weight, out, options):
    """Of the inputs of a forward operator."""
    saved = (logits, target, weight, row_weight, out[2], out[1], options)
    grad = logits
    if wanted(0):
        grad = _backward(grad_loss, grad_z_loss, *saved)
    data = _data_gradients(grad_loss, *saved, 1)
    return grad, data[0], data[1], data[2], data[3]


def _forward_bprop(logits, target, weight, row_weight, options, out, dout):
    return _gradients(dout[0], dout[0], logits, target, weight, row_weight, out, options)


def _stats_bprop(logits, target, weight, row_weight, options, out, dout):
    return _gradients(dout[0], dout[3], logits, target, weight, row_weight, out, options)


# Second derivatives. lse and total_weight are functions of the other inputs: the derivatives below are total ones,
# and what they return for lse and total_weight is read by nobody.


def _backward_bprop(
    grad_loss,
    grad_z_loss,
    logits,
    target,
    weight,
    row_weight,
    lse,
    total_weight,
    options,
    out,
    dout,
):
    """With d the direction, Σ d·grad_logits = Σ w·q'·(Σ p·d - d): the loss's own form with d for x, Σ p·d for lse."""
    second = _double_backward(
        dout, grad_loss, grad_z_loss, logits, target, weight, row_weight, lse, total_weight, options
    )
    saved = (target, weight, row_weight, second[3], total_weight, options)
    data = _data_gradients(grad_loss, dout, *saved, 3)
    grad_target, grad_weight = data[0], data[1]
    if not is_class_index(target.dtype):
        grad_target = _unless_softcap(grad_target, options)
    if weight.ndim == 1:
        grad_weight = _unless_softcap(grad_weight, options)
    rest = (row_weight, lse, total_weight, options)
    return second[0], second[1], second[2], grad_target, grad_weight, *rest


def _option(options, name):
    """options[name]; the brackets refused a Python int once, in a thread of PyNative's backward pass."""
    return _gather(options, Tensor(option_index(name), mstype.int32), 0)


def _unless_softcap(value, options):
    """nan where the form above does not hold: under softcap, or for z-loss's share of a weighted mean."""
    plain = ops.logical_and(_option(options, "softcap") == 0, _option(options, "z_loss") == 0)
    wide = value if value.dtype == mstype.float64 else value.astype(mstype.float32)
    return ops.where(plain, wide, np.nan).astype(value.dtype)


def _forward_like(grad_loss, logits, target, weight, row_weight, options):
    """The forward call whose loss has grad_loss's shape."""
    if grad_loss.ndim == 0:
        return _forward(logits, target, weight, row_weight, options)
    return _forward_rows(logits, target, weight, row_weight, options)


def _target_grad_bprop(
    grad_loss, logits, target, weight, row_weight, lse, total_weight, options, out, dout
):
    """Loss and gradients are affine in the target: their value at the direction less their value at 0."""
    zero = zeros_like(target)
    rest = (weight, row_weight, lse, total_weight, options)
    grad_logits = _backward(grad_loss, grad_loss, logits, dout, *rest) - _backward(
        grad_loss, grad_loss, logits, zero, *rest
    )
    at_direction = _forward_like(grad_loss, logits, dout, weight, row_weight, options)
    at_zero = _forward_like(grad_loss, logits, zero, weight, row_weight, options)
    grad_grad = at_direction[0] - at_zero[0]
    grad_weight = weight
    if weight.ndim == 1:
        grad_weight = _weight_grad(grad_loss, logits, dout, *rest) - _weight_grad(
            grad_loss, logits, zero, *rest
        )
    return grad_grad, grad_logits, zero, grad_weight, *rest[1:]


def _is_mean(options):
    return _option(options, "reduction") == reduction("mean")


def _through_divisor(direction_weight, total_weight, weight, options):
    """(Σ direction[target] / Σ weight[target], the second derivative by the weight) of a mean over class indices, 0
    without one. The second is not offered: nan, not 0."""
    mean = _is_mean(options)
    ratio = ops.where(mean, per_weight(direction_weight, total_weight), 0.0)
    return ratio, ops.where(mean, np.nan, zeros_like(weight)).astype(weight.dtype)


def _weight_grad_bprop(
    grad_loss, logits, target, weight, row_weight, lse, total_weight, options, out, dout
):
    """Affine in the weight, except that a mean over class indices divides by Σ w[target]."""
    zero = zeros_like(weight)
    rest = (row_weight, lse, total_weight, options)
    grad_logits = _backward(grad_loss, grad_loss, logits, target, dout, *rest) - _backward(
        grad_loss, grad_loss, logits, target, zero, *rest
    )
    grad_target, grad_weight = zeros_like(target), zero
    at_direction = _forward_like(grad_loss, logits, target, dout, row_weight, options)
    if is_class_index(target.dtype):
        ratio, grad_weight = _through_divisor(at_direction[1], total_weight, weight, options)
        whole = _backward(grad_loss, grad_loss, logits, target, weight, *rest)
        grad_logits = grad_logits - ratio.astype(logits.dtype) * whole
    else:
        grad_target = _target_grad(grad_loss, logits, target, dout, *rest)
    if grad_loss.ndim == 0:
        unit = _weight_grad(ops.ones_like(grad_loss), logits, target, weight, *rest)
        grad_grad = (dout * unit).sum().astype(grad_loss.dtype)
    else:
        at_zero = _forward_like(grad_loss, logits, target, zero, row_weight, options)
        grad_grad = at_direction[0] - at_zero[0]
    return grad_grad, grad_logits, grad_target, grad_weight, *rest


def _third_derivative(
    direction,
    grad_loss,
    grad_z_loss,
    logits,
    target,
    weight,
    row_weight,
    lse,
    total_weight,
    options,
    out,
    dout,
):
    """Refused where Python runs. A graph may hold it without using it: there it is nan unless nothing arrives."""
    if not compiling():
        raise NotImplementedError("ms_ce: derivatives of the cpu backend end at the second order")
    arriving = ops.abs(dout[2].astype(mstype.float32)).sum()
    arriving = arriving + ops.abs(dout[0].astype(mstype.float32)).sum()
    nothing = ops.where(arriving == 0, 0.0, np.nan).astype(logits.dtype)
    return (
        ops.ones_like(direction) * nothing,
        ops.ones_like(grad_loss) * nothing,
        ops.ones_like(grad_z_loss) * nothing,
        ops.ones_like(logits) * nothing,
        zeros_like(target),
        weight,
        row_weight,
        lse,
        total_weight,
        options,
    )


_double_backward = make_operator("CrossEntropyDoubleBackward", _third_derivative)
_backward = make_operator("CrossEntropyBackward", _backward_bprop)
_target_grad = make_operator("CrossEntropyTargetGrad", _target_grad_bprop)
_weight_grad = make_operator("CrossEntropyWeightGrad", _weight_grad_bprop)
_forward = make_operator("CrossEntropyForward", _forward_bprop)
_forward_rows = make_operator("CrossEntropyForwardRows", _forward_bprop)
_stats = make_operator("CrossEntropyStats", _stats_bprop)
_stats_rows = make_operator("CrossEntropyStatsRows", _stats_bprop)


class _MadeInForward(nn.Cell):
    """The gradient that the forward pass has made, to MindSpore a constant; its derivative is that of _backward."""

    def construct(
        self, gradient, grad_loss, logits, target, weight, row_weight, lse, total_weight, options
    ):
        return gradient

    def bprop(
        self,
        gradient,
        grad_loss,
        logits,
        target,
        weight,
        row_weight,
        lse,
        total_weight,
        options,
        out,
        dout,
    ):
        saved = (logits, target, weight, row_weight, lse, total_weight, options)
        second = _backward_bprop(grad_loss, grad_loss, *saved, out, dout)
        return (zeros_like(gradient), second[0] + second[1], *second[2:])


_made_in_forward = _MadeInForward()


def _gradient_for(grad_loss, gradient, *saved):
    if known_one(grad_loss):
        return _made_in_forward(gradient, grad_loss, *saved)
    return _backward(grad_loss, grad_loss, *saved)


def _forward_with_gradient_bprop(logits, target, weight, row_weight, options, out, dout):
    saved = (logits, target, weight, row_weight, out[2], out[1], options)
    grad = _gradient_for(dout[0], out[3], *saved)
    data = _data_gradients(dout[0], *saved, 1)
    return grad, data[0], data[1], data[2], data[3]


def _value_and_grad_bprop(logits, target, weight, row_weight, options, out, dout):
    raise NotImplementedError(
        "cross_entropy_value_and_grad already returns the gradient and is not differentiated; "
        "differentiate cross_entropy instead"
    )


_forward_with_gradient = make_operator(
    "CrossEntropyValueAndGrad",
    _forward_with_gradient_bprop,
    Derivative(_forward_bprop, made={3: 0}, plain=_forward),
)
_value_and_grad = make_operator("CrossEntropyValueAndGrad", _value_and_grad_bprop)
if _forward_with_gradient is not None:
    # Else MindSpore takes the two for one, with one derivative.
    _forward_with_gradient.add_prim_attr("differentiable", True)


def cross_entropy(logits, target, weight, row_weight, options, gradient_in_forward=False):
    """(loss, total_weight, lse): loss in logits' dtype, the others float64."""
    given = factors(logits.dtype, weight, row_weight, options, ClassBlock())
    if options.reduction == "none":
        return _forward_rows(logits, target, *given)
    if gradient_in_forward:
        return _forward_with_gradient(logits, target, *given)[:3]
    return _forward(logits, target, *given)


def refuse_targets(target, classes, ignore_index, shift=False):
    """The kernel's own errors know the whole position."""


def cross_entropy_value_and_grad(logits, target, weight, row_weight, options):
    """(loss, total_weight, lse, grad_logits) in one read and one write; reduction mean or sum."""
    given = factors(logits.dtype, weight, row_weight, options, ClassBlock())
    return _value_and_grad(logits, target, *given)


def cross_entropy_with_stats(logits, target, weight, row_weight, options):
    """(loss, total_weight, lse, z_loss, num_correct, entropy), all in one read of the logits."""
    given = factors(logits.dtype, weight, row_weight, options, ClassBlock(), True)
    if options.reduction == "none":
        return _stats_rows(logits, target, *given)
    return _stats(logits, target, *given)


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
    return _nll_distance(
        grad_loss, log_prob, target, weight, row_weight, lse, total_weight, options
    )


def _sum_for_mean(options):
    """The options with 'sum' in the place of 'mean'."""
    place = ops.arange(options.shape[0]) == option_index("reduction")
    mean = ops.logical_and(place, options == reduction("mean"))
    return ops.where(mean, reduction("sum"), options)


def _nll_distance_bprop(
    grad_loss, log_prob, target, weight, row_weight, lse, total_weight, options, out, dout
):
    """As _weight_grad_bprop: with d the direction, Σ d·grad_weight = -Σ g·x_y·(d_y - w_y·Σd/Σw), over Σw for a mean."""
    at_direction = _nll_like(grad_loss, log_prob, target, dout, row_weight, options)
    exact = at_direction[1].astype(total_weight.dtype)
    ratio, grad_weight = _through_divisor(exact, total_weight, weight, options)
    inverse = per_weight(ops.ones_like(total_weight), total_weight)
    factor = ops.where(_is_mean(options), inverse, 1.0)
    real = mstype.float64 if log_prob.dtype == mstype.float64 else mstype.float32
    moved = (dout.astype(real) - ratio.astype(real) * weight.astype(real)) * factor.astype(real)
    undivided = _sum_for_mean(options)
    grad_log_prob = _nll_backward(grad_loss, target, moved, row_weight, log_prob, undivided)
    if grad_loss.ndim == 0:
        one = ops.ones_like(grad_loss)
        unit = _nll_distance(one, log_prob, target, weight, row_weight, lse, total_weight, options)
        grad_grad = (dout * unit).sum().astype(grad_loss.dtype)
    else:
        grad_grad = at_direction[0]
    nothing = zeros_like(target)
    rest = (row_weight, lse, total_weight, options)
    return grad_grad, grad_log_prob, nothing, grad_weight, *rest


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
