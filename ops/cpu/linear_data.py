"""The `cpu` backend: gradients of the linear loss by its data, probability targets and the class weight.

Each is an operator of its own, which makes the logits again: most calls want neither, and a compiler drops what nobody
reads.
"""

from __future__ import annotations

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.operators import make_operator
from ms_ce.ops.cpu.refusal import none_of, none_of_target, refused
from ms_ce.ops.eager import wanted
from ms_ce.ops.graph import is_class_index

ONCE = "linear_cross_entropy is differentiated once; for second derivatives take backend='composed'"


def refusing(arriving):
    """The bprop of an operator that takes what the backward operator takes; `arriving` makes a tuple of its dout."""

    def bprop(
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
        nothing = refused(ONCE, *arriving(dout))
        grads = none_of(nothing, grad_loss, grad_z_loss, hidden, linear_weight)
        grad_bias, grad_weight = none_of(nothing, linear_bias, weight)
        grad_target = none_of_target(nothing, target)
        rest = (row_weight, lse, total_weight, options, plan)
        return *grads, grad_target, grad_bias, grad_weight, *rest

    return bprop


def _one(dout):
    return (dout,)


_target_grad = make_operator("LinearCrossEntropyTargetGrad", refusing(_one))
_weight_grad = make_operator("LinearCrossEntropyWeightGrad", refusing(_one))


def sources(target, weight):
    """What of the data the gradients of input, weight and bias are made of, without constants."""
    return (weight,) if is_class_index(target.dtype) else (weight, target)


def data_gradients(target, weight, arguments, plan):
    """(of the target, of the class weight), as far as they are wanted, from the backward operator's arguments."""
    grad_target, grad_weight = target, weight
    if is_class_index(target.dtype):
        grad_target = zeros_like(target)
    elif wanted(2):
        grad_target = _target_grad(*arguments, plan)
    if wanted(4) and weight.ndim == 1:
        grad_weight = _weight_grad(*arguments, plan)
    return grad_target, grad_weight


# The same of class indices and an absent weight.


def no_sources(target, weight):
    return ()


def no_data_gradients(target, weight, arguments, plan):
    return zeros_like(target), weight
