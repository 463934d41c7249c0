"""The `cpu` backend of the linear loss: the loop over chunks of rows is inside one operator.

The kernel's operations are described in ops/csrc/operations.h. Options travel as in `cpu`; what only this loss has
travels as `plan`: the bytes of a chunk's logits and whether the target is shifted.
"""

from __future__ import annotations

from mindspore import Tensor, from_numpy, nn
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce.ops.cpu_operators import make_operator, no_weight, packed, packed_options
from ms_ce.ops.graph import compiling, known_one, nan_if_any
from ms_ce.ops.options import ClassBlock

_depend = P.Depend()


@constexpr
def _plan(chunk_bytes: int, shift: bool) -> Tensor:
    return from_numpy(packed("plan", {"chunk_bytes": chunk_bytes, "shift": shift}))


_ONCE = "ms_ce: linear_cross_entropy is differentiated once; for second derivatives take backend='composed'"

# Target and class weight are constants here: ms_ce.linear stops their gradients, whatever is returned for them.


def _gradients(grad_loss, grad_z_loss, tensors, options, plan, out):
    """The bprop of a forward operator; of its outputs the backward one needs lse and total_weight."""
    grads = _backward(grad_loss, grad_z_loss, *tensors, out[2], out[1], options, plan)
    return grads[0], grads[1], tensors[2], grads[2], tensors[4], options, plan


def _forward_bprop(hidden, linear_weight, target, linear_bias, weight, options, plan, out, dout):
    tensors = (hidden, linear_weight, target, linear_bias, weight)
    return _gradients(dout[0], dout[0], tensors, options, plan, out)


def _stats_bprop(hidden, linear_weight, target, linear_bias, weight, options, plan, out, dout):
    tensors = (hidden, linear_weight, target, linear_bias, weight)
    return _gradients(dout[0], dout[3], tensors, options, plan, out)


def _value_and_grad_bprop(
    hidden, linear_weight, target, linear_bias, weight, options, plan, out, dout
):
    grads = (out[3], out[4], out[5])
    if not compiling():
        done = _rescale(dout[0], out[3], out[4], out[5], out[6])
        grads = (_depend(out[3], done), _depend(out[4], done), _depend(out[5], done))
    elif not known_one(dout[0]):
        grads = (out[3] * dout[0], out[4] * dout[0], out[5] * dout[0])
    grads = (_once(grads[0]), _once(grads[1]), _once(grads[2]))
    return grads[0], grads[1], target, grads[2], weight, options, plan


def _backward_bprop(
    grad_loss,
    grad_z_loss,
    hidden,
    linear_weight,
    target,
    linear_bias,
    weight,
    lse,
    total_weight,
    options,
    plan,
    out,
    dout,
):
    if not compiling():
        raise NotImplementedError(_ONCE)
    nothing = nan_if_any(dout[0])
    return (
        grad_loss * nothing.astype(grad_loss.dtype),
        grad_z_loss * nothing.astype(grad_z_loss.dtype),
        hidden * nothing.astype(hidden.dtype),
        linear_weight * nothing.astype(linear_weight.dtype),
        target,
        linear_bias,
        weight,
        lse,
        total_weight,
        options,
        plan,
    )


_backward = make_operator("LinearCrossEntropyBackward", _backward_bprop)
_rescale = make_operator("LinearCrossEntropyRescale")


class _Once(nn.Cell):
    """Ends a second derivative: to MindSpore the gradients below are outputs of the forward pass, constants."""

    def construct(self, gradient):
        return gradient

    def bprop(self, gradient, out, dout):
        if not compiling():
            raise NotImplementedError(_ONCE)
        return (gradient * nan_if_any(dout).astype(gradient.dtype),)


_once = _Once()


_forward = make_operator("LinearCrossEntropyForward", _forward_bprop)
_forward_rows = make_operator("LinearCrossEntropyForwardRows", _forward_bprop)
_stats = make_operator("LinearCrossEntropyStats", _stats_bprop)
_stats_rows = make_operator("LinearCrossEntropyStatsRows", _stats_bprop)
_value_and_grad = make_operator("LinearCrossEntropyValueAndGrad", _value_and_grad_bprop)


def _arguments(options, target, linear_bias, weight, chunk_bytes, shift, dtype, has_grad_z_loss):
    """(target, linear_bias, weight, options, plan) as the operators take them."""
    has_weight = weight is not None
    if weight is None:
        weight = no_weight(dtype)
    if linear_bias is None:
        linear_bias = no_weight(dtype)
    packed = packed_options(options, ClassBlock(), has_weight, has_grad_z_loss)
    return target, linear_bias, weight, packed, _plan(chunk_bytes, shift)


def linear_cross_entropy(
    hidden,
    linear_weight,
    target,
    linear_bias,
    weight,
    options,
    chunk_bytes,
    shift,
    gradient_in_forward,
):
    """(loss, total_weight, lse); rows stand at their target's position, also under shift."""
    arguments = _arguments(
        options, target, linear_bias, weight, chunk_bytes, shift, hidden.dtype, False
    )
    if options.reduction == "none":
        return _forward_rows(hidden, linear_weight, *arguments)
    if gradient_in_forward:
        return _value_and_grad(hidden, linear_weight, *arguments)[:3]
    return _forward(hidden, linear_weight, *arguments)


def linear_cross_entropy_with_stats(
    hidden, linear_weight, target, linear_bias, weight, options, chunk_bytes, shift
):
    """(loss, total_weight, lse, z_loss, num_correct, entropy), all from one pass over the chunks."""
    arguments = _arguments(
        options, target, linear_bias, weight, chunk_bytes, shift, hidden.dtype, True
    )
    if options.reduction == "none":
        return _stats_rows(hidden, linear_weight, *arguments)
    return _stats(hidden, linear_weight, *arguments)
