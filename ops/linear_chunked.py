"""The linear loss on backends without an operator of its own for it: chunks of rows by `linear_sweep`."""

from __future__ import annotations

import functools

from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce.ops import ascend, composed
from ms_ce.ops.graph import is_class_index
from ms_ce.ops.linear_sweep import (
    ChunkedRows,
    ChunkedSum,
    OneDevice,
    exact_dtype,
)
from ms_ce.ops.mean import mean, total_weight
from ms_ce.ops.options import Gradients, Options, Plan

_sum = P.ReduceSum()


@constexpr
@functools.lru_cache(maxsize=256)
def _cell(backend, options, chunk_bytes, class_indices, kind, gradients):
    """The loss of these options, built once. A graph hands tuples over as plain ones."""
    options, gradients = Options(*options), Gradients(*gradients)
    # The Ascend kernel of statistics knows class indices only.
    kernels = ascend if backend == "ascend" and class_indices else composed
    if kind == "sum":
        return ChunkedSum(kernels, OneDevice(), options, chunk_bytes, gradients)
    return ChunkedRows(kernels, OneDevice(), options, chunk_bytes, gradients, kind == "stats")


def _reduced(rows_sum, divisor, reduction):
    """sum or mean."""
    return rows_sum if reduction == "sum" else mean(rows_sum, divisor.astype(rows_sum.dtype))


def check_targets(target, classes, ignore_index, shift):
    """The kernel's error for a class index out of range, with its position in the whole target."""
    if shift:
        first = ops.full_like(target[..., :1].astype(mstype.int64), ignore_index)
        target = ops.concat((first, target[..., 1:].astype(mstype.int64)), -1)
    composed._raise_out_of_range(target, classes, ignore_index)


def linear_cross_entropy(
    plan: Plan, backend, gradients, hidden, linear_weight, target, linear_bias, weight
):
    """The loss of rows: hidden (N, H), target (N,) or (N, C); in float32 (float64 for float64) at least."""
    options, indices = plan.options, is_class_index(target.dtype)
    if gradients.in_forward and options.reduction != "none":
        cell = _cell(backend, options, plan.chunk_bytes, indices, "sum", gradients)
        loss_sum = cell(hidden, linear_weight, target, linear_bias, weight)[0]
    else:
        cell = _cell(backend, options, plan.chunk_bytes, indices, "rows", gradients)
        losses = cell(hidden, linear_weight, target, linear_bias, weight)[0]
        if options.reduction == "none":
            return losses
        loss_sum = _sum(losses)
    exact = exact_dtype(hidden.dtype)
    divisor = total_weight(target, hidden.shape[0], weight, options.ignore_index, exact)
    return _reduced(loss_sum, divisor, options.reduction)


def linear_cross_entropy_with_stats(
    plan: Plan, backend, gradients, hidden, linear_weight, target, linear_bias, weight
):
    """(loss, total_weight, lse, z_loss, num_correct, entropy), from one pass over the chunks."""
    options, indices = plan.options, is_class_index(target.dtype)
    cell = _cell(backend, options, plan.chunk_bytes, indices, "stats", gradients)
    out = cell(hidden, linear_weight, target, linear_bias, weight)
    losses, lse, squares, correct, entropy = out[0], out[1], out[3], out[4], out[5]
    lse, entropy = ops.stop_gradient(lse), ops.stop_gradient(entropy)
    num_correct = _sum(ops.stop_gradient(correct)).astype(mstype.int64)
    count, ignored = hidden.shape[0], options.ignore_index
    exact = exact_dtype(hidden.dtype)
    divisor = total_weight(target, count, weight, ignored, exact)
    if options.reduction == "none":
        return losses, divisor, lse, squares, num_correct, entropy
    rows_counted = total_weight(target, count, None, ignored, exact)
    return (
        _reduced(_sum(losses), divisor, options.reduction),
        divisor,
        lse,
        _reduced(_sum(squares), divisor, options.reduction),
        num_correct,
        _reduced(_sum(entropy), rows_counted, options.reduction),
    )
