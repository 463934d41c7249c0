"""The `ascend` backend: the operators of custom_aicore/, called through ops.Custom.

Nothing here has run on hardware; docs/ascend.md says what was checked and how. The module imports everywhere: operators
are built at the first call, on the device that MindSpore then runs on.

The kernels take rows (N, C) of float16, bfloat16 or float32 and return float32 losses. softcap and logit_scale
are applied
before them, and the gradients of a weight or of probability targets are made after them, with MindSpore primitives.
"""

from __future__ import annotations

import functools

from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from ms_ce.ops import ascend_operators, composed, mean
from ms_ce.ops.ascend_cells import REDUCTIONS, cells
from ms_ce.ops.ascend_errors import check_targets, forget_targets, remember  # noqa: F401
from ms_ce.ops.ascend_operators import custom
from ms_ce.ops.composed_cells import total
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import compiling, is_class_index
from ms_ce.ops.options import ClassBlock, Options
from ms_ce.ops.row_weights import without_rows

BLOCKS_OF_PROBABILITIES, BLOCKS_IN_PARTITIONED_GRAPHS = False, True
PROJECT, probe = ascend_operators.PROJECT, ascend_operators.probe


@functools.lru_cache(maxsize=32)
def operators(name: str, per_row: bool) -> ops.Custom:
    """The operator, built once."""
    return custom(name, per_row)


# In a graph these run while it is compiled, and the graph holds what they return.
_loss = constexpr(cells)
_operator = constexpr(operators)


@constexpr
def _no_weight() -> Tensor:
    """Stands for an absent weight; no kernel reads it."""
    return Tensor([1.0], mstype.float32)


@constexpr
def _require_supported(dtype) -> None:
    if dtype == mstype.float64:
        raise TypeError(
            "ms_ce: the ascend backend has no float64; cast the logits or use backend='composed'"
        )


@constexpr
def _require_class_index(dtype) -> None:
    if dtype not in (mstype.int32, mstype.int64, mstype.uint8):
        raise TypeError(
            "ms_ce: the ascend backend shards class indices only, and the target holds probabilities; "
            "use backend='composed'"
        )


@constexpr
def _code(reduction: str) -> int:
    return REDUCTIONS[reduction]


@constexpr
def _per_row(options) -> Options:
    """The options with reduction none. A graph hands them over as a plain tuple."""
    return Options(*options)._replace(reduction="none")


@constexpr
def _class_axis_second(rank: int) -> tuple[int, ...]:
    return (0, rank - 1, *range(1, rank - 1))


@constexpr
def _class_axis_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def _as_rows(x):
    """(N, C, d1…dK) or (C) as rows (n, C)."""
    if x.ndim == 1:
        return x.reshape(1, -1)
    if x.ndim > 2:
        return ops.transpose(x, _class_axis_last(x.ndim)).reshape(-1, x.shape[1])
    return x


def _from_rows(rows, shape):
    """The inverse of _as_rows."""
    if len(shape) > 2:
        last = rows.reshape(shape[:1] + shape[2:] + shape[1:2])
        return ops.transpose(last, _class_axis_second(len(shape)))
    # Rows stay as they are: a shape known at compile time is that of the whole in a graph that is partitioned later.
    return rows if len(shape) == 2 else rows.reshape(shape)


def _rows_shape(shape):
    return () if len(shape) == 1 else shape[:1] + shape[2:]


def _prepared(logits, target, options):
    """Logits as rows, scaled and capped as the options say."""
    _require_supported(logits.dtype)
    x = _as_rows(logits)
    if options.softcap or options.logit_scale != 1.0:
        x = options.logit_scale * ops.cast(x, mstype.float32)
    if options.softcap:
        if is_class_index(target.dtype):  # what ignored rows hold would reach their gradient
            keep = ops.not_equal(target.reshape((-1, 1)).astype(mstype.int64), options.ignore_index)
            x = ops.where(keep, x, 0.0)
        x = options.softcap * ops.tanh(x / options.softcap)
    return x


def _class_rows(target):
    rows = target.reshape(-1)
    return ops.cast(rows, mstype.int32) if rows.dtype == mstype.uint8 else rows


