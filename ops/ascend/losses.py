"""The losses of the `ascend` backend, of logits in any shape that the surface takes."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr

from ms_ce.ops import composed, mean
from ms_ce.ops.ascend.cells import REDUCTIONS, cells
from ms_ce.ops.ascend.errors import remember
from ms_ce.ops.ascend.rows import (
    as_rows,
    class_rows,
    from_rows,
    no_weight,
    operator,
    prepared,
    require_supported,
    rows_shape,
)
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import compiling, is_class_index
from ms_ce.ops.options import Options
from ms_ce.ops.pieces import total
from ms_ce.ops.row_weights import without_rows

# In a graph this runs while it is compiled, and the graph holds the Cell.
_loss = constexpr(cells)


@constexpr
def _code(reduction: str) -> int:
    return REDUCTIONS[reduction]


@constexpr
def _per_row(options) -> Options:
    """The options with reduction none. A graph hands them over as a plain tuple."""
    return Options(*options)._replace(reduction="none")


def _shaped(values, reduction, shape):
    return values.reshape(rows_shape(shape)) if reduction == "none" else values.reshape(())


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
    factor = ops.cast(weight, mstype.float32) if has_weight else no_weight()
    x = prepared(logits, target, options)
    if is_class_index(target.dtype):
        out = _loss("class", options, has_weight)(x, class_rows(target), factor)
        if not compiling():
            remember("cross_entropy", out[3], x.shape[1])
    else:
        q = as_rows(target)
        if q.dtype != x.dtype:
            x, q = ops.cast(x, mstype.float32), ops.cast(q, mstype.float32)
        out = _loss("probability", options, has_weight)(x, q, factor)
    loss = _shaped(out[0], options.reduction, logits.shape)
    return loss, out[1].reshape(()), out[2].reshape(rows_shape(logits.shape))


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
    factor = ops.cast(weight, mstype.float32) if has_weight else no_weight()
    require_supported(log_prob.dtype)
    out = _loss("nll", options, has_weight)(as_rows(log_prob), class_rows(target), factor)
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
    factor = ops.cast(weight, mstype.float32) if has_weight else no_weight()
    require_supported(logits.dtype)
    choice = (
        _code(options.reduction),
        options.ignore_index,
        options.label_smoothing,
        options.z_loss,
        has_weight,
    )
    x = as_rows(logits)
    out = operator("MsCeForwardGrad", False)(x, class_rows(target), factor, *choice)
    if not compiling():
        remember("cross_entropy_value_and_grad", out[4], x.shape[1])
    shape = logits.shape
    loss = ops.cast(out[0].reshape(()), logits.dtype)
    return loss, out[1].reshape(()), out[2].reshape(rows_shape(shape)), from_rows(out[3], shape)
