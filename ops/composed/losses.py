"""The losses of the `composed` backend: ordinary MindSpore primitives, on any device MindSpore supports.

Half-precision inputs are computed in float32, as in the kernel. A class index out of range raises ValueError when
called directly; inside a compiled graph no primitive can raise, so that row's loss becomes nan.
"""

from __future__ import annotations

import numpy as np
from mindspore import dtype as mstype
from mindspore import ops

from ms_ce.ops import precision
from ms_ce.ops.composed import recorded
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import compiling, is_class_index, select
from ms_ce.ops.mean import mean
from ms_ce.ops.options import Options
from ms_ce.ops.pieces import (
    by_class,
    class_sum,
    faithful,
    largest_class,
    log_softmax,
    log_sum_exp,
    number,
    pick,
    product,
    rest,
    scaled_square,
    total,
    weight_of,
    zeros_like,
)
from ms_ce.ops.row_weights import without_rows


def refuse_targets(target, classes: int, ignore_index: int, shift: bool = False) -> None:
    """The kernel's error, for a target that is on the host anyway; under shift no sequence's first one counts."""
    host = target.asnumpy()
    bad = (host != ignore_index) & ((host < 0) | (host >= classes))
    if shift:
        bad[..., 0] = False
    if bad.any():
        precision.off()
        position = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"ms_ce: target {int(host[position])} at position {position} is outside [0, {classes}) "
            f"and is not ignore_index ({ignore_index})"
        )


def _real(logits):
    """The dtype computed in: float64 for float64 inputs, else float32."""
    return mstype.float64 if logits.dtype == mstype.float64 else mstype.float32


def prepared(logits, target, weight):
    """Each input cast once to the dtype computed in, (C) with () or (C) as a batch of one.

    Once, because the gradients of several uses are then added in that dtype: MindSpore's CPU adds no bfloat16.
    """
    real = _real(logits)
    if weight is not None:
        weight = weight.astype(real)
    # A class index would get gradients through its masks, which are bool and which MindSpore cannot add.
    indices = is_class_index(target.dtype)
    target = without_gradient(target) if indices else target.astype(real)
    x = logits.astype(real)
    if logits.ndim == 1:
        return x.expand_dims(0), target.expand_dims(0), weight
    return x, target, weight


def _row_factor(logits, row_weight):
    """The row weights likewise."""
    if row_weight is None:
        return None
    row_weight = without_gradient(row_weight.astype(_real(logits)))
    return row_weight.expand_dims(0) if logits.ndim == 1 else row_weight


def transformed(x, options):
    """Scaled and capped logits."""
    if options.logit_scale != 1.0:
        x = x * number(options.logit_scale, x.dtype)
    if options.softcap != 0.0:
        cap = number(options.softcap, x.dtype)
        x = ops.tanh(x / cap) * cap
    return x


def predicted_class(x, lse):
    """The class of each row's largest logit, the first of several; -1 of a row without a softmax, whose lse is none."""
    return select(ops.isfinite(lse), largest_class(x), -1)


def through_transform(grad, logits, options):
    """The gradient of logits from that of `transformed`."""
    if options.softcap != 0.0:
        cap = number(options.softcap, grad.dtype)
        grad = grad * (1.0 - ops.square(transformed(logits, options) / cap))
    if options.logit_scale != 1.0:
        grad = grad * number(options.logit_scale, grad.dtype)
    return grad


def _class_rows(x, target, options):
    """(x, index, keep): x is 0 in ignored rows and nan where the index is out of range, index is in range."""
    classes = x.shape[1]
    if not compiling():
        refuse_targets(target, classes, options.ignore_index)
    wide = target.astype(mstype.int64)
    keep = wide != options.ignore_index
    known = ops.logical_and(wide >= 0, wide < classes)
    index = select(ops.logical_and(keep, known), wide, 0).astype(mstype.int32)
    bad = ops.logical_and(keep, ops.logical_not(known))
    # Twice beside a number: vmap refuses one choice between tensors of several shapes.
    x = select(keep.expand_dims(1), x, 0.0)
    x = select(bad.expand_dims(1), np.nan, x)
    return x, index, keep


