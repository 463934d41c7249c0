"""The `cpu` backend of the linear loss: the loop over chunks of rows is inside one operator.

The kernel's operations are described in ops/csrc/interface/operations.h. Options travel as in `cpu`; what only this
loss has travels as `plan`: the bytes of a chunk's logits, whether the target is shifted and whether the bias is frozen.
"""

from __future__ import annotations

import functools

from mindspore.ops import constexpr

from ms_ce._versions import zeros_like
from ms_ce.ops.chunks import per_row
from ms_ce.ops.cpu.linear_data import ONCE, data_gradients, refusing
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
from ms_ce.ops.cpu.operators import factors, make_operator, no_weight
from ms_ce.ops.cpu.refusal import Once, none_of, refused
from ms_ce.ops.derivative import PassedOn
from ms_ce.ops.eager import Derivative, wanted
from ms_ce.ops.graph import compiling, is_class_index
from ms_ce.ops.options import ClassBlock, Gradients, Plan
from ms_ce.ops.several import finished, weighted


def _three(dout):
    return dout[0], dout[1], dout[2]


@functools.lru_cache(maxsize=4)
def _backward_operator(suffix: str):
    return make_operator("LinearCrossEntropyBackward" + suffix, refusing(_three))


def _once_bprop(given, out, dout):
    """What arrives would be lost at an output of the forward operator: it is refused at the operator's inputs."""
    nothing = refused(ONCE, dout[0], dout[1], dout[2])
    made = (zeros_like(given[0]), zeros_like(given[1]), zeros_like(given[2]))
    return ((*made, *none_of(nothing, *given[3:])),)


_once_where_python_runs, _once_in_graph = Once(ONCE), PassedOn("linear once", _once_bprop)


def _probabilities(target):
    return () if is_class_index(target.dtype) else (target,)


def _once(made, sources):
    if compiling():
        passed_on = _once_in_graph((*made, *sources))
        return passed_on[0], passed_on[1], passed_on[2]
    return tuple([_once_where_python_runs(gradient) for gradient in made])


def _returned(grads, arguments, row_weight, options, plan):
    """What a bprop returns."""
    grad_hidden, grad_table, grad_bias = grads
    grad_target, grad_weight = data_gradients(arguments, plan)
    return grad_hidden, grad_table, grad_target, grad_bias, grad_weight, row_weight, options, plan


def _two_sweeps_bprop(gradients: Gradients, second: int):
    """The bprop of a forward operator whose output `second` has the upstream gradient of z-loss."""
    backward = _backward_operator(suffix_of(gradients))
    completed = completing(gradients, _backward_operator)

    def bprop(
        hidden, linear_weight, target, linear_bias, weight, row_weight, options, plan, out, dout
    ):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        arguments = (dout[0], dout[second], *tensors, out[2], out[1], options)
        grads = (hidden, linear_weight, linear_bias)
        if wanted(0) or wanted(1) or wanted(3):
            grads = completed(backward(*arguments, plan), arguments, plan)
        return _returned(grads, arguments, row_weight, options, plan)

    return bprop


def _one_sweep_bprop(gradients: Gradients):
    completed = completing(gradients, _backward_operator)

    def bprop(
        hidden, linear_weight, target, linear_bias, weight, row_weight, options, plan, out, dout
    ):
        _, total_weight, lse, _, by_hidden, by_table, by_bias, applied = out
        upstream = dout[0]
        made = rescaled(upstream, by_hidden, by_table, by_bias, applied)
        sources = (upstream, hidden, linear_weight, linear_bias, weight, *_probabilities(target))
        made = _once(made, sources)
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        arguments = (upstream, upstream, *tensors, lse, total_weight, options)
        return _returned(completed(made, arguments, plan), arguments, row_weight, options, plan)

    return bprop


@constexpr
@functools.lru_cache(maxsize=32)
def _loss_operator(rows: bool, gradients):
    """Operators are made for each set of gradients, which a graph hands over as a plain tuple."""
    gradients = Gradients(*gradients)
    if gradients.in_forward and not rows:
        name = "LinearCrossEntropyValueAndGrad" + suffix_of(gradients)
        later = _two_sweeps_bprop(gradients, 0)
        derivative = Derivative(later, made={4: 0, 5: 1, 6: 3}, rescale=rescale)
        return forward_operator(name, _one_sweep_bprop(gradients), gradients, derivative)
    name = "LinearCrossEntropyForwardRows" if rows else "LinearCrossEntropyForward"
    return forward_operator(name, _two_sweeps_bprop(gradients, 0), gradients)


@constexpr
@functools.lru_cache(maxsize=16)
def _stats_operator(rows: bool, gradients):
    gradients = Gradients(*gradients)
    name = "LinearCrossEntropyStatsRows" if rows else "LinearCrossEntropyStats"
    return forward_operator(name, _two_sweeps_bprop(gradients, 3), gradients)


def _arguments(plan, gradients, target, linear_bias, weight, row_weight, dtype, has_grad_z_loss):
    """(target, linear_bias, weight, row_weight, options, plan) as the operators take them."""
    if linear_bias is None:
        linear_bias = no_weight(dtype)
    given = factors(dtype, weight, row_weight, plan.options, ClassBlock(), has_grad_z_loss)
    slots = packed_plan(plan.chunk_bytes, plan.shift, not gradients.linear_bias)
    return target, linear_bias, *given, slots


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
        loss = results[0]
        return (after_first(loss, plan, input) if rows else loss,)
    return per_row(results, plan, after_first, input)


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
    given = (target, linear_bias, weight, weighted(row_weight, factors))
    arguments = _arguments(plan, gradients, *given, input.dtype, False)
    results = _loss_operator(False, gradients)(input, linear_weight, *arguments)
    return finished(results[0], results[3], factors, weight is not None)
