"""The `cpu` backend: distillation without logits, in one operator that holds the loop over chunks of rows.

What is given of the teacher are three tensors: hidden states, weight and bias, or the log-probabilities of k classes,
these classes, and whether the others count.
"""

from __future__ import annotations

import functools

import numpy as np
from mindspore.ops import constexpr

from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.cpu.linear_operators import (
    forward_operator,
    may_scale_later,  # noqa: F401
    packed_plan,
    rescale,
    rescaled,
    suffix_of,
)
from ms_ce.ops.cpu.operators import factors, given, kept, make_operator
from ms_ce.ops.cpu.refusal import Once, none_of, refused
from ms_ce.ops.eager import Derivative, wanted
from ms_ce.ops.options import ClassBlock, Gradients, Plan

_ONCE = "linear_distillation_loss and linear_top_k_distillation_loss are differentiated once, on every backend"
_once = Once(_ONCE)


def _refused(
    grad_loss,
    hidden,
    linear_weight,
    linear_bias,
    first,
    second,
    third,
    row_weight,
    options,
    plan,
    out,
    dout,
):
    nothing = refused(_ONCE, dout[0], dout[1], dout[2])
    grads = none_of(nothing, grad_loss, hidden, linear_weight, linear_bias)
    return *grads, first, second, third, row_weight, options, plan


@functools.lru_cache(maxsize=8)
def _backward_operator(family: str, suffix: str):
    return make_operator(f"{family}Backward{suffix}", _refused)


def _placed(gradients: Gradients):
    """The gradients of the student's tensors: those that are made, and anything for those that PyNative does not want;
    a graph makes all."""
    of_input, of_weight, of_bias = gradients.input, gradients.linear_weight, gradients.linear_bias

    def placed(made, student):
        grad_hidden = made[0] if of_input else student[0]
        grad_weight = made[1] if of_weight else student[1]
        return grad_hidden, grad_weight, made[2] if of_bias else student[2]

    return placed


def _two_sweeps_bprop(family: str, gradients: Gradients):
    backward, placed = _backward_operator(family, suffix_of(gradients)), _placed(gradients)

    def bprop(
        hidden,
        linear_weight,
        linear_bias,
        first,
        second,
        third,
        row_weight,
        options,
        plan,
        out,
        dout,
    ):
        teacher = (first, second, third)
        student = (hidden, linear_weight, linear_bias)
        grads = student
        if wanted(0, 1, 2):
            grads = placed(backward(dout, *student, *teacher, row_weight, options, plan), student)
        return *grads, *teacher, row_weight, options, plan

    return bprop


def _one_sweep_bprop(gradients: Gradients):
    placed = _placed(gradients)

    def bprop(
        hidden,
        linear_weight,
        linear_bias,
        first,
        second,
        third,
        row_weight,
        options,
        plan,
        out,
        dout,
    ):
        teacher = (first, second, third)
        student = (hidden, linear_weight, linear_bias)
        made = rescaled(dout[0], out[1], out[2], out[3], out[4])
        grads = placed(_once((*made, dout[0], *student)), student)
        return *grads, *teacher, row_weight, options, plan

    return bprop


@constexpr
@functools.lru_cache(maxsize=64)
def _operator(family: str, rows: bool, gradients):
    """Operators are made for each set of gradients, which a graph hands over as a plain tuple."""
    gradients = Gradients(*gradients)
    two_sweeps = _two_sweeps_bprop(family, gradients)
    if gradients.in_forward and not rows:
        name = f"{family}ValueAndGrad{suffix_of(gradients)}"
        derivative = Derivative(two_sweeps, made={1: 0, 2: 1, 3: 2}, rescale=rescale)
        return forward_operator(name, _one_sweep_bprop(gradients), gradients, derivative)
    return forward_operator(family + ("ForwardRows" if rows else "Forward"), two_sweeps, gradients)


@constexpr
def _is_one(*dtypes) -> bool:
    return len({str(dtype) for dtype in dtypes if dtype is not None}) == 1


def _cast(bias, dtype):
    return None if bias is None else bias.astype(dtype)


def _in_one_dtype(model, exact):
    """The tensors of a model as they are, or in the dtype computed in where theirs differ."""
    hidden, linear_weight, bias = model
    bias_dtype = None if bias is None else bias.dtype
    if _is_one(hidden.dtype, linear_weight.dtype, bias_dtype):
        return model
    return hidden.astype(exact), linear_weight.astype(exact), _cast(bias, exact)


def _divergence(family, plan, gradients, beta, student, teacher, row_weight):
    hidden, linear_weight, linear_bias = _in_one_dtype(student, exact_dtype(student[0].dtype))
    rows, dtype = plan.options.reduction == "none", hidden.dtype
    _, row_weight, options = factors(
        dtype, None, row_weight, plan.options, ClassBlock(), False, beta
    )
    slots = packed_plan(plan.chunk_bytes, False, gradients)
    student = (hidden, linear_weight, given(linear_bias, dtype))
    result = _operator(family, rows, gradients)(*student, *teacher, row_weight, options, slots)
    # PyNative hides the gradients that the forward pass has made.
    return result[0] if isinstance(result, tuple) else result


def distillation(plan: Plan, gradients: Gradients, beta: float, student, teacher, row_weight):
    """As `protocol.DistillationForm` says."""
    hidden, linear_weight, bias = _in_one_dtype(teacher, exact_dtype(student[0].dtype))
    teacher = (hidden, linear_weight, given(bias, hidden.dtype))
    return _divergence("LinearDistillation", plan, gradients, beta, student, teacher, row_weight)


@kept
def _flag(value: bool) -> np.ndarray:
    return np.array(float(value))


def top_k_distillation(
    plan: Plan, gradients: Gradients, beta: float, tail: bool, student, teacher, row_weight
):
    """As `protocol.TopKForm` says."""
    teacher, family = (*teacher, _flag(tail)), "LinearTopKDistillation"
    return _divergence(family, plan, gradients, beta, student, teacher, row_weight)
