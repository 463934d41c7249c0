"""The `cpu` backend: one call of the compiled kernel forward and one backward."""

from __future__ import annotations

from mindspore import nn, ops

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.divisor import through_divisor
from ms_ce.ops.cpu.operators import are_constants, factors, make_operator
from ms_ce.ops.cpu.refusal import none_of, none_of_target, refused
from ms_ce.ops.eager import Derivative, wanted
from ms_ce.ops.graph import Known, OfKnown, is_class_index, known_one, may_need_gradient
from ms_ce.ops.options import ClassBlock

_THIRD = "derivatives of the cpu backend end at the second order"


def _data_gradients(
    grad_loss, grad_z_loss, logits, target, weight, row_weight, lse, total_weight, options
):
    """Gradients of the loss with respect to target and weight."""
    rest = (row_weight, lse, total_weight, options)
    grad_target, grad_weight = target, weight
    if is_class_index(target.dtype):
        grad_target = zeros_like(target)
    elif wanted(1):
        grad_target = _target_grad(grad_loss, logits, target, weight, *rest)
    if wanted(2) and weight.ndim == 1:
        grad_weight = _weight_grad(grad_loss, grad_z_loss, logits, target, weight, *rest)
    return grad_target, grad_weight


def _gradients(grad_loss, grad_z_loss, logits, target, weight, row_weight, out, options):
    """Of the inputs of a forward operator. A row's weight is a constant."""
    saved = (logits, target, weight, row_weight, out[2], out[1], options)
    grad = logits
    if wanted(0):
        grad = _backward(grad_loss, grad_z_loss, *saved)
    if are_constants(target, weight):
        return grad, zeros_like(target), weight, row_weight, options
    grad_target, grad_weight = _data_gradients(grad_loss, grad_z_loss, *saved)
    return grad, grad_target, grad_weight, row_weight, options


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
    """With d the direction times dx'/dx, Σ d·grad_logits = Σ w·q'·(Σ p·d - d) + 2·z·lse·Σ p·d: the loss's own form,
    with d for x' and Σ p·d for lse."""
    second = _double_backward(
        dout, grad_loss, grad_z_loss, logits, target, weight, row_weight, lse, total_weight, options
    )
    grad_target, grad_weight = target, weight
    given, mean = (logits, target, weight, row_weight), second[3]
    if is_class_index(target.dtype):
        grad_target = zeros_like(target)
    elif wanted(3):
        grad_target = _target_grad_along(dout, grad_loss, *given, mean, total_weight, options)
    if wanted(4) and weight.ndim == 1:
        saved = (lse, mean, total_weight, options)
        grad_weight = _weight_grad_along(dout, grad_loss, grad_z_loss, *given, *saved)
    rest = (row_weight, lse, total_weight, options)
    return second[0], second[1], second[2], grad_target, grad_weight, *rest


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
        grad_weight = _weight_grad(grad_loss, grad_loss, logits, dout, *rest) - _weight_grad(
            grad_loss, grad_loss, logits, zero, *rest
        )
    return grad_grad, grad_logits, zero, grad_weight, *rest[1:]


