"""The linear loss through its logits: where one chunk would hold them all, and for torch's weights of several axes."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce.ops.chunks import exact_dtype, in_leading_shape, per_row
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import is_class_index, select
from ms_ce.ops.options import Gradients, Options, Plan
from ms_ce.ops.pieces import total, weight_of
from ms_ce.ops.several import by_loss, known, spread
from ms_ce.ops.table import kernels_of

# vmap puts the results of ops.matmul on a wrong axis where its first argument is not mapped on axis 0.
_product = P.MatMul(transpose_b=True)


def may_scale_later(dtype) -> bool:
    """MindSpore differentiates it, backwards."""
    return False


@constexpr
def _of_rows(options):
    return Options(*options)._replace(reduction="none")


@constexpr
def _loss_of_row(rows, losses):
    return Tensor(np.repeat(np.arange(losses), rows // losses), mstype.int32)


def _counts(plan, target, row_weight):
    """Which rows have a loss."""
    if not is_class_index(target.dtype):
        return ops.not_equal(row_weight, 0)
    counts = ops.not_equal(target, plan.options.ignore_index)
    return counts if row_weight is None else ops.logical_and(counts, ops.not_equal(row_weight, 0))


def _logits(plan, input, linear_weight, target, linear_bias, weight, row_weight):
    """(logits, target, weight, row_weight), in float32 at least."""
    exact, indices = exact_dtype(input.dtype), is_class_index(target.dtype)
    # Cast first: MindSpore's CPU slices no bfloat16.
    input = input.astype(exact)
    if not indices:
        target = target.astype(exact)
    if plan.shift:
        input = input[..., :-1, :]
        target = target[..., 1:] if indices else target[..., 1:, :]
        row_weight = None if row_weight is None else row_weight[..., 1:]
    features = input.shape[-1]
    rows = input.reshape((-1, features))
    if linear_weight.ndim == 2 and (indices or row_weight is not None):
        # Else what rows without a loss hold would reach the weight's gradient. On rows: behind a choice, MindSpore's
        # PyNative forgets the upstream gradient in the second derivative of a reshape.
        rows = select(_counts(plan, target, row_weight).reshape((-1, 1)), rows, 0.0)
    if weight is not None:
        weight = weight.astype(exact)
    matrix = linear_weight.astype(exact).reshape((-1, features))
    logits = _product(rows, matrix)
    if linear_bias is not None:
        logits = logits + linear_bias.astype(exact).reshape((-1,))
    if linear_weight.ndim > 2:
        return logits.reshape((-1, *linear_weight.shape[:-1])), target, weight, row_weight
    if row_weight is not None:
        row_weight = row_weight.reshape((-1,))
    target = target.reshape((-1,)) if indices else target.reshape((-1, linear_weight.shape[0]))
    return logits, target, weight, row_weight


def token_log_probs(
    plan: Plan, gradients: Gradients, entropy: bool, input, linear_weight, target, linear_bias
):
    """As `protocol.LinearForm` says; the gradients are MindSpore's to find."""
    given = (input, linear_weight, target, linear_bias, None, None)
    logits, labels, _, _ = _logits(plan, *given)
    results = kernels_of(plan.backend).token_log_probs(logits, labels, plan.options, entropy)
    return in_leading_shape(results[0], plan, input), in_leading_shape(results[1], plan, input)


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
    """As `protocol.LinearForm` says; the gradients are MindSpore's to find."""
    kernels = kernels_of(plan.backend)
    tensors = (input, linear_weight, target, linear_bias, weight, row_weight)
    logits, labels, factors, row_weight = _logits(plan, *tensors)
    if with_stats:
        results = kernels.cross_entropy_with_stats(
            logits, labels, factors, row_weight, plan.options
        )
    else:
        results = kernels.cross_entropy(logits, labels, factors, row_weight, plan.options)[:1]
    if linear_weight.ndim > 2:
        return results
    return per_row(results, plan, in_leading_shape, input)


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
    """As `protocol.LinearForm` says; the gradients are MindSpore's to find, of the factors too."""
    counted = spread(without_gradient(factors), row_weight.ndim) != 0
    row_weight = select(counted, row_weight, 0.0)
    tensors = (input, linear_weight, target, linear_bias, weight, row_weight)
    logits, labels, class_weight, weights = _logits(plan, *tensors)
    given = (logits, labels, class_weight, weights, _of_rows(plan.options))
    rows = kernels_of(plan.backend).cross_entropy(*given)[0].astype(factors.dtype)
    count = factors.shape[0]
    sums = known(by_loss(without_gradient(rows), count), without_gradient(factors))
    return total(rows * weight_of(factors, _loss_of_row(rows.shape[0], count))), sums
