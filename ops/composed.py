"""The `composed` backend: LogSoftmax, NLLLoss and ordinary MindSpore primitives, on any device MindSpore supports.

MindSpore defines no second derivative of LogSoftmax, NLLLoss or GatherD, so the three linear or smooth pieces
below are Cells with a bprop of their own, each other's transposes; everything else is differentiated by MindSpore.
Half-precision inputs are computed in float32, as in the kernel. A class index out of range raises ValueError when
called directly; inside a compiled graph no primitive can raise, so that row's loss becomes nan.
"""

from __future__ import annotations

import numpy as np
from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops import operations as P
from mindspore.ops.operations import _grad_ops as G

from ms_ce.ops.graph import compiling, is_class_index
from ms_ce.ops.options import ClassBlock, Options


def probe() -> str | None:
    """MindSpore itself is all it needs."""
    return None


class _LogSoftmaxBackward(nn.Cell):
    """d - p·Σd, the transpose of log-softmax's Jacobian at x applied to d."""

    def __init__(self):
        super().__init__()
        self.log_softmax_grad = G.LogSoftmaxGrad(1)
        self.softmax = P.Softmax(1)

    def construct(self, x, log_prob, direction):
        return self.log_softmax_grad(log_prob, direction)

    def bprop(self, x, log_prob, direction, out, dout):
        p = self.softmax(x)
        centred = dout - (p * dout).sum(axis=1, keepdims=True)
        grad_x = -p * direction.sum(axis=1, keepdims=True) * centred
        return grad_x, _zeros_like(log_prob), centred


class _LogSoftmax(nn.Cell):
    """Log-probabilities over axis 1."""

    def __init__(self):
        super().__init__()
        self.log_softmax = P.LogSoftmax(1)
        self.backward = _LogSoftmaxBackward()

    def construct(self, x):
        return self.log_softmax(x)

    def bprop(self, x, out, dout):
        return (self.backward(x, out, dout),)


class _Place(nn.Cell):
    """Zeros of `like`'s shape with `values` at class `index` of each row: the transpose of _Pick."""

    def __init__(self):
        super().__init__()
        self.nll_loss_grad = G.NLLLossGrad("none")
        self.scatter = P.TensorScatterElements(1)

    def construct(self, values, index, like):
        if like.ndim == 2 and like.dtype == mstype.float32:
            ones = ops.ones((like.shape[1],), like.dtype)
            total = ops.ones((), like.dtype)
            return -self.nll_loss_grad(like, values, index, ones, total)
        return self.scatter(_zeros_like(like), index.expand_dims(1), values.expand_dims(1))

    def bprop(self, values, index, like, out, dout):
        return _pick(dout, index), _zeros_like(index), _zeros_like(like)


class _Pick(nn.Cell):
    """log_prob[n, index[n]], by NLLLoss where that can express it."""

    def __init__(self):
        super().__init__()
        self.nll_loss = P.NLLLoss("none")
        self.gather = P.GatherD()

    def construct(self, log_prob, index):
        if log_prob.ndim == 2 and log_prob.dtype == mstype.float32:
            ones = ops.ones((log_prob.shape[1],), log_prob.dtype)
            return -self.nll_loss(log_prob, index, ones)[0]
        return self.gather(log_prob, 1, index.expand_dims(1)).squeeze(1)

    def bprop(self, log_prob, index, out, dout):
        return _place(dout, index, log_prob), _zeros_like(index)


class _LogSumExp(nn.Cell):
    """lse over axis 1, read off the largest log-probability: max log p = max x - lse."""

    def __init__(self):
        super().__init__()
        self.softmax = P.Softmax(1)
        self.largest = P.ReduceMax()  # unlike Tensor.max it takes an empty batch

    def construct(self, x, log_prob):
        return self.largest(x, 1) - self.largest(log_prob, 1)

    def bprop(self, x, log_prob, out, dout):
        return self.softmax(x) * dout.expand_dims(1), _zeros_like(log_prob)


_zeros_like = P.ZerosLike()  # the function ops.zeros_like breaks a second derivative in graph mode
_log_softmax, _log_sum_exp, _place, _pick = _LogSoftmax(), _LogSumExp(), _Place(), _Pick()


