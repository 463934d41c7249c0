"""The `composed` backend on a block of the classes: the statistics that ranks exchange, and the gradients from them."""

from __future__ import annotations

import numpy as np
from mindspore import dtype as mstype
from mindspore import ops

from ms_ce.ops.composed.losses import prepared, product, refuse_targets, transformed
from ms_ce.ops.graph import compiling, is_class_index
from ms_ce.ops.options import ClassBlock, Options
from ms_ce.ops.pieces import by_class, largest, log_softmax, log_sum_exp, number, rest


def _block_factor(x, target, weight, options, block):
    """(w·q' for the classes of the block, rows that count or None), like x and like its rows."""
    all_classes = block.total or x.shape[1]
    local_weight = None
    if weight is not None:
        local_weight = weight[block.offset : block.offset + x.shape[1]]
    keep = None
    if is_class_index(target.dtype):
        if not compiling():
            refuse_targets(target, all_classes, options.ignore_index)
        wide = target.astype(mstype.int64)
        keep = wide != options.ignore_index
        bad = ops.logical_and(keep, ops.logical_or(wide < 0, wide >= all_classes))
        classes = ops.arange(block.offset, block.offset + x.shape[1])
        classes = classes.reshape((1, -1) + (1,) * (x.ndim - 2))
        factor = (wide.expand_dims(1) == classes).astype(x.dtype)
        factor = ops.where(bad.expand_dims(1), np.nan, factor)
    else:
        factor = target
    if options.label_smoothing != 0.0:
        share = number(options.label_smoothing, x.dtype) / all_classes
        factor = factor * rest(options.label_smoothing, x.dtype) + share
    if local_weight is not None:
        factor = by_class(factor, local_weight)
    if keep is not None:
        factor = ops.where(keep.expand_dims(1), factor, 0.0)
    return factor, keep


def partial(logits, target, weight, options: Options, block: ClassBlock):
    """(rows, 3) over the classes of `block`: lse, Σ w·q'·x and Σ w·q'; the row loss is mass·lse - dot."""
    x, target, weight = prepared(logits, target, weight)
    x = transformed(x, options)
    factor, keep = _block_factor(x, target, weight, options, block)
    top = largest(x, 1)
    lse = ops.where(top == -np.inf, -np.inf, log_sum_exp(x, log_softmax(x)))
    if keep is not None:
        lse = ops.where(keep, lse, 0.0)
        x = ops.where(keep.expand_dims(1), x, 0.0)
    return ops.stack((lse, product(factor, x).sum(axis=1), factor.sum(axis=1)), axis=-1)


def partial_backward(
    grad_rows, grad_lse, logits, target, weight, lse, mass, options: Options, block: ClassBlock
):
    """Gradient of this block's logits: grad_rows·(mass·p - w·q') + grad_lse·p, with the whole row's lse and mass."""
    raw, target, weight = prepared(logits, target, weight)
    x = transformed(raw, options)
    factor, keep = _block_factor(x, target, weight, options, block)
    g = grad_rows.astype(x.dtype).expand_dims(1)
    p = ops.exp(x - lse.astype(x.dtype).expand_dims(1))
    slope = g * mass.astype(x.dtype).expand_dims(1) + grad_lse.astype(x.dtype).expand_dims(1)
    grad = slope * p - g * factor
    if options.softcap != 0.0:
        grad = grad * (1.0 - ops.square(x / number(options.softcap, x.dtype)))
    grad = grad * number(options.logit_scale, x.dtype)
    if keep is not None:
        grad = ops.where(keep.expand_dims(1), grad, 0.0)
    return grad.astype(logits.dtype)


def _class_distances(grad_rows, logits, target, weight, lse, options, block):
    """(w·q' of the block, grad_rows·(lse - x) with 0 for classes left out and rows ignored)."""
    raw, target, weight = prepared(logits, target, weight)
    x = transformed(raw, options)
    factor, keep = _block_factor(x, target, weight, options, block)
    distance = lse.astype(x.dtype).expand_dims(1) - x
    excluded = ops.logical_and(factor == 0, x == -np.inf)
    distance = ops.where(excluded, 0.0, distance)
    if keep is not None:
        distance = ops.where(keep.expand_dims(1), distance, 0.0)
    return target, distance * grad_rows.astype(x.dtype).expand_dims(1)


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
    wide, slope = _class_distances(grad_rows, logits, target, weight, lse, options, block)
    factor, _ = _block_factor(slope, wide, None, options, block)
    own = (factor * slope).swapaxes(0, 1).reshape((logits.shape[1], -1)).sum(axis=1)
    after = weight.shape[0] - block.offset - logits.shape[1]
    if block.offset > 0:
        own = ops.concat((ops.zeros((block.offset,), own.dtype), own))
    if after > 0:
        own = ops.concat((own, ops.zeros((after,), own.dtype)))
    return own.astype(weight.dtype)
