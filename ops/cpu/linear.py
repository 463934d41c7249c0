"""The `cpu` backend of the linear loss: the loop over chunks of rows is inside one operator.

The kernel's operations are described in ops/csrc/interface/operations.h. Options travel as in `cpu`; what only this
loss has travels as `plan`: the bytes of a chunk's logits, whether the target is shifted and whether the bias is frozen.
"""

from __future__ import annotations

import functools

from ms_ce.ops.chunks import per_row
from ms_ce.ops.cpu.linear_data import (
    ONCE,
    data_gradients,
    no_data_gradients,
    no_sources,
    refusing,
    sources,
)
from ms_ce.ops.cpu.linear_operators import (
    after_first,
    completing,
    forward_operator,
    may_scale_later,  # noqa: F401
    packed_plan,
    rescale,
    rescaled,
    suffix_of,
)
from ms_ce.ops.cpu.linear_tokens import token_log_probs  # noqa: F401
from ms_ce.ops.cpu.operators import factors, given, make_operator
from ms_ce.ops.cpu.refusal import Once
from ms_ce.ops.eager import Derivative, wanted
from ms_ce.ops.graph import OfKnown, is_class_index
from ms_ce.ops.options import ClassBlock, Gradients, Plan
from ms_ce.ops.several import finished, weighted


def _three(dout):
    return dout[0], dout[1], dout[2]


_once = Once(ONCE)


@functools.lru_cache(maxsize=4)
def _backward_operator(suffix: str):
    return make_operator("LinearCrossEntropyBackward" + suffix, refusing(_three))


def _two_sweeps_bprop(gradients: Gradients, constants: bool, second: int):
    """The bprop of a forward operator whose output `second` has the upstream gradient of z-loss; `constants` says that
    the data have no gradients."""
    backward = _backward_operator(suffix_of(gradients))
    completed = completing(gradients, _backward_operator)
    of_data = no_data_gradients if constants else data_gradients

    def bprop(
        hidden, linear_weight, target, linear_bias, weight, row_weight, options, plan, out, dout
    ):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        arguments = (dout[0], dout[second], *tensors, out[2], out[1], options)
        grads = (hidden, linear_weight, linear_bias)
        if wanted(0, 1, 3):
            grads = completed(backward(*arguments, plan), arguments, plan)
        grad_target, grad_weight = of_data(target, weight, arguments, plan)
        return grads[0], grads[1], grad_target, grads[2], grad_weight, row_weight, options, plan

    return bprop


def _one_sweep_bprop(gradients: Gradients, constants: bool):
    completed = completing(gradients, _backward_operator)
    data = no_sources if constants else sources
    of_data = no_data_gradients if constants else data_gradients

    def bprop(
        hidden, linear_weight, target, linear_bias, weight, row_weight, options, plan, out, dout
    ):
        # Not `_, total_weight, … = out`: a graph makes gradients depend on names that nothing reads, and copies one.
        total_weight, lse, upstream = out[1], out[2], dout[0]
        made = rescaled(upstream, out[4], out[5], out[6], out[7])
        given = (hidden, linear_weight, linear_bias)
        made = _once((*made, upstream, *given, *data(target, weight)))
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        arguments = (upstream, upstream, *tensors, lse, total_weight, options)
        grads = completed(made, arguments, plan)
        grad_target, grad_weight = of_data(target, weight, arguments, plan)
        return grads[0], grads[1], grad_target, grads[2], grad_weight, row_weight, options, plan

    return bprop


@functools.lru_cache(maxsize=96)
def _made(with_stats: bool, reduction: str, gradients: Gradients, constants: bool):
    """The operator for a set of gradients."""
    rows, made_for = "Rows" if reduction == "none" else "", (*gradients, constants)
    if with_stats:
        bprop = _two_sweeps_bprop(gradients, constants, 3)
        return forward_operator("LinearCrossEntropyStats" + rows, bprop, made_for)
    two_sweeps = _two_sweeps_bprop(gradients, constants, 0)
    if rows or not gradients.in_forward:
        return forward_operator("LinearCrossEntropyForward" + rows, two_sweeps, made_for)
    name = "LinearCrossEntropyValueAndGrad" + suffix_of(gradients)
    derivative = Derivative(two_sweeps, made={4: 0, 5: 1, 6: 3}, rescale=rescale)
    return forward_operator(name, _one_sweep_bprop(gradients, constants), made_for, derivative)


@OfKnown
def _operator(with_stats, reduction, gradients, target, weight):
    # A graph hands over the gradients as a plain tuple.
    constants = weight is None and is_class_index(target.dtype)
    return _made(with_stats, reduction, Gradients(*gradients), constants)


def _arguments(plan, gradients, target, linear_bias, weight, row_weight, dtype, has_grad_z_loss):
    """(target, linear_bias, weight, row_weight, options, plan) as the operators take them."""
    rest = factors(dtype, weight, row_weight, plan.options, ClassBlock(), has_grad_z_loss)
    slots = packed_plan(plan.chunk_bytes, plan.shift, gradients)
    return target, given(linear_bias, dtype), *rest, slots


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
    operator = _operator(with_stats, plan.options.reduction, gradients, target, weight)
    tensors = (target, linear_bias, weight, row_weight)
    arguments = _arguments(plan, gradients, *tensors, input.dtype, with_stats)
    results = operator(input, linear_weight, *arguments)
    if with_stats:
        return per_row(results, plan, after_first, input)
    loss = results[0]
    return (after_first(loss, plan, input) if plan.options.reduction == "none" else loss,)


def several(
    plan: Plan,
    gradients: Gradients,
    factors,
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    row_weight,
):
    """As `protocol.LinearForm` says."""
    tensors = (target, linear_bias, weight, weighted(row_weight, factors))
    arguments = _arguments(plan, gradients, *tensors, input.dtype, False)
    operator = _operator(False, "sum", gradients, target, weight)
    results = operator(input, linear_weight, *arguments)
    return finished(results[0], results[3], factors, weight is not None)
