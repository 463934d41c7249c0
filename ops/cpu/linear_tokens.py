"""The `cpu` backend: log-probabilities of chosen tokens from hidden states, in one operator that holds the loop."""

from __future__ import annotations

import functools

from mindspore.ops import constexpr

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.linear_operators import (
    after_first,
    completing,
    forward_operator,
    packed_plan,
    suffix_of,
)
from ms_ce.ops.cpu.operators import make_operator, no_weight, packed_options
from ms_ce.ops.cpu.refusal import none_of, refused
from ms_ce.ops.options import ClassBlock, Gradients, Plan

_ONCE = (
    "linear_token_log_probs is differentiated once; for second derivatives take backend='composed'"
)


def _refused(
    grad_rows,
    grad_entropy,
    hidden,
    linear_weight,
    target,
    linear_bias,
    lse,
    entropy,
    options,
    plan,
    out,
    dout,
):
    nothing = refused(_ONCE, dout[0], dout[1], dout[2])
    grads = none_of(nothing, grad_rows, grad_entropy, hidden, linear_weight)
    grad_bias = none_of(nothing, linear_bias)[0]
    return *grads, zeros_like(target), grad_bias, lse, entropy, options, plan


@functools.lru_cache(maxsize=4)
def _backward(suffix: str):
    return make_operator("LinearTokenLogProbsBackward" + suffix, _refused)


@constexpr
@functools.lru_cache(maxsize=16)
def _operator(gradients):
    """A graph hands tuples over as plain ones."""
    gradients = Gradients(*gradients)
    backward, completed = _backward(suffix_of(gradients)), completing(gradients, _backward)

    def bprop(hidden, linear_weight, target, linear_bias, options, plan, out, dout):
        tensors = (hidden, linear_weight, target, linear_bias)
        arguments = (-dout[0], dout[2], *tensors, out[1], out[2], options)
        grads = completed(backward(*arguments, plan), arguments, plan)
        return grads[0], grads[1], zeros_like(target), grads[2], options, plan

    return forward_operator("LinearTokenLogProbs", bprop, gradients)


def token_log_probs(
    plan: Plan, gradients: Gradients, entropy: bool, input, linear_weight, target, linear_bias
):
    """As `protocol.LinearForm` says, in float64."""
    if linear_bias is None:
        linear_bias = no_weight(input.dtype)
    options = packed_options(plan.options, ClassBlock(), False, False, False, entropy)
    slots = packed_plan(plan.chunk_bytes, plan.shift, gradients)
    log_prob, _, entropies = _operator(gradients)(
        input, linear_weight, target, linear_bias, options, slots
    )
    return after_first(log_prob, plan, input), after_first(entropies, plan, input)
