"""The `composed` backend on a block of the classes: the statistics that ranks exchange, and the gradients from them."""

from __future__ import annotations

import numpy as np
from mindspore import dtype as mstype
from mindspore import ops

from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.composed.losses import prepared, refuse_targets, through_transform, transformed
from ms_ce.ops.graph import compiling, is_class_index, select
from ms_ce.ops.options import ClassBlock, Options
from ms_ce.ops.pieces import by_class, largest, log_softmax, log_sum_exp, number, product, rest


def _smoothed(x, target, options, block):
    """(q' of the classes of the block, rows that count or None), like x and like its rows."""
    all_classes, keep = block.total or x.shape[1], None
    if is_class_index(target.dtype):
        if not compiling():
            refuse_targets(target, all_classes, options.ignore_index)
        wide = target.astype(mstype.int64)
        keep = wide != options.ignore_index
        bad = ops.logical_and(keep, ops.logical_or(wide < 0, wide >= all_classes))
        classes = ops.arange(block.offset, block.offset + x.shape[1])
        classes = classes.reshape((1, -1) + (1,) * (x.ndim - 2))
        q = (wide.expand_dims(1) == classes).astype(x.dtype)
        q = select(bad.expand_dims(1), np.nan, q)
    else:
        q = target
    if options.label_smoothing != 0.0:
        share = number(options.label_smoothing, x.dtype) / all_classes
        q = q * rest(options.label_smoothing, x.dtype) + share
    return q, keep


# A graph loses a condition of a function that is called with None and with a tensor.


def _weighted(q, weight, block):
    """w·q' of the block."""
    if weight is None:
        return q
    return by_class(q, weight[block.offset : block.offset + q.shape[1]])


def _counted(values, keep):
    """Those of the rows that count, and 0."""
    return values if keep is None else select(keep.expand_dims(1), values, 0.0)


def partial(logits, target, weight, options: Options, block: ClassBlock):
    """(rows, 3) over the classes of `block`: lse, Σ w·q'·x and Σ w·q'; the row loss is mass·lse - dot."""
    x, target, weight = prepared(logits, target, weight)
    x = transformed(x, options)
    q, keep = _smoothed(x, target, options, block)
    factor = _counted(_weighted(q, weight, block), keep)
    top = largest(x, 1)
    lse = select(top == -np.inf, -np.inf, log_sum_exp(x, log_softmax(x)))
    if keep is not None:
        lse = select(keep, lse, 0.0)
        x = select(keep.expand_dims(1), x, 0.0)
    return ops.stack((lse, product(factor, x).sum(axis=1), factor.sum(axis=1)), axis=-1)


def partial_backward(
    grad_rows, grad_lse, logits, target, weight, lse, mass, options: Options, block: ClassBlock
):
    """Gradient of this block's logits: grad_rows·(mass·p - w·q') + grad_lse·p, with the whole row's lse and mass."""
    raw, target, weight = prepared(logits, target, weight)
    x = transformed(raw, options)
    q, keep = _smoothed(x, target, options, block)
    factor = _counted(_weighted(q, weight, block), keep)
    g = grad_rows.astype(x.dtype).expand_dims(1)
    p = ops.exp(x - lse.astype(x.dtype).expand_dims(1))
    slope = g * mass.astype(x.dtype).expand_dims(1) + grad_lse.astype(x.dtype).expand_dims(1)
    grad = slope * p - g * factor
    if options.softcap != 0.0:
        grad = grad * (1.0 - ops.square(x / number(options.softcap, x.dtype)))
    grad = grad * number(options.logit_scale, x.dtype)
    if keep is not None:
        grad = select(keep.expand_dims(1), grad, 0.0)
    return grad.astype(logits.dtype)


def partial_entropy(logits, lse, options: Options):
    """Entropies of the softmax of this block's classes alone, from their lse; nan in a block of nothing but -inf."""
    x = transformed(logits.astype(exact_dtype(logits.dtype)), options)
    log_p = x - lse.astype(x.dtype).expand_dims(1)
    return -product(ops.exp(log_p), log_p).sum(axis=1)


def partial_entropy_backward(grad_entropy, logits, lse, entropy, options: Options):
    """-grad_entropy·p·(log p + entropy) of this block's logits, from the whole rows' lse and entropy."""
    raw = logits.astype(exact_dtype(logits.dtype))
    x = transformed(raw, options)
    log_p = x - lse.astype(x.dtype).expand_dims(1)
    p = ops.exp(log_p)
    share = p * (log_p + entropy.astype(x.dtype).expand_dims(1))
    grad = -grad_entropy.astype(x.dtype).expand_dims(1) * select(p == 0, 0.0, share)
    return through_transform(grad, raw, options)


def _class_distances(grad_rows, logits, target, weight, lse, options, block):
    """(q' in rows that count, grad_rows·(lse - x)) of the block, both 0 in rows that do not; the latter for classes
    left out too."""
    raw, target, weight = prepared(logits, target, weight)
    x = transformed(raw, options)
    q, keep = _smoothed(x, target, options, block)
    excluded = ops.logical_and(_weighted(q, weight, block) == 0, x == -np.inf)
    # A row without a softmax is nan throughout.
    excluded = ops.logical_and(excluded, ops.isfinite(lse).expand_dims(1))
    distance = select(excluded, 0.0, lse.astype(x.dtype).expand_dims(1) - x)
    upstream = grad_rows.astype(x.dtype).expand_dims(1)
    return _counted(q, keep), _counted(distance, keep) * upstream


def partial_target_grad(
    grad_rows, logits, target, weight, lse, options: Options, block: ClassBlock
):
    """Gradient of this block's probabilities, from the whole rows' lse."""
    _, grad = _class_distances(grad_rows, logits, target, weight, lse, options, block)
    grad = grad * rest(options.label_smoothing, grad.dtype)
    if weight is not None:
        local = weight[block.offset : block.offset + logits.shape[1]].astype(grad.dtype)
        grad = by_class(grad, local)
    return grad.astype(target.dtype)


def partial_weight_grad(
    grad_rows, logits, target, weight, lse, options: Options, block: ClassBlock
):
    """Gradient of the weights of all classes, 0 for those of other blocks, from the whole rows' lse."""
    q, slope = _class_distances(grad_rows, logits, target, weight, lse, options, block)
    own = (q * slope).swapaxes(0, 1).reshape((logits.shape[1], -1)).sum(axis=1)
    after = weight.shape[0] - block.offset - logits.shape[1]
    if block.offset > 0:
        own = ops.concat((ops.zeros((block.offset,), own.dtype), own))
    if after > 0:
        own = ops.concat((own, ops.zeros((after,), own.dtype)))
    return own.astype(weight.dtype)
