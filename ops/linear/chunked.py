"""The linear loss on backends without an operator of their own for it: chunks of rows by `sweep`."""

from __future__ import annotations

import functools
import math

from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce.ops import composed
from ms_ce.ops.chunks import exact_dtype, in_leading_shape, per_row, rows_of_chunk
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import compiling, is_class_index, known_shape
from ms_ce.ops.linear import plain as linear_plain
from ms_ce.ops.linear.losses import (
    ChunkedRows,
    ChunkedSum,
    made_in_graph,
    rows_in_graph,
    sum_in_graph,
)
from ms_ce.ops.linear.sweep import readable
from ms_ce.ops.mean import reduced, total_weight
from ms_ce.ops.options import Gradients, Options, Plan
from ms_ce.ops.row_weights import without_rows
from ms_ce.ops.rows import OneDevice
from ms_ce.ops.several import finished, weighted
from ms_ce.ops.table import kernels_of

_sum = P.ReduceSum()


def may_scale_later(dtype) -> bool:
    """Sums of gradients stay in float32 at least until the upstream one has arrived."""
    return True


@constexpr
@functools.lru_cache(maxsize=256)
def _cell(backend, options, chunk_bytes, class_indices, kind, gradients, in_graph):
    """The loss of these options, built once. A graph hands tuples over as plain ones."""
    options, gradients, kernels = Options(*options), Gradients(*gradients), kernels_of(backend)
    if not class_indices and not kernels.BLOCKS_OF_PROBABILITIES:
        kernels = composed
    if kind == "sum":
        sums = sum_in_graph() if in_graph else ChunkedSum
        return sums(kernels, OneDevice(), options, chunk_bytes, gradients)
    stats, tokens = kind == "stats", kind == "tokens"
    rows = rows_in_graph() if in_graph else ChunkedRows
    return rows(kernels, OneDevice(), options, chunk_bytes, gradients, stats, tokens)


@constexpr
def _one_chunk(dtype, shape, classes, features, chunk_bytes):
    """Whether one chunk holds everything: then the plain form serves."""
    if shape is None:
        return False
    rows = math.prod(shape[:-1])
    return rows_of_chunk(dtype, rows, classes, features, chunk_bytes) >= rows


def _as_rows(plan, input, target, row_weight):
    """(hidden (N, H), target (N,) or (N, C), row_weight (N,) or None).

    Under shift, hidden states are left where they are: each sequence's last one gets a target that is ignored. With
    probabilities there is none, and both are copied.
    """
    features, input = input.shape[-1], readable(input)
    if is_class_index(target.dtype):
        if plan.shift:
            target = target.astype(mstype.int64)
            last = ops.full_like(target[..., :1], plan.options.ignore_index)
            target = ops.concat((target[..., 1:], last), -1)
            if row_weight is not None:
                row_weight = ops.concat((row_weight[..., 1:], row_weight[..., :1]), -1)
        target = target.reshape((-1,))
    else:
        target = readable(target)
        if plan.shift:
            input, target = input[..., :-1, :], target[..., 1:, :]
            row_weight = None if row_weight is None else row_weight[..., 1:]
        target = target.reshape((-1, target.shape[-1]))
    if row_weight is not None:
        row_weight = row_weight.reshape((-1,))
    return input.reshape((-1, features)), target, row_weight


def _checked_rows(plan, input, linear_weight, target, row_weight):
    """`_as_rows`, after the check of class indices where Python runs."""
    indices = is_class_index(target.dtype)
    if row_weight is not None:
        row_weight = without_gradient(row_weight)
        if indices:
            target = without_rows(input, target, row_weight, plan.options.ignore_index)[1]
    if indices and not compiling():
        ignored = plan.options.ignore_index
        kernels_of(plan.backend).refuse_targets(target, linear_weight.shape[0], ignored, plan.shift)
    return _as_rows(plan, input, target, row_weight)


def _before_last(rows, plan, input):
    """Rows of `_as_rows`, where class indices are shifted."""
    return rows.reshape(input.shape[:-1])[..., :-1]


