"""The `cpu` backend: gradients of the linear loss by its data, probability targets and the class weight.

Each is an operator of its own, which makes the logits again: most calls want neither, and a compiler drops what nobody
reads.
"""

from __future__ import annotations

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.operators import make_operator
from ms_ce.ops.eager import wanted
from ms_ce.ops.graph import compiling, is_class_index, nan_if_any

ONCE = "ms_ce: linear_cross_entropy is differentiated once; for second derivatives take backend='composed'"


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
    if not compiling():
        raise NotImplementedError(ONCE)
    nothing = nan_if_any(dout)
    return (
        grad_loss * nothing.astype(grad_loss.dtype),
        grad_z_loss * nothing.astype(grad_z_loss.dtype),
        hidden * nothing.astype(hidden.dtype),
        linear_weight * nothing.astype(linear_weight.dtype),
        target,
        linear_bias,
        weight,
        row_weight,
        lse,
        total_weight,
        options,
        plan,
    )


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