def _raise_out_of_range(target, classes: int, ignore_index: int) -> None:
    """The kernel's error, for a target that is on the host anyway."""
    host = target.asnumpy()
    bad = (host != ignore_index) & ((host < 0) | (host >= classes))
    if bad.any():
        position = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"ms_ce: target {int(host[position])} at position {position} is outside [0, {classes}) "
            f"and is not ignore_index ({ignore_index})"
        )


def _real(logits):
    """The dtype computed in: float64 for float64 inputs, else float32."""
    return mstype.float64 if logits.dtype == mstype.float64 else mstype.float32


def _prepared(logits, target, weight):
    """Each input cast once to the dtype computed in, (C) with () or (C) as a batch of one.

    Once, because the gradients of several uses are then added in that dtype: MindSpore's CPU adds no bfloat16.
    """
    real = _real(logits)
    if weight is not None:
        weight = weight.astype(real)
    # A class index would get gradients through its masks, which are bool and which MindSpore cannot add.
    indices = is_class_index(target.dtype)
    target = ops.stop_gradient(target) if indices else target.astype(real)
    x = logits.astype(real)
    if logits.ndim == 1:
        return x.expand_dims(0), target.expand_dims(0), weight
    return x, target, weight


def _transformed(x, options):
    """Scaled and capped logits."""
    if options.logit_scale != 1.0:
        x = x * options.logit_scale
    if options.softcap != 0.0:
        x = ops.tanh(x / options.softcap) * options.softcap
    return x


def _class_rows(x, target, options):
    """(x, index, keep): x is 0 in ignored rows and nan where the index is out of range, index is in range."""
    classes = x.shape[1]
    if not compiling():
        _raise_out_of_range(target, classes, options.ignore_index)
    wide = target.astype(mstype.int64)
    keep = wide != options.ignore_index
    known = ops.logical_and(wide >= 0, wide < classes)
    index = ops.where(ops.logical_and(keep, known), wide, 0).astype(mstype.int32)
    bad = ops.logical_and(keep, ops.logical_not(known))
    x = ops.where(keep.expand_dims(1), x, 0.0)
    x = ops.where(bad.expand_dims(1), np.nan, x)
    return x, index, keep


def _product(factor, log_prob):
    """factor·log_prob, where a class excluded by log_prob -inf and factor 0 contributes 0."""
    excluded = ops.logical_and(factor == 0, log_prob == -np.inf)
    return factor * ops.where(excluded, 0.0, log_prob)


def _per_class(weight, x):
    """weight (C,), shaped to multiply x (N, C, d1…dK)."""
    return weight.reshape((1, -1) + (1,) * (x.ndim - 2))


def _checked_log_softmax(x):
    """Log-probabilities, nan throughout a row with a logit of nan or +inf, where LogSoftmax leaves -inf."""
    log_prob = _log_softmax(x)
    total = ops.stop_gradient(log_prob).sum(axis=1, keepdims=True)
    return log_prob + ops.where(total == total, 0.0, np.nan)


def _total(rows):
    """The sum of all rows; with a zero beside them, since MindSpore leaves the sum of nothing uninitialised."""
    return ops.concat((rows.reshape((-1,)), ops.zeros((1,), rows.dtype))).sum()


def _picked_rows(log_prob, index, keep, weight):
    """(w_y·(-log p_y), w_y) per row, both 0 in ignored rows."""
    row_weight = keep.astype(log_prob.dtype)
    if weight is not None:
        row_weight = row_weight * ops.gather(weight, index, 0)
    return -_product(row_weight, _pick(log_prob, index)), row_weight


def _class_losses(x, log_prob, index, keep, weight, options):
    rows, row_weight = _picked_rows(log_prob, index, keep, weight)
    if options.label_smoothing != 0.0:
        factor = ops.ones_like(log_prob)
        if weight is not None:
            factor = factor * _per_class(weight, log_prob)
        smooth = -_product(factor, log_prob).sum(axis=1) * keep.astype(x.dtype)
        share = options.label_smoothing / log_prob.shape[1]
        rows = rows * (1.0 - options.label_smoothing) + smooth * share
    return rows, _total(row_weight)