def token_log_probs(
    plan: Plan, gradients: Gradients, entropy: bool, input, linear_weight, target, linear_bias
):
    """As `protocol.LinearForm` says."""
    classes, features = linear_weight.shape
    tensors = (input, linear_weight, target, linear_bias)
    if _one_chunk(input.dtype, known_shape(input), classes, features, plan.chunk_bytes):
        return linear_plain.token_log_probs(plan, gradients, entropy, *tensors)
    if not compiling():
        ignored = plan.options.ignore_index
        kernels_of(plan.backend).refuse_targets(target, classes, ignored, plan.shift)
    hidden, labels, _ = _as_rows(plan, input, target, None)
    kind = "tokens" if entropy else "rows"
    cell = _cell(plan.backend, plan.options, plan.chunk_bytes, True, kind, gradients, compiling())
    out = cell(hidden, linear_weight, labels, linear_bias, None, None)
    place = _before_last if plan.shift else in_leading_shape
    return place(-out[0], plan, input), place(out[4], plan, input)


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
    """As `protocol.LinearForm` says; in float32 (float64 for float64) at least."""
    classes, features = linear_weight.shape
    if _one_chunk(input.dtype, known_shape(input), classes, features, plan.chunk_bytes):
        tensors = (input, linear_weight, target, linear_bias, weight, row_weight)
        return linear_plain.linear_cross_entropy(plan, gradients, with_stats, *tensors)
    hidden, labels, row_weight = _checked_rows(plan, input, linear_weight, target, row_weight)
    indices = is_class_index(target.dtype)
    tensors = (hidden, linear_weight, labels, linear_bias, weight, row_weight)
    results = _of_rows(plan, gradients, with_stats, *tensors)
    place = _before_last if plan.shift and indices else in_leading_shape
    return per_row(results, plan, place, input)


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
    """As `protocol.LinearForm` says; in float32 (float64 for float64) at least."""
    classes, features = linear_weight.shape
    if _one_chunk(input.dtype, known_shape(input), classes, features, plan.chunk_bytes):
        tensors = (input, linear_weight, target, linear_bias, weight, row_weight)
        return linear_plain.several(plan, gradients, factors, *tensors)
    tensors = _checked_rows(plan, input, linear_weight, target, weighted(row_weight, factors))
    hidden, labels, weights = tensors
    if compiling():
        gradients = made_in_graph(gradients)
    kind = "sum" if gradients.in_forward else "rows"
    indices = is_class_index(labels.dtype)
    cell = _cell(
        plan.backend, plan.options, plan.chunk_bytes, indices, kind, gradients, compiling()
    )
    if weight is not None:
        weight = weight.astype(exact_dtype(hidden.dtype))
    out = cell(hidden, linear_weight, labels, linear_bias, weight, weights)
    total, rows = (out[0], out[5]) if kind == "sum" else (_sum(out[0]), out[0])
    return finished(total, rows, factors, weight is not None)


def _of_rows(
    plan, gradients, with_stats, hidden, linear_weight, target, linear_bias, weight, row_weight
):
    """The results of rows: hidden (N, H), target (N,) or (N, C), row_weight (N,)."""
    options, indices = plan.options, is_class_index(target.dtype)
    if compiling():
        gradients = made_in_graph(gradients)
    kind = "stats" if with_stats else "rows"
    if kind == "rows" and gradients.in_forward and options.reduction != "none":
        kind = "sum"
    cell = _cell(plan.backend, options, plan.chunk_bytes, indices, kind, gradients, compiling())
    exact = exact_dtype(hidden.dtype)
    if weight is not None:  # its gradient has two parts, which no graph on CPU adds in bfloat16
        weight = weight.astype(exact)
    out = cell(hidden, linear_weight, target, linear_bias, weight, row_weight)
    if not with_stats and options.reduction == "none":
        return (out[0],)
    count, ignored = hidden.shape[0], options.ignore_index
    divisor = total_weight(target, count, weight, row_weight, ignored, exact)
    loss_sum = out[0] if kind == "sum" else _sum(out[0])
    if not with_stats:
        return (reduced(loss_sum, divisor, options.reduction),)
    _, lse, _, squares, entropy, correct, predicted = out
    lse, entropy = ops.stop_gradient(lse), ops.stop_gradient(entropy)
    logged = ops.stop_gradient(divisor)
    num_correct = _sum(correct.astype(mstype.int64))
    if options.reduction == "none":
        return out[0], logged, lse, squares, num_correct, entropy, predicted
    counts = None if row_weight is None else ops.not_equal(row_weight, 0)
    rows_counted = total_weight(target, count, None, counts, ignored, exact)
    return (
        reduced(loss_sum, divisor, options.reduction),
        logged,
        lse,
        reduced(_sum(squares), divisor, options.reduction),
        num_correct,
        reduced(_sum(entropy), rows_counted, options.reduction),
        predicted,
    )