def _picked_rows(log_prob, index, keep, weight):
    """(w_y·(-log p_y), w_y) per row, both 0 in ignored rows."""
    factor = keep.astype(log_prob.dtype)
    if weight is not None:
        factor = factor * weight_of(weight, index)
    return -product(factor, pick(log_prob, index)), factor


def _class_losses(x, log_prob, index, keep, weight, options):
    """(row losses, w_y of the rows that count)."""
    rows, divisors = _picked_rows(log_prob, index, keep, weight)
    if options.label_smoothing != 0.0:
        factor = ops.ones_like(log_prob)
        if weight is not None:
            factor = by_class(factor, weight)
        smooth = -class_sum(product(factor, log_prob)) * keep.astype(x.dtype)
        share = number(options.label_smoothing, x.dtype) / log_prob.shape[1]
        rows = rows * rest(options.label_smoothing, x.dtype) + smooth * share
    return rows, divisors


def _probability_losses(x, log_prob, target, weight, options):
    factor = target
    if options.label_smoothing != 0.0:
        share = number(options.label_smoothing, x.dtype) / log_prob.shape[1]
        factor = factor * rest(options.label_smoothing, x.dtype) + share
    if weight is not None:
        factor = by_class(factor, weight)
    rows = -class_sum(product(factor, log_prob))
    return rows, ops.ones_like(rows)


def _reduced(rows, total_weight, options):
    """none, sum or mean of the row losses."""
    if options.reduction == "none":
        return rows
    if options.reduction == "sum":
        return total(rows)
    return mean(total(rows), total_weight)


def _rows(x, target, weight, row_weight, options):
    """Everything per row: (losses with z-loss, z-losses, total_weight, lse, x, log_prob, keep)."""
    keep = None
    if row_weight is not None:
        x, target = without_rows(x, target, row_weight, options.ignore_index)
        keep = row_weight != 0
    if is_class_index(target.dtype):
        x, index, keep = _class_rows(x, target, options)
        # Once the rows left out are 0: under a cap, nan would reach their gradient.
        x = transformed(x, options)
        log_prob = log_softmax(x)
        rows, divisors = _class_losses(x, log_prob, index, keep, weight, options)
    else:
        x = transformed(x, options)
        log_prob = log_softmax(x)
        rows, divisors = _probability_losses(x, log_prob, target, weight, options)
    lse = log_sum_exp(x, log_prob)
    if keep is not None:
        lse = select(keep, lse, 0.0)
    squares = scaled_square(number(options.z_loss, lse.dtype), lse)
    if options.z_loss != 0.0:
        rows = rows + squares
    rows = faithful(rows)
    if row_weight is not None:
        rows, squares, divisors = rows * row_weight, squares * row_weight, divisors * row_weight
    return rows, squares, total(divisors), lse, x, log_prob, keep


def _losses(x, target, weight, row_weight, options):
    """(loss, total_weight, lse, log p, 0 or nan for each row): what the gradients are made of."""
    rows, _, total_weight, lse, _, log_prob, _ = _rows(x, target, weight, row_weight, options)
    spoiled = select(rows == rows, 0.0, np.nan)
    return _reduced(rows, total_weight, options), total_weight, lse, log_prob, spoiled


def _statistics(x, target, weight, row_weight, options):
    """The same, then (z-loss, num_correct, entropy, predicted)."""
    best = target if is_class_index(target.dtype) else largest_class(target)
    found = _rows(x, target, weight, row_weight, options)
    losses, squares, total_weight, lse, x, log_prob, keep = found
    predicted = predicted_class(x, lse)
    fixed = without_gradient(log_prob)
    entropy = -class_sum(product(ops.exp(fixed), fixed))
    count = total(ops.ones_like(entropy))
    if keep is not None:
        predicted = select(keep, predicted, -1)
        entropy = select(keep, entropy, 0.0)
        count = total(keep.astype(x.dtype))
    loss, z_loss, entropy = [
        _reduced(value, divisor, options)
        for value, divisor in ((losses, total_weight), (squares, total_weight), (entropy, count))
    ]
    spoiled = select(losses == losses, 0.0, np.nan)
    correct = ops.logical_and(predicted >= 0, predicted == best.astype(mstype.int64))
    logged = total(correct.astype(mstype.int64)), entropy, predicted.astype(mstype.int32)
    return loss, total_weight, lse, log_prob, spoiled, z_loss, *logged