def _shaped(values, reduction, shape):
    return values.reshape(_rows_shape(shape)) if reduction == "none" else values.reshape(())


def cross_entropy(logits, target, weight, row_weight, options: Options, gradient_in_forward=False):
    """(loss, total_weight, lse): loss in logits' dtype, the others float32."""
    if row_weight is None:
        loss, total_weight, lse = _loss_of(logits, target, weight, options)
        return ops.cast(loss, logits.dtype), total_weight, lse
    row_weight, target = _counted(logits, target, row_weight, options)
    if not is_class_index(target.dtype):
        return composed.cross_entropy(logits, target, weight, row_weight, options)
    rows, _, lse = _loss_of(logits, target, weight, _per_row(options))
    loss, total_weight = _weighted(rows, target, weight, row_weight, options)
    return ops.cast(loss, logits.dtype), total_weight, lse


def _loss_of(logits, target, weight, options):
    """(loss, total_weight, lse) as the kernels make them, in float32."""
    has_weight = weight is not None
    factor = ops.cast(weight, mstype.float32) if has_weight else _no_weight()
    x = _prepared(logits, target, options)
    if is_class_index(target.dtype):
        out = _loss("class", options, has_weight)(x, _class_rows(target), factor)
        if not compiling():
            remember("cross_entropy", out[3], x.shape[1])
    else:
        q = _as_rows(target)
        if q.dtype != x.dtype:
            x, q = ops.cast(x, mstype.float32), ops.cast(q, mstype.float32)
        out = _loss("probability", options, has_weight)(x, q, factor)
    loss = _shaped(out[0], options.reduction, logits.shape)
    return loss, out[1].reshape(()), out[2].reshape(_rows_shape(logits.shape))


def nll_loss(log_prob, target, weight, row_weight, options: Options):
    """(loss, total_weight): loss in log_prob's dtype, total_weight in the weight's, or log_prob's without one."""
    dtype = log_prob.dtype if weight is None else weight.dtype
    if row_weight is None:
        loss, total_weight = _nll_of(log_prob, target, weight, options)
    else:
        row_weight, target = _counted(log_prob, target, row_weight, options)
        rows, _ = _nll_of(log_prob, target, weight, _per_row(options))
        loss, total_weight = _weighted(rows, target, weight, row_weight, options)
    return ops.cast(loss, log_prob.dtype), ops.cast(total_weight, dtype)


def _nll_of(log_prob, target, weight, options):
    """(loss, total_weight) as the kernels make them, in float32."""
    has_weight = weight is not None
    factor = ops.cast(weight, mstype.float32) if has_weight else _no_weight()
    _require_supported(log_prob.dtype)
    out = _loss("nll", options, has_weight)(_as_rows(log_prob), _class_rows(target), factor)
    if not compiling():
        remember("nll_loss", out[2], log_prob.shape[0] if log_prob.ndim == 1 else log_prob.shape[1])
    return _shaped(out[0], options.reduction, log_prob.shape), out[1].reshape(())


def token_log_probs(logits, target, options: Options, entropy: bool):
    """(log-probabilities, entropies), float32; with entropies made by the composed backend."""
    if entropy:
        return composed.token_log_probs(logits, target, options, True)
    rows, _, _ = _loss_of(logits, target, None, options)
    return -rows, ops.zeros_like(rows)


# The kernels take no row weights: they are put around them.


def _counted(logits, target, row_weight, options):
    """(row_weight, target), where class indices of rows of weight 0 are ignored."""
    row_weight = without_gradient(ops.cast(row_weight, mstype.float32))
    if is_class_index(target.dtype):
        target = without_rows(logits, target, row_weight, options.ignore_index)[1]
    return row_weight, target


def _weighted(rows, target, weight, row_weight, options):
    """(loss, total_weight) from the losses of rows of class indices."""
    rows = rows * row_weight
    divisor = mean.total_weight(target, 0, weight, row_weight, options.ignore_index, mstype.float32)
    if options.reduction == "none":
        return rows, divisor
    return mean.reduced(total(rows), divisor, options.reduction), divisor


def cross_entropy_with_stats(logits, target, weight, row_weight, options: Options):
    """As the composed backend, which makes it: no kernel here returns the numbers that are only logged."""
    return composed.cross_entropy_with_stats(logits, target, weight, row_weight, options)


