"""The `ascend` backend on a block of the classes, for class indices."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr

from ms_ce.ops import composed
from ms_ce.ops.ascend.errors import remember
from ms_ce.ops.ascend.rows import class_rows, from_rows, no_weight, operator, prepared
from ms_ce.ops.graph import compiling, select
from ms_ce.ops.options import ClassBlock, Options


@constexpr
def _require_class_index(dtype) -> None:
    if dtype not in (mstype.int32, mstype.int64, mstype.uint8):
        raise TypeError(
            "ms_ce: the ascend backend shards class indices only, and the target holds probabilities; "
            "use backend='composed'"
        )


def partial(logits, target, weight, options: Options, block: ClassBlock):
    """(rows, 3) float32 over the classes of `block`, for class targets: lse, Σ w·q'·x and Σ w·q'."""
    _require_class_index(target.dtype)
    has_weight = weight is not None
    factor = ops.cast(weight, mstype.float32) if has_weight else no_weight()
    x = prepared(logits, target, options)
    choice = (options.ignore_index, options.label_smoothing, has_weight, block.offset, block.total)
    out = operator("MsCePartial", True)(x, class_rows(target), factor, *choice)
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
    factor = ops.cast(weight, mstype.float32) if has_weight else no_weight()
    x, rows = prepared(logits, target, options), class_rows(target)
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
    grad = operator("MsCeBackward", False)(upstream, x, rows, factor, row_lse, no_weight(), *choice)
    if options.softcap:
        slope = 1.0 - ops.square(x / options.softcap)
        keep = ops.expand_dims(ops.not_equal(rows, options.ignore_index), 1)
        grad = select(keep, grad * slope, 0.0)
    if options.logit_scale != 1.0:
        grad = grad * options.logit_scale
    return from_rows(ops.cast(grad, logits.dtype), logits.shape)


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