def _nll(x, target, weight, row_weight, options):
    """(loss, total_weight)."""
    if row_weight is not None:
        x, target = without_rows(x, target, row_weight, options.ignore_index)
    x, index, keep = _class_rows(x, target, options)
    rows, divisors = _picked_rows(x, index, keep, weight)
    if row_weight is not None:
        rows, divisors = rows * row_weight, divisors * row_weight
    total_weight = total(divisors)
    return _reduced(rows, total_weight, options), total_weight


def _unbatched(logits, options, value):
    """Per row a result loses the batch of one again."""
    if logits.ndim == 1 and options.reduction == "none":
        return total(value)  # unlike squeeze it has derivatives of every order
    return value


def _like_input(logits, options, value):
    """A result in logits' dtype."""
    return _unbatched(logits, options, value).astype(logits.dtype)


def _computed(formula, gradients, logits, target, weight, row_weight, options):
    """`formula` of the inputs in the dtype computed in."""
    x, target, weight = prepared(logits, target, weight)
    row_weight = _row_factor(logits, row_weight)
    if compiling():
        return formula(x, target, weight, row_weight, options)
    return recorded.call(formula, gradients, (x, target, weight, row_weight), options)


def cross_entropy(logits, target, weight, row_weight, options: Options, gradient_in_forward=False):
    """(loss, total_weight, lse): loss in logits' dtype, the others float32 (float64 for float64)."""
    logits = precision.begin(logits)
    gradients = recorded.cross_entropy
    found = _computed(_losses, gradients, logits, target, weight, row_weight, options)
    lse = found[2].squeeze(0) if logits.ndim == 1 else found[2]
    loss = _like_input(logits, options, found[0])
    precision.end()
    return loss, found[1], lse


def cross_entropy_with_stats(logits, target, weight, row_weight, options: Options):
    """As `protocol.Kernels` says."""
    logits = precision.begin(logits)
    gradients = recorded.cross_entropy
    found = _computed(_statistics, gradients, logits, target, weight, row_weight, options)
    loss, z_loss = _like_input(logits, options, found[0]), _like_input(logits, options, found[5])
    entropy = _unbatched(logits, options, found[7])
    lse, predicted = found[2], found[8]
    if logits.ndim == 1:
        lse, predicted = lse.squeeze(0), predicted.squeeze(0)
    # Gradients flow through loss and z-loss only.
    logged = without_gradient(found[1]), without_gradient(lse)
    precision.end()
    return loss, logged[0], logged[1], z_loss, found[6], entropy, predicted


def nll_loss(log_prob, target, weight, row_weight, options: Options):
    """(loss, total_weight): loss in log_prob's dtype, total_weight in the weight's, or log_prob's without one."""
    log_prob = precision.begin(log_prob)
    dtype = log_prob.dtype if weight is None else weight.dtype
    loss, total_weight = _computed(
        _nll, recorded.nll, log_prob, target, weight, row_weight, options
    )
    loss, total_weight = _like_input(log_prob, options, loss), total_weight.astype(dtype)
    precision.end()
    return loss, total_weight


def token_log_probs(logits, target, options: Options, entropy: bool):
    """(log-probabilities, entropies) of logits (N, C), in the dtype computed in."""
    logits = precision.begin(logits)
    x, target, _ = prepared(logits, target, None)
    x, index, keep = _class_rows(x, target, options)
    log_prob = log_softmax(transformed(x, options))
    chosen = select(keep, pick(log_prob, index), 0.0)
    entropies = zeros_like(chosen)
    if entropy:
        entropies = select(keep, -class_sum(product(ops.exp(log_prob), log_prob)), 0.0)
    precision.end()
    return chosen, entropies


def cross_entropy_value_and_grad(logits, target, weight, row_weight, options: Options):
    """(loss, total_weight, lse, grad_logits); reduction mean or sum."""

    def losses(logits, target, weight, row_weight):
        return cross_entropy(logits, target, weight, row_weight, options)

    # weights are passed: a graph does not differentiate a function that holds a tensor of its caller's.
    gradient = ops.value_and_grad(losses, 0, None, True)
    (loss, total_weight, lse), grad = gradient(logits, target, weight, row_weight)
    return loss, total_weight, lse, grad