def cross_entropy_value_and_grad(logits, target, weight, row_weight, options: Options):
    """(loss, total_weight, lse, grad_logits), reduction mean or sum. Class targets without softcap, logit_scale and
    row weights take one read and one write of rows that fit the unified buffer; all else forward and backward."""
    plain = not options.softcap and options.logit_scale == 1.0 and row_weight is None
    if not plain or not is_class_index(target.dtype):

        def losses(logits, target, row_weight):
            return cross_entropy(logits, target, weight, row_weight, options)

        gradient = ops.value_and_grad(losses, 0, None, True)
        (loss, total_weight, lse), grad = gradient(logits, target, row_weight)
        return loss, total_weight, lse, grad
    has_weight = weight is not None
    factor = ops.cast(weight, mstype.float32) if has_weight else _no_weight()
    _require_supported(logits.dtype)
    choice = (
        _code(options.reduction),
        options.ignore_index,
        options.label_smoothing,
        options.z_loss,
        has_weight,
    )
    x = _as_rows(logits)
    out = _operator("MsCeForwardGrad", False)(x, _class_rows(target), factor, *choice)
    if not compiling():
        remember("cross_entropy_value_and_grad", out[4], x.shape[1])
    shape = logits.shape
    loss = ops.cast(out[0].reshape(()), logits.dtype)
    return loss, out[1].reshape(()), out[2].reshape(_rows_shape(shape)), _from_rows(out[3], shape)


def refuse_targets(target, classes, ignore_index, shift=False):
    """`check_targets` raises on request, without waiting for the device before."""


def partial(logits, target, weight, options: Options, block: ClassBlock):
    """(rows, 3) float32 over the classes of `block`, for class targets: lse, Σ w·q'·x and Σ w·q'."""
    _require_class_index(target.dtype)
    has_weight = weight is not None
    factor = ops.cast(weight, mstype.float32) if has_weight else _no_weight()
    x = _prepared(logits, target, options)
    choice = (options.ignore_index, options.label_smoothing, has_weight, block.offset, block.total)
    out = _operator("MsCePartial", True)(x, _class_rows(target), factor, *choice)
    if not compiling():
        remember("partial", out[3], block.total or x.shape[1])
    return ops.stack((out[0], out[1], out[2]), axis=1)


def partial_backward(
    grad_rows, grad_lse, logits, target, weight, lse, mass, options: Options, block: ClassBlock
):
    """Gradient of this block's logits, for class targets: grad_rows·(mass·p - w·q') + grad_lse·p. The kernel makes
    its own mass from the weights, and grad_lse, which is 2·z_loss·lse·grad_rows."""
    _require_class_index(target.dtype)
    has_weight = weight is not None
    factor = ops.cast(weight, mstype.float32) if has_weight else _no_weight()
    x, rows = _prepared(logits, target, options), _class_rows(target)
    row_lse = ops.cast(lse, mstype.float32).reshape(-1)
    upstream = ops.cast(grad_rows, mstype.float32).reshape(-1)
    choice = (
        0,
        options.ignore_index,
        options.label_smoothing,
        options.z_loss,
        has_weight,
        block.offset,
        block.total,
    )
    grad = _operator("MsCeBackward", False)(
        upstream, x, rows, factor, row_lse, _no_weight(), *choice
    )
    if options.softcap:
        slope = 1.0 - ops.square(x / options.softcap)
        keep = ops.expand_dims(ops.not_equal(rows, options.ignore_index), 1)
        grad = ops.where(keep, grad * slope, 0.0)
    if options.logit_scale != 1.0:
        grad = grad * options.logit_scale
    return _from_rows(ops.cast(grad, logits.dtype), logits.shape)


def partial_target_grad(
    grad_rows, logits, target, weight, lse, options: Options, block: ClassBlock
):
    """Blocks of probabilities are for `composed`."""
    _require_class_index(target.dtype)
    return target


def partial_weight_grad(
    grad_rows, logits, target, weight, lse, options: Options, block: ClassBlock
):
    """As the composed backend, which makes it."""
    _require_class_index(target.dtype)
    return composed.partial_weight_grad(grad_rows, logits, target, weight, lse, options, block)