def _probability_losses(x, log_prob, target, weight, options):
    factor = target
    if options.label_smoothing != 0.0:
        share = options.label_smoothing / log_prob.shape[1]
        factor = factor * (1.0 - options.label_smoothing) + share
    if weight is not None:
        factor = factor * _per_class(weight, log_prob)
    rows = -_product(factor, log_prob).sum(axis=1)
    return rows, _total(ops.ones_like(rows))


def _reduced(rows, total_weight, options):
    """none, sum or mean of the row losses; a mean without weight is nan and its gradient 0."""
    if options.reduction == "none":
        return rows
    if options.reduction == "sum":
        return _total(rows)
    empty = total_weight == 0
    return ops.where(empty, np.nan, _total(rows) / ops.where(empty, 1.0, total_weight))


def _rows(x, target, weight, options):
    """Everything per row: (losses with z-loss, z-losses, total_weight, lse, x, log_prob, keep)."""
    x = _transformed(x, options)
    keep = None
    if is_class_index(target.dtype):
        x, index, keep = _class_rows(x, target, options)
        log_prob = _checked_log_softmax(x)
        rows, total_weight = _class_losses(x, log_prob, index, keep, weight, options)
    else:
        log_prob = _checked_log_softmax(x)
        rows, total_weight = _probability_losses(x, log_prob, target, weight, options)
    lse = _log_sum_exp(x, log_prob)
    if keep is not None:
        lse = ops.where(keep, lse, 0.0)
    squares = lse * lse * options.z_loss
    if options.z_loss != 0.0:
        rows = rows + squares
    return rows, squares, total_weight, lse, x, log_prob, keep


def _like_input(logits, options, value):
    """A result in logits' dtype; per row it loses the batch of one again (first: MindSpore squeezes no bfloat16)."""
    if logits.ndim == 1 and options.reduction == "none":
        value = value.squeeze(0)
    return value.astype(logits.dtype)


def cross_entropy(logits, target, weight, options: Options):
    """(loss, total_weight, lse): loss in logits' dtype, the others float32 (float64 for float64)."""
    x, target, weight = _prepared(logits, target, weight)
    rows = _rows(x, target, weight, options)
    loss = _reduced(rows[0], rows[2], options)
    lse = rows[3].squeeze(0) if logits.ndim == 1 else rows[3]
    return _like_input(logits, options, loss), rows[2], lse


def cross_entropy_with_stats(logits, target, weight, options: Options):
    """(loss, total_weight, lse, z_loss, num_correct, entropy)."""
    x, target, weight = _prepared(logits, target, weight)
    losses, squares, total_weight, lse, x, log_prob, keep = _rows(x, target, weight, options)
    best = target.argmax(axis=1) if keep is None else target
    correct = x.argmax(axis=1).astype(mstype.int64) == best.astype(mstype.int64)
    fixed = ops.stop_gradient(log_prob)
    entropy = -_product(ops.exp(fixed), fixed).sum(axis=1)
    count = _total(ops.ones_like(entropy))
    if keep is not None:
        correct = ops.logical_and(correct, keep)
        entropy = ops.where(keep, entropy, 0.0)
        count = _total(keep.astype(x.dtype))
    reduced = [
        _like_input(logits, options, _reduced(value, divisor, options))
        for value, divisor in ((losses, total_weight), (squares, total_weight), (entropy, count))
    ]
    if logits.ndim == 1:
        lse = lse.squeeze(0)
    num_correct = _total(correct.astype(mstype.int64))
    # Gradients flow through loss and z-loss only.
    logged = ops.stop_gradient(total_weight), ops.stop_gradient(lse)
    return reduced[0], logged[0], logged[1], reduced[1], num_correct, reduced[2]


def nll_loss(log_prob, target, weight, options: Options):
    """(loss, total_weight): loss in log_prob's dtype, total_weight in the weight's, or log_prob's without one."""
    dtype = log_prob.dtype if weight is None else weight.dtype
    x, target, weight = _prepared(log_prob, target, weight)
    x, index, keep = _class_rows(x, target, options)
    rows, row_weight = _picked_rows(x, index, keep, weight)
    total_weight = _total(row_weight)
    loss = _reduced(rows, total_weight, options)
    return _like_input(log_prob, options, loss), total_weight.astype(dtype)


