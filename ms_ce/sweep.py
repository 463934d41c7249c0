"""The losses with more from the same sweep over the logits: what a trainer logs, or the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

from mindspore import Tensor, ops

from ms_ce import _arguments, _checks, _divisor
from ms_ce._arguments import IGNORE_INDEX, LABEL_SMOOTHING, NOT_GIVEN, REDUCTION
from ms_ce.backend import serving
from ms_ce.functional import check_inputs, constant, over_total_weight
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.graph import compiling, select
from ms_ce.ops.mean import mean


class LossStats(NamedTuple):
    """What a trainer logs beside the loss; gradients flow through `loss` and `z_loss` only.

    loss: the loss, z-loss included. total_weight: the mean's divisor. lse: log Σ exp per row.
    z_loss: the part z·lse² of `loss`. num_correct: rows that predict their target.
    entropy: of the softmax, reduced like the loss but unweighted: a mean is that of the rows that count, or with a
    `total_weight` from outside, their sum over it.
    predicted: per row the class of its largest logit, after scale and softcap, the smallest class where several are
    equally large; -1 where the row does not count, and where a nan, a logit of +inf or nothing but -inf leave it no
    softmax.

    Results that are added come last: take them by name, or by position where a graph has a plain tuple.
    """

    loss: Tensor
    total_weight: Tensor
    lse: Tensor
    z_loss: Tensor
    num_correct: Tensor
    entropy: Tensor
    predicted: Tensor


def in_order(results: tuple, divisor: float | Tensor | None, dtype: Any) -> Any:
    """The fields of LossStats from `results` of a backend, for an input of `dtype`, where rows' weights were shared out
    over a divisor."""
    loss, total_weight, lse, z_loss, num_correct, entropy, predicted = results
    exact = exact_dtype(dtype)
    if divisor is not None:
        loss, z_loss = _divisor.quotient(loss, divisor), _divisor.quotient(z_loss, divisor)
        total_weight = ops.ones((), exact) * divisor
        entropy = mean(entropy.astype(exact), total_weight)
    total_weight, lse = total_weight.astype(exact), lse.astype(exact)
    loss, z_loss, entropy = loss.astype(dtype), z_loss.astype(dtype), entropy.astype(dtype)
    return loss, total_weight, lse, z_loss, num_correct, entropy, predicted


def cross_entropy_with_stats(
    input: Tensor | None = None,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    *positional: Any,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    size_average: bool | None = NOT_GIVEN,
    ignore_index: int | None = IGNORE_INDEX,
    reduce: bool | None = NOT_GIVEN,
    reduction: str = REDUCTION,
    label_smoothing: float = LABEL_SMOOTHING,
    backend: str = "auto",
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
) -> LossStats:
    """`cross_entropy` with everything a trainer logs, from the same single read of the logits.

    Arguments, dtypes and errors are those of `cross_entropy`.

    Returns:
        LossStats: (loss, total_weight, lse, z_loss, num_correct, entropy, predicted); inside a compiled graph a plain
        tuple in this order, since MindSpore loses the gradients of whatever passes through a named tuple there.
        total_weight and lse are float32 (float64 for float64 input), num_correct is int64, predicted int32, the others
        have input's dtype. lse and predicted are per row under every reduction. For probability targets a row is
        correct where the largest logit stands at the largest probability.

    Example:
        >>> import mindspore, ms_ce
        >>> logits = mindspore.Tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> stats = ms_ce.cross_entropy_with_stats(logits, mindspore.Tensor([0, 0]))
        >>> print(stats.num_correct, stats.total_weight, stats.predicted)
        1 2.0 [0 1]
    """
    op = "cross_entropy_with_stats"
    input = _arguments.either(op, "input", input, "logits", logits)
    target = _arguments.either(op, "target", target, "labels", labels)
    values = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
    plan = _arguments.planned(op, backend, positional, (size_average, reduce), values)
    kernels = serving(op, backend)
    check_inputs(op, "input", input, target, weight, row_weight, plan.options, True)
    divisor = None
    if total_weight is not None:
        divisor, row_weight, plan = over_total_weight(plan, total_weight, row_weight, input, target)
    tensors = (input, target, weight, constant(row_weight))
    results = kernels.cross_entropy_with_stats(*tensors, plan.options)
    stats = in_order(results, divisor, input.dtype)
    return stats if compiling() else LossStats(*stats)


def cross_entropy_value_and_grad(
    input: Tensor | None = None,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    *positional: Any,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    size_average: bool | None = NOT_GIVEN,
    ignore_index: int | None = IGNORE_INDEX,
    reduce: bool | None = NOT_GIVEN,
    reduction: str = REDUCTION,
    label_smoothing: float = LABEL_SMOOTHING,
    backend: str = "auto",
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, gradient with respect to input) in one sweep: each logit is read once and its gradient written once.

    For a training loop that needs both and takes the rest of its gradients by hand, or by a vjp from `gradient`. The
    values are those of `cross_entropy` and of its gradient for upstream 1; nothing here is differentiable again.
    Arguments, dtypes and errors are those of `cross_entropy`, with reduction 'mean' or 'sum'.

    Returns:
        (Tensor, Tensor): the scalar loss and the gradient of input's shape, both in input's dtype.

    Example:
        >>> import mindspore, ms_ce
        >>> logits = mindspore.Tensor([[0.0, 0.0]])
        >>> loss, gradient = ms_ce.cross_entropy_value_and_grad(logits, mindspore.Tensor([0]))
        >>> print(gradient)
        [[-0.5  0.5]]
    """
    op = "cross_entropy_value_and_grad"
    input = _arguments.either(op, "input", input, "logits", logits)
    target = _arguments.either(op, "target", target, "labels", labels)
    values = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
    plan = _arguments.planned(op, backend, positional, (size_average, reduce), values)
    _checks.check_reduced(op, plan.options.reduction)
    kernels = serving(op, backend)
    check_inputs(op, "input", input, target, weight, row_weight, plan.options, True)
    divisor = None
    if total_weight is not None:
        divisor, row_weight, plan = over_total_weight(plan, total_weight, row_weight, input, target)
    tensors = (input, target, weight, constant(row_weight))
    result = kernels.cross_entropy_value_and_grad(*tensors, plan.options)
    loss, gradient = result[0], result[3]
    if isinstance(divisor, Tensor):
        gradient = select(divisor == 0, 0.0, gradient).astype(gradient.dtype)
        loss = _divisor.quotient(loss, divisor)
    return loss, gradient
