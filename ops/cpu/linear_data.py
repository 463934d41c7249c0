"""The `cpu` backend: gradients of the linear loss by its data, probability targets and the class weight.

Each is an operator of its own, which makes the logits again: most calls want neither, and a compiler drops what nobody
reads.
"""

from __future__ import annotations

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.operators import make_operator
from ms_ce.ops.cpu.refusal import none_of, refused
from ms_ce.ops.eager import wanted
from ms_ce.ops.graph import is_class_index

ONCE = "linear_cross_entropy is differentiated once; for second derivatives take backend='composed'"


def none_of_inputs(
    nothing, grad_loss, grad_z_loss, hidden, linear_weight, target, linear_bias, weight, *rest
):
    """What is returned for the inputs of a backward operator, with `nothing` from `refused`."""
    grads = none_of(nothing, grad_loss, grad_z_loss, hidden, linear_weight)
    grad_bias, grad_weight = none_of(nothing, linear_bias, weight)
    grad_target = target if is_class_index(target.dtype) else none_of(nothing, target)[0]
    return *grads, grad_target, grad_bias, grad_weight, *rest


def _refused(
    grad_loss,
    grad_z_loss,
    hidden,
    linear_weight,
    target,
    linear_bias,
    weight,
    row_weight,
    lse,
    total_weight,
    options,
    plan,
    out,
    dout,
):
    tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
    rest = (lse, total_weight, options, plan)
    return none_of_inputs(refused(ONCE, dout), grad_loss, grad_z_loss, *tensors, *rest)


_target_grad = make_operator("LinearCrossEntropyTargetGrad", _refused)
_weight_grad = make_operator("LinearCrossEntropyWeightGrad", _refused)


def data_gradients(arguments, plan):
    """(of the target, of the class weight), as far as they are wanted, from the backward operator's arguments."""
    target, weight = arguments[4], arguments[6]
    grad_target, grad_weight = target, weight
    if is_class_index(target.dtype):
        grad_target = zeros_like(target)
    elif wanted(2):
        grad_target = _target_grad(*arguments, plan)
    if wanted(4) and weight.ndim == 1:
        grad_weight = _weight_grad(*arguments, plan)
    return grad_target, grad_weight