def cross_entropy_value_and_grad(logits, target, weight, options: Options):
    """(loss, total_weight, lse, grad_logits); reduction mean or sum."""

    def losses(logits, target, weight):
        return cross_entropy(logits, target, weight, options)

    # weight is passed: a graph does not differentiate a function that holds a tensor of its caller's.
    gradient = ops.value_and_grad(losses, 0, None, True)
    (loss, total_weight, lse), grad = gradient(logits, target, weight)
    return loss, total_weight, lse, grad


def _block_factor(x, target, weight, options, block):
    """(w·q' for the classes of the block, rows that count or None), like x and like its rows."""
    total = block.total or x.shape[1]
    local_weight = None
    if weight is not None:
        local_weight = _per_class(weight[block.offset : block.offset + x.shape[1]], x)
    keep = None
    if is_class_index(target.dtype):
        if not compiling():
            _raise_out_of_range(target, total, options.ignore_index)
        wide = target.astype(mstype.int64)
        keep = wide != options.ignore_index
        bad = ops.logical_and(keep, ops.logical_or(wide < 0, wide >= total))
        classes = ops.arange(block.offset, block.offset + x.shape[1])
        classes = classes.reshape((1, -1) + (1,) * (x.ndim - 2))
        factor = (wide.expand_dims(1) == classes).astype(x.dtype)
        factor = ops.where(bad.expand_dims(1), np.nan, factor)
    else:
        factor = target
    if options.label_smoothing != 0.0:
        share = options.label_smoothing / total
        factor = factor * (1.0 - options.label_smoothing) + share
    if local_weight is not None:
        factor = factor * local_weight
    if keep is not None:
        factor = ops.where(keep.expand_dims(1), factor, 0.0)
    return factor, keep


def partial(logits, target, weight, options: Options, block: ClassBlock):
    """(rows, 3) over the classes of `block`: lse, Σ w·q'·x and Σ w·q'; the row loss is mass·lse - dot."""
    x, target, weight = _prepared(logits, target, weight)
    x = _transformed(x, options)
    factor, keep = _block_factor(x, target, weight, options, block)
    top = _log_sum_exp.largest(x, 1)
    lse = ops.where(top == -np.inf, -np.inf, _log_sum_exp(x, _log_softmax(x)))
    if keep is not None:
        lse = ops.where(keep, lse, 0.0)
        x = ops.where(keep.expand_dims(1), x, 0.0)
    return ops.stack((lse, _product(factor, x).sum(axis=1), factor.sum(axis=1)), axis=-1)


def partial_backward(
    grad_rows, grad_lse, logits, target, weight, lse, mass, options: Options, block: ClassBlock
):
    """Gradient of this block's logits: grad_rows·(mass·p - w·q') + grad_lse·p, with the whole row's lse and mass."""
    raw, target, weight = _prepared(logits, target, weight)
    x = _transformed(raw, options)
    factor, keep = _block_factor(x, target, weight, options, block)
    g = grad_rows.astype(x.dtype).expand_dims(1)
    p = ops.exp(x - lse.astype(x.dtype).expand_dims(1))
    slope = g * mass.astype(x.dtype).expand_dims(1) + grad_lse.astype(x.dtype).expand_dims(1)
    grad = slope * p - g * factor
    if options.softcap != 0.0:
        grad = grad * (1.0 - ops.square(x / options.softcap))
    grad = grad * options.logit_scale
    if keep is not None:
        grad = ops.where(keep.expand_dims(1), grad, 0.0)
    return grad.astype(logits.dtype)


def _class_distances(grad_rows, logits, target, weight, lse, options, block):
    """(w·q' of the block, grad_rows·(lse - x) with 0 for classes left out and rows ignored)."""
    raw, target, weight = _prepared(logits, target, weight)
    x = _transformed(raw, options)
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
    grad = grad * (1.0 - options.label_smoothing)
    if weight is not None:
        local = weight[block.offset : block.offset + logits.shape[1]].astype(grad.dtype)
        grad = grad * _per_class(local, grad)
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
