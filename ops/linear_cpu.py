"""The `cpu` backend of the linear loss: the loop over chunks of rows is inside one operator.

The kernel's operations are described in ops/csrc/interface/operations.h. Options travel as in `cpu`; what only this
loss has travels as `plan`: the bytes of a chunk's logits, whether the target is shifted and whether the bias is frozen.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce.ops.cpu_operators import (
    factors,
    kept,
    make_operator,
    no_weight,
    packed,
    zeros_like,
)
from ms_ce.ops.eager import Derivative, wanted
from ms_ce.ops.graph import compiling, known_one, nan_if_any
from ms_ce.ops.linear_plan import exact_dtype, per_row
from ms_ce.ops.options import ClassBlock, Gradients, Plan

_depend = P.Depend()


@kept
def _plan(chunk_bytes: int, shift: bool, bias_frozen: bool) -> np.ndarray:
    slots = {"chunk_bytes": chunk_bytes, "shift": shift, "bias_frozen": bias_frozen}
    return packed("plan", slots)


_ONCE = "ms_ce: linear_cross_entropy is differentiated once; for second derivatives take backend='composed'"


def _backward_bprop(
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
        raise NotImplementedError(_ONCE)
    nothing = nan_if_any(dout[0]) + nan_if_any(dout[1]) + nan_if_any(dout[2])
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


# Operators that make fewer gradients have the same outputs; what they leave out is of shape ().


def _suffix(gradients: Gradients) -> str:
    if gradients.input:
        return "" if gradients.linear_weight else "Input"
    return "Weight" if gradients.linear_weight else "Bias"


@functools.lru_cache(maxsize=4)
def _backward_operator(suffix: str):
    return make_operator("LinearCrossEntropyBackward" + suffix, _backward_bprop)


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


def _completing(gradients: Gradients):
    """What a bprop returns, from the gradients that were made and the backward operator's arguments.

    A graph may ask for the others all the same, say for a parameter that was frozen: they come from operators of their
    own, which the compiler drops where nobody does. Target and class weight are constants.
    """
    of_input, of_weight, of_bias = gradients.input, gradients.linear_weight, gradients.linear_bias
    input_alone: Any = None if of_input else _backward_operator("Input")
    weight_alone: Any = None if of_weight else _backward_operator("Weight")
    bias_alone: Any = None if of_bias else _backward_operator("Bias")
    bias_wanted = Tensor(packed("plan", {"chunk_bytes": 1, "shift": 1, "bias_frozen": 0}))

    def completed(made, arguments, plan):
        grad_input, grad_weight, grad_bias = made
        hidden, linear_weight, target, linear_bias, weight, row_weight = arguments[2:8]
        if not of_input:
            grad_input = input_alone(*arguments, plan)[0] if compiling() else hidden
        if not of_weight:
            grad_weight = weight_alone(*arguments, plan)[1] if compiling() else linear_weight
        if not of_bias:
            grad_bias = linear_bias
            if compiling():
                grad_bias = bias_alone(*arguments, plan * bias_wanted)[2]
        grad_target = zeros_like(target) if wanted(2) else target
        grad_class_weight = zeros_like(weight) if wanted(4) else weight
        return (
            grad_input,
            grad_weight,
            grad_target,
            grad_bias,
            grad_class_weight,
            row_weight,
            arguments[10],
            plan,
        )

    return completed


def _two_sweeps_bprop(gradients: Gradients, second: int):
    """The bprop of a forward operator whose output `second` has the upstream gradient of z-loss."""
    backward, completed = _backward_operator(_suffix(gradients)), _completing(gradients)

    def bprop(
        hidden, linear_weight, target, linear_bias, weight, row_weight, options, plan, out, dout
    ):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        arguments = (dout[0], dout[second], *tensors, out[2], out[1], options)
        return completed(backward(*arguments, plan), arguments, plan)

    return bprop


def _one_sweep_bprop(gradients: Gradients):
    completed = _completing(gradients)

    def bprop(
        hidden, linear_weight, target, linear_bias, weight, row_weight, options, plan, out, dout
    ):
        made = (out[3], out[4], out[5])
        if not compiling():
            done = _rescale(dout[0], out[3], out[4], out[5], out[6])
            made = (_depend(out[3], done), _depend(out[4], done), _depend(out[5], done))
        elif not known_one(dout[0]):
            made = (out[3] * dout[0], out[4] * dout[0], out[5] * dout[0])
        made = (_once(made[0]), _once(made[1]), _once(made[2]))
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        arguments = (dout[0], dout[0], *tensors, out[2], out[1], options)
        return completed(made, arguments, plan)

    return bprop


def _forward_operator(name, bprop, gradients, derivative=None):
    operator = make_operator(name, bprop, derivative)
    # A graph takes the bprop of another operator that has the same attributes.
    operator.add_prim_attr("gradients", str(tuple(gradients)))
    return operator


@constexpr
@functools.lru_cache(maxsize=32)
def _loss_operator(rows: bool, gradients):
    """Operators are made for each set of gradients, which a graph hands over as a plain tuple."""
    gradients = Gradients(*gradients)
    if gradients.in_forward and not rows:
        name = "LinearCrossEntropyValueAndGrad" + _suffix(gradients)
        later = _two_sweeps_bprop(gradients, 0)
        derivative = Derivative(later, made={3: 0, 4: 1, 5: 3}, rescale=_rescale)
        return _forward_operator(name, _one_sweep_bprop(gradients), gradients, derivative)
    name = "LinearCrossEntropyForwardRows" if rows else "LinearCrossEntropyForward"
    return _forward_operator(name, _two_sweeps_bprop(gradients, 0), gradients)


@constexpr
@functools.lru_cache(maxsize=16)
def _stats_operator(rows: bool, gradients):
    gradients = Gradients(*gradients)
    name = "LinearCrossEntropyStatsRows" if rows else "LinearCrossEntropyStats"
    return _forward_operator(name, _two_sweeps_bprop(gradients, 3), gradients)


def _arguments(plan, gradients, target, linear_bias, weight, row_weight, dtype, has_grad_z_loss):
    """(target, linear_bias, weight, row_weight, options, plan) as the operators take them."""
    if linear_bias is None:
        linear_bias = no_weight(dtype)
    given = factors(dtype, weight, row_weight, plan.options, ClassBlock(), has_grad_z_loss)
    slots = _plan(plan.chunk_bytes, plan.shift, not gradients.linear_bias)
    return target, linear_bias, *given, slots


def may_scale_later(dtype) -> bool:
    """The kernel keeps gradients in the inputs' dtype: float16 would be rounded before the loss scale that is meant to
    save it."""
    return dtype != mstype.float16


def _after_first(rows, plan, input):
    """Rows stand at their target's position, and under shift no sequence's first one has a loss."""
    if not plan.shift:
        return rows
    # MindSpore's CPU slices of bfloat16 have no gradient.
    return rows.astype(exact_dtype(rows.dtype))[..., 1:].astype(rows.dtype)


def linear_cross_entropy(
    plan: Plan,
    gradients: Gradients,
    with_stats: bool,
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    row_weight,
):
    """As `protocol.LinearForm` says, all from one pass over the chunks."""
    given = (target, linear_bias, weight, row_weight)
    arguments = _arguments(plan, gradients, *given, input.dtype, with_stats)
    rows = plan.options.reduction == "none"
    operator = _stats_operator(rows, gradients) if with_stats else _loss_operator(rows, gradients)
    results = operator(input, linear_weight, *arguments)
    if not with_stats:
        results = results[:1]
    return per_row(results, plan, _after_first, input)
