"""What the linear losses of the `cpu` backend share: their plan, operators that leave out gradients nobody wants."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore.ops import operations as P

from ms_ce._versions import multiply
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.cpu.operators import kept, make_operator, packed
from ms_ce.ops.graph import compiling, known_one
from ms_ce.ops.options import Gradients

_depend = P.Depend()


@kept
def packed_plan(chunk_bytes: int, shift: bool, gradients) -> np.ndarray:
    """A graph hands over the gradients as a plain tuple where it has asked for them once before."""
    frozen = not Gradients(*gradients).linear_bias
    return packed("plan", {"chunk_bytes": chunk_bytes, "shift": shift, "bias_frozen": frozen})


# Operators that make fewer gradients have the same outputs; what they leave out is of shape ().


def suffix_of(gradients: Gradients) -> str:
    if gradients.input:
        return "" if gradients.linear_weight else "Input"
    return "Weight" if gradients.linear_weight else "Bias"


def _complete(made, arguments, plan):
    return made


def completing(gradients: Gradients, operator):
    """The gradients of input, weight and bias, from those that were made and the backward operator's arguments.

    A graph may ask for the others all the same, say for a parameter that was frozen: they come from operators of their
    own, `operator(suffix)`, which the compiler drops where nobody does.
    """
    of_input, of_weight, of_bias = gradients.input, gradients.linear_weight, gradients.linear_bias
    if of_input and of_weight and of_bias:
        return _complete
    input_alone: Any = None if of_input else operator("Input")
    weight_alone: Any = None if of_weight else operator("Weight")
    bias_alone: Any = None if of_bias else operator("Bias")
    bias_wanted = Tensor(packed("plan", {"chunk_bytes": 1, "shift": 1, "bias_frozen": 0}))

    def completed(made, arguments, plan):
        grad_input, grad_weight, grad_bias = made[0], made[1], made[2]
        if not of_input:
            grad_input = input_alone(*arguments, plan)[0] if compiling() else arguments[2]
        if not of_weight:
            grad_weight = weight_alone(*arguments, plan)[1] if compiling() else arguments[3]
        if not of_bias:
            grad_bias = arguments[5]
            if compiling():
                grad_bias = bias_alone(*arguments, plan * bias_wanted)[2]
        return grad_input, grad_weight, grad_bias

    return completed


def may_scale_later(dtype) -> bool:
    """The kernel keeps gradients in the inputs' dtype: float16 would be rounded before the loss scale that is meant to
    save it."""
    return dtype != mstype.float16


rescale = make_operator("LinearCrossEntropyRescale")


def rescaled(upstream, grad_input, grad_weight, grad_bias, applied):
    """Gradients that the forward pass has made for an upstream of 1, times the true one: where they lie, or in a graph,
    which may ask for several, in a place of their own."""
    if known_one(upstream):
        return grad_input, grad_weight, grad_bias
    return _times(upstream, grad_input, grad_weight, grad_bias, applied)


def _times(upstream, grad_input, grad_weight, grad_bias, applied):
    if compiling():
        grad_input, grad_weight = multiply(grad_input, upstream), multiply(grad_weight, upstream)
        return grad_input, grad_weight, multiply(grad_bias, upstream)
    done = rescale(upstream, grad_input, grad_weight, grad_bias, applied)
    return _depend(grad_input, done), _depend(grad_weight, done), _depend(grad_bias, done)


def forward_operator(name, bprop, made_for, derivative=None):
    """`made_for` is what the bprop was made for: other values, another operator."""
    operator = make_operator(name, bprop, derivative)
    # A graph takes the bprop of another operator that has the same attributes.
    operator.add_prim_attr("made_for", str(tuple(made_for)))
    return operator


def after_first(rows, plan, input):
    """Rows stand at their target's position, and under shift no sequence's first one has a loss."""
    if not plan.shift:
        return rows
    if rows.dtype == mstype.int32:
        return rows[..., 1:]
    # MindSpore's CPU slices of bfloat16 have no gradient.
    return rows.astype(exact_dtype(rows.dtype))[..., 1:].astype(rows.dtype)