def _weight_grad_bprop(
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
    """Affine in the weight, except that a mean over class indices divides by Σ w[target]."""
    zero = zeros_like(weight)
    rest = (row_weight, lse, total_weight, options)
    upstream = (grad_loss, grad_z_loss)
    grad_logits = _backward(*upstream, logits, target, dout, *rest) - _backward(
        *upstream, logits, target, zero, *rest
    )
    grad_target, grad_weight = zeros_like(target), zero
    at_direction = _forward_like(grad_loss, logits, target, dout, row_weight, options)
    if is_class_index(target.dtype):
        ratio, grad_weight = through_divisor(
            dout, at_direction[1], out, target, row_weight, (weight, total_weight), options
        )
        whole = _backward(*upstream, logits, target, weight, *rest)
        grad_logits = grad_logits - ratio.astype(logits.dtype) * whole
    else:
        grad_target = _target_grad(grad_loss, logits, target, dout, *rest)
    grad_grad_z = zeros_like(grad_z_loss)
    if grad_loss.ndim == 0:
        one, none = ops.ones_like(grad_loss), zeros_like(grad_loss)
        unit = _weight_grad(one, none, logits, target, weight, *rest)
        grad_grad = (dout * unit).sum().astype(grad_loss.dtype)
        if wanted(1):
            unit = _weight_grad(none, one, logits, target, weight, *rest)
            grad_grad_z = (dout * unit).sum().astype(grad_z_loss.dtype)
    else:
        at_zero = _forward_like(grad_loss, logits, target, zero, row_weight, options)
        grad_grad = at_direction[0] - at_zero[0]
    return grad_grad, grad_grad_z, grad_logits, grad_target, grad_weight, *rest


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
    nothing = refused(_THIRD, dout[0], dout[2])
    grads = none_of(nothing, direction, grad_loss, grad_z_loss, logits)
    grad_target = none_of_target(nothing, target)
    grad_weight = none_of(nothing, weight)[0]
    return *grads, grad_target, grad_weight, row_weight, lse, total_weight, options


def _third_of_target(
    direction,
    grad_loss,
    logits,
    target,
    weight,
    row_weight,
    mean,
    total_weight,
    options,
    out,
    dout,
):
    given = (direction, grad_loss, logits, target, weight)
    return *none_of(refused(_THIRD, dout), *given), row_weight, mean, total_weight, options


def _third_of_weight(
    direction,
    grad_loss,
    grad_z_loss,
    logits,
    target,
    weight,
    row_weight,
    lse,
    mean,
    total_weight,
    options,
    out,
    dout,
):
    nothing = refused(_THIRD, dout)
    grads = none_of(nothing, direction, grad_loss, grad_z_loss, logits)
    grad_target, grad_weight = none_of_target(nothing, target), none_of(nothing, weight)[0]
    return *grads, grad_target, grad_weight, row_weight, lse, mean, total_weight, options


_double_backward = make_operator("CrossEntropyDoubleBackward", _third_derivative)
_backward = make_operator("CrossEntropyBackward", _backward_bprop)
_target_grad_along = make_operator("CrossEntropyTargetGradAlong", _third_of_target)
_weight_grad_along = make_operator("CrossEntropyWeightGradAlong", _third_of_weight)
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
    grad_target, grad_weight = _data_gradients(dout[0], dout[0], *saved)
    return grad, grad_target, grad_weight, row_weight, options


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
# Where Python runs, and the gradient of probability targets counts as wanted: one more write instead of a pass.
_forward_with_gradients = make_operator(
    "CrossEntropyValueAndGrads",
    _forward_bprop,
    Derivative(_forward_bprop, made={3: 0, 4: 1}, plain=_forward),
)
if _forward_with_gradient is not None:
    # Else MindSpore takes the two for one, with one derivative.
    _forward_with_gradient.add_prim_attr("differentiable", True)


@OfKnown
def _operator(reduction, gradient_in_forward, target):
    if reduction == "none":
        return _forward_rows
    if not gradient_in_forward:
        return _forward
    of_target = not isinstance(target, Known) and not is_class_index(target.dtype)
    if of_target and may_need_gradient(target):
        return _forward_with_gradients
    return _forward_with_gradient


def cross_entropy(logits, target, weight, row_weight, options, gradient_in_forward=False):
    """(loss, total_weight, lse): loss in logits' dtype, the others float64."""
    given = factors(logits.dtype, weight, row_weight, options, ClassBlock())
    operator = _operator(options.reduction, gradient_in_forward, target)
    results = operator(logits, target, *given)
    return results[0], results[1], results[2]


def cross_entropy_value_and_grad(logits, target, weight, row_weight, options):
    """(loss, total_weight, lse, grad_logits) in one read and one write; reduction mean or sum."""
    given = factors(logits.dtype, weight, row_weight, options, ClassBlock())
    return _value_and_grad(logits, target, *given)


def cross_entropy_with_stats(logits, target, weight, row_weight, options):
    """As `protocol.Kernels` says, all in one read of the logits."""
    given = factors(logits.dtype, weight, row_weight, options, ClassBlock(), True)
    if options.reduction == "none":
        return _stats_rows(logits, target, *given)
    return _stats(logits, target, *given)
