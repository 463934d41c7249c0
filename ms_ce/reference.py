"""What the losses are: float64 numpy, written for reading, never for speed.

Every backend is compared with this file and this file with nothing of ours: its tests are finite differences
and constants worked out by hand (tests/unit/test_reference.py). It imports numpy only.

Notation: logits x, scaled and capped logits x' = cap·tanh(scale·x / cap), lse = log Σ_c exp(x'_c), p = exp(x' - lse),
class weight w (1 where None), label smoothing ε. A class-index target y stands for the row q = onehot(y); then for
class indices and probabilities alike

    row loss  = Σ_c w_c·q'_c·(lse - x'_c) + z·lse²,     q' = (1-ε)·q + ε/C

and a class whose factor w_c·q'_c is 0 and whose logit is -inf is excluded: it contributes 0 to the loss and to every
derivative, unless the row has no softmax (a logit of nan or +inf, or none but -inf): then its loss is nan, whatever its
factors are. The row weight r (1 where None) multiplies the row loss; where it is 0, or the class index is ignore_index,
the row contributes nothing. The mean divides by Σ_n r_n·w[y_n] for class indices, by Σ_n r_n for probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Result(NamedTuple):
    """The loss and what a trainer may want to log beside it. `z_loss` is already part of `loss`."""

    loss: Array
    total_weight: Array
    lse: Array
    z_loss: Array
    num_correct: np.int64
    entropy: Array
    predicted: Array  # -1 where the row does not count or its softmax is no number


class Gradients(NamedTuple):
    """Derivatives of the loss; `target` is None for class indices, `weight` is None without weights."""

    logits: Array
    target: Array | None
    weight: Array | None


@dataclass(frozen=True)
class _Rows:
    """A loss laid out as rows (n, C), with everything the formulas need."""

    x: Array  # scaled and capped logits x'
    slope: Array  # dx'/dx
    curvature: Array  # d²x'/dx²
    q: Array  # q', smoothed target
    w: Array  # weights (C,)
    factor: Array  # w·q'; 0 for the other classes of a class index, whatever they weigh
    lse: Array  # (n,)
    p: Array  # softmax
    distance: (
        Array  # lse - x', from the maximum: a common offset costs no places; 0 of excluded classes
    )
    keep: Array  # (n,) 1 where the row counts
    row_weight: Array  # (n,) r, 0 where the row does not count
    divisor: float  # of the mean; 1 for none and sum
    target_weight: Array  # (n,) w[y], or 1 for probabilities
    hard: Array | None  # class indices with 0 in ignored rows, None for probabilities


def to_rows(x: Array) -> Array:
    """(N, C, d1…dK), (N, C) or (C) as rows (N·Πd, C)."""
    x = np.asarray(x)
    return x[None] if x.ndim == 1 else np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def from_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `to_rows` for an array of logits' `shape`."""
    if len(shape) == 1:
        return rows.reshape(shape)
    moved = (shape[0], *shape[2:], shape[1])
    return np.moveaxis(rows.reshape(moved), -1, 1)


def rows_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the unreduced loss: logits' shape without the class axis."""
    return () if len(shape) == 1 else (shape[0], *shape[2:])


def _weighted_sum(factor: Array, value: Array) -> Array:
    """Σ_c factor·value, where factor 0 contributes 0 whatever the value is."""
    with np.errstate(invalid="ignore"):
        return np.where(factor == 0, 0.0, factor * value).sum(axis=-1)


def _log_sum_exp(x: Array) -> tuple[Array, Array, Array]:
    """(lse, softmax, lse - x)."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        top = x.max(axis=-1)
        shifted = np.exp(x - top[:, None])
        total = shifted.sum(axis=-1)
        log_total = np.log(total)
        return top + log_total, shifted / total[:, None], log_total[:, None] - (x - top[:, None])


def _prepare(
    given, ignore_index=-100, reduction="mean", label_smoothing=0.0, softcap=None, logit_scale=1.0
) -> _Rows:
    """`given` are logits, target, weight and row_weight."""
    logits, target, weight, row_weight = given
    if ignore_index is None:
        ignore_index = -100
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    raw = to_rows(np.asarray(logits, np.float64))
    classes = raw.shape[1]
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    target = np.asarray(target)
    given = np.ones(len(raw)) if row_weight is None else np.asarray(row_weight, np.float64)
    given = given.reshape(-1)
    counts = given != 0
    if np.issubdtype(target.dtype, np.integer):
        index = target.reshape(-1).astype(np.int64)
        ignored = (index == ignore_index) | ~counts
        hard = np.where(ignored, 0, index)
        if np.any((hard < 0) | (hard >= classes)):
            raise ValueError(f"class index outside [0, {classes})")
        keep, target_weight = (~ignored).astype(np.float64), np.where(ignored, 0.0, w[hard])
        q = np.zeros((len(hard), classes))
        q[np.arange(len(hard)), hard] = 1.0
    else:
        hard, keep = None, counts.astype(np.float64)
        q, target_weight = to_rows(target.astype(np.float64)), np.ones(len(raw))
        q = np.where(counts[:, None], q, 0.0)
    own_weight = np.where(keep > 0, given, 0.0)
    raw = np.where(keep[:, None] > 0, raw, 0.0)
    if softcap:
        tanh = np.tanh(logit_scale * raw / softcap)
        x, slope = softcap * tanh, logit_scale * (1 - tanh**2)
        curvature = -2 * tanh * slope * logit_scale / softcap
    else:
        x, slope, curvature = logit_scale * raw, np.full_like(raw, logit_scale), np.zeros_like(raw)
    lse, p, distance = _log_sum_exp(x)
    smooth = (1 - label_smoothing) * q + label_smoothing / classes
    divisor = float((own_weight * target_weight).sum()) if reduction == "mean" else 1.0
    with np.errstate(invalid="ignore"):
        factor = np.where((smooth == 0) & (hard is not None), 0.0, w * smooth)
    excluded = (factor == 0) & np.isneginf(x) & ~np.isnan(lse)[:, None]
    distance = np.where(excluded, 0.0, distance)
    rows = (x, slope, curvature, smooth, w, factor, lse, p, distance, keep, own_weight)
    return _Rows(*rows, divisor, target_weight, hard)


def _reduce(rows: Array, reduction: str, divisor: float, shape: tuple[int, ...]) -> Array:
    """The one place where row losses become the result; a mean over nothing is nan."""
    if reduction == "none":
        return rows.reshape(rows_shape(shape))
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows.sum() / np.float64(divisor)


def _row_losses(r: _Rows, z_loss: float) -> tuple[Array, Array]:
    with np.errstate(invalid="ignore"):
        loss = r.row_weight * (r.factor * r.distance).sum(-1)
        squares = r.row_weight * z_loss * r.lse**2 if z_loss else np.zeros_like(r.lse)
    return np.where(r.keep > 0, loss, 0.0), np.where(r.keep > 0, squares, 0.0)


def cross_entropy(
    logits,
    target,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    *,
    z_loss=0.0,
    softcap=None,
    logit_scale=1.0,
    row_weight=None,
) -> Result:
    """Cross entropy of logits (N, C, d1…dK) with class indices (N, d1…dK) or probabilities (N, C, d1…dK)."""
    shape = np.shape(logits)
    given = (logits, target, weight, row_weight)
    r = _prepare(given, ignore_index, reduction, label_smoothing, softcap, logit_scale)
    loss, squares = _row_losses(r, z_loss)
    entropy = np.where(r.keep > 0, _weighted_sum(r.p, r.distance), 0.0)
    best = r.hard if r.hard is not None else to_rows(np.asarray(target, np.float64)).argmax(-1)
    predicted = np.where((r.keep > 0) & np.isfinite(r.lse), r.x.argmax(-1), -1).astype(np.int32)
    return Result(
        loss=_reduce(loss + squares, reduction, r.divisor, shape),
        total_weight=(r.row_weight * r.target_weight).sum(),
        lse=np.where(r.keep > 0, r.lse, 0.0).reshape(rows_shape(shape)),
        z_loss=_reduce(squares, reduction, r.divisor, shape),
        num_correct=np.int64((predicted == best).sum()),
        entropy=_reduce(entropy, reduction, r.keep.sum() if reduction == "mean" else 1.0, shape),
        predicted=predicted.reshape(rows_shape(shape)),
    )


def _upstream(grad_loss, r: _Rows) -> Array:
    """Gradient that arrives at each row's loss before its weight: 0 where it is ignored or the mean has no weight."""
    if r.divisor == 0:
        return np.zeros(len(r.keep))
    upstream = np.broadcast_to(np.asarray(grad_loss, np.float64).reshape(-1), r.keep.shape)
    return upstream * (r.row_weight / r.divisor)


def _through_divisor(grad_loss, losses: Array, r: _Rows) -> Array:
    """What the class weights get by their sum, a mean's divisor: nothing with probabilities."""
    if r.hard is None or r.divisor == 0:
        return np.zeros_like(r.w)
    counts = np.bincount(r.hard, weights=r.row_weight, minlength=len(r.w))
    return -float(np.asarray(grad_loss)) * losses.sum() / r.divisor**2 * counts


def _passes(r: _Rows) -> Array:
    """(n, 1), where a row's logits have a gradient: 0 stands elsewhere, beside nan too."""
    return (r.keep[:, None] > 0) & (r.divisor != 0)


def cross_entropy_grad(
    logits, target, weight=None, *, z_loss=0.0, row_weight=None, grad_loss=1.0, **options
) -> Gradients:
    """Derivatives of Σ grad_loss·loss with respect to logits, probability target and weight; options as there."""
    shape = np.shape(logits)
    r = _prepare((logits, target, weight, row_weight), **options)
    g, factor = _upstream(grad_loss, r)[:, None], r.factor
    with np.errstate(invalid="ignore"):
        mass = factor.sum(-1, keepdims=True)
        grad_x = g * (mass * r.p - factor)
        if z_loss:
            grad_x = grad_x + g * 2 * z_loss * r.lse[:, None] * r.p
        grad_logits = np.where(_passes(r), grad_x * r.slope, 0.0)
        grad_target = None
        if r.hard is None:
            scale = (1 - options.get("label_smoothing", 0.0)) * g * r.w
            grad_target = from_rows(np.where(scale == 0, 0.0, scale * r.distance), shape)
        grad_weight = None
        if weight is not None:
            grad_weight = _weighted_sum((g * r.q).T, r.distance.T)
            if options.get("reduction", "mean") == "mean":
                losses = np.add(*_row_losses(r, z_loss))
                grad_weight = grad_weight + _through_divisor(grad_loss, losses, r)
    return Gradients(from_rows(grad_logits, shape), grad_target, grad_weight)


def cross_entropy_hvp(
    direction, logits, target, weight=None, *, z_loss=0.0, row_weight=None, grad_loss=1.0, **options
) -> Array:
    """Hessian with respect to logits of Σ grad_loss·loss, times `direction` (of the logits' shape)."""
    shape = np.shape(logits)
    r = _prepare((logits, target, weight, row_weight), **options)
    g, factor = _upstream(grad_loss, r)[:, None], r.factor
    d = to_rows(np.asarray(direction, np.float64))
    dx = d * r.slope
    mass = factor.sum(-1, keepdims=True)
    mean = (r.p * dx).sum(-1, keepdims=True)
    z_slope = 2 * z_loss * r.lse[:, None]
    grad_x = g * ((mass + z_slope) * r.p - factor)
    grad_dx = g * ((mass + z_slope) * r.p * (dx - mean) + 2 * z_loss * r.p * mean)
    out = np.where(_passes(r), grad_dx * r.slope + grad_x * r.curvature * d, 0.0)
    return from_rows(out, shape)


def token_log_probs(logits, target, **options) -> tuple[Array, Array]:
    """(log p_y, entropy -Σ_c p_c·log p_c) of each row, 0 where it is ignored; the options are cross_entropy's."""
    rows = cross_entropy(logits, target, reduction="none", **options)
    return -rows.loss, rows.entropy


def entropy_grad(
    logits, target, grad_entropy, ignore_index=-100, *, softcap=None, logit_scale=1.0
) -> Array:
    """Derivative of Σ grad_entropy·entropy by the logits: -grad_entropy·p·(log p + entropy)·dx'/dx."""
    r = _prepare((logits, target, None, None), ignore_index, "none", 0.0, softcap, logit_scale)
    shape = np.shape(logits)
    with np.errstate(invalid="ignore"):
        share = r.p * (-r.distance - _weighted_sum(r.p, -r.distance)[:, None])
    g = np.broadcast_to(grad_entropy, rows_shape(shape)).reshape(-1, 1) * r.keep[:, None]
    return from_rows(np.where((r.p == 0) | (g == 0), 0.0, -g * share * r.slope), shape)


def lse_grad(logits, *, softcap=None, logit_scale=1.0) -> Array:
    """Derivative of each row's lse with respect to its logits: the softmax, without scale and cap."""
    shape = np.shape(logits)
    anything = np.zeros(rows_shape(shape), np.int64)
    r = _prepare((logits, anything, None, None), -1, "none", 0.0, softcap, logit_scale)
    return from_rows(r.p * r.slope, shape)


def _nll_distances(r: _Rows) -> Array:
    """-log_prob_y of each row; 0 where the target is excluded, and where the row does not count."""
    chosen = r.x[np.arange(len(r.x)), r.hard]
    return np.where((r.target_weight == 0) & np.isneginf(chosen), 0.0, -chosen)


def nll_loss(
    log_prob, target, weight=None, ignore_index=-100, reduction="mean", *, row_weight=None
) -> tuple[Array, Array]:
    """(loss, total_weight) with row loss -r·w_y·log_prob_y."""
    r = _prepare((log_prob, target, weight, row_weight), ignore_index, reduction)
    weights = r.row_weight * r.target_weight
    with np.errstate(invalid="ignore"):
        rows = weights * _nll_distances(r)
    return _reduce(rows, reduction, r.divisor, np.shape(log_prob)), weights.sum()


def nll_loss_grad(
    log_prob,
    target,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    *,
    row_weight=None,
    grad_loss=1.0,
) -> Gradients:
    """Derivatives of Σ grad_loss·nll_loss with respect to log_prob and weight."""
    r = _prepare((log_prob, target, weight, row_weight), ignore_index, reduction)
    g, grad_weight = _upstream(grad_loss, r), None
    if weight is not None:
        with np.errstate(invalid="ignore"):
            distances = _nll_distances(r)
            grad_weight = _weighted_sum(r.q.T, g * distances)
            if reduction == "mean":
                losses = r.row_weight * r.target_weight * distances
                grad_weight = grad_weight + _through_divisor(grad_loss, losses, r)
    return Gradients(from_rows(-g[:, None] * r.factor, np.shape(log_prob)), None, grad_weight)


class LinearGradients(NamedTuple):
    """Derivatives of the linear loss; None without a bias, for class indices, without class weights."""

    input: Array
    linear_weight: Array
    linear_bias: Array | None
    target: Array | None
    weight: Array | None


def _shifted(hidden: Array, target: Array) -> tuple[Array, Array]:
    """Position s of each sequence beside the target of position s + 1."""
    rows = hidden.ndim - 1
    after = (*[slice(None)] * (rows - 1), slice(1, None))
    return hidden[..., :-1, :], np.asarray(target)[after]


def _as_rows(hidden, linear_weight, target, linear_bias, row_weight, shift: bool):
    """(hidden rows, logits, target rows, row weights, leading shape), in float64."""
    hidden, target = np.asarray(hidden, np.float64), np.asarray(target)
    if shift:
        hidden, target = _shifted(hidden, target)
    if row_weight is not None:
        row_weight = np.asarray(row_weight, np.float64)
        row_weight = (row_weight[..., 1:] if shift else row_weight).reshape(-1)
    lead, probabilities = hidden.shape[:-1], target.ndim == hidden.ndim
    rows = hidden.reshape(-1, hidden.shape[-1])
    if row_weight is not None:
        rows = np.where(row_weight[:, None] != 0, rows, 0.0)
    logits = rows @ np.asarray(linear_weight, np.float64).T
    if linear_bias is not None:
        logits = logits + np.asarray(linear_bias, np.float64)
    return rows, logits, target.reshape(logits.shape if probabilities else -1), row_weight, lead


def linear_cross_entropy(
    input, linear_weight, target, linear_bias=None, weight=None, *, shift=False, **options
) -> Result:
    """`cross_entropy` of input·Wᵀ + b, input (…, H) with targets (…) or (…, C); options are cross_entropy's."""
    tensors = (input, linear_weight, target, linear_bias, options.pop("row_weight", None))
    _, logits, rows, row_weight, lead = _as_rows(*tensors, shift)
    result = cross_entropy(logits, rows, weight, row_weight=row_weight, **options)
    names = ["lse", "predicted"]
    if options.get("reduction") == "none":
        names += ["loss", "z_loss", "entropy"]
    return result._replace(**{name: getattr(result, name).reshape(lead) for name in names})


def linear_cross_entropy_grad(
    input, linear_weight, target, linear_bias=None, weight=None, *, shift=False, **options
) -> LinearGradients:
    """Derivatives of Σ grad_loss·loss: with g that of the logits, g·W, gᵀ·input and Σ g; target's and weight's are
    cross_entropy's own."""
    tensors = (input, linear_weight, target, linear_bias, options.pop("row_weight", None))
    rows, logits, targets, row_weight, lead = _as_rows(*tensors, shift)
    derivatives = cross_entropy_grad(logits, targets, weight, row_weight=row_weight, **options)
    grad, grad_target, grad_weight = derivatives
    grad_rows = (grad @ np.asarray(linear_weight, np.float64)).reshape(*lead, -1)
    if grad_target is not None:
        grad_target = grad_target.reshape(*lead, -1)
    if shift:
        first = np.zeros_like(grad_rows[..., :1, :])
        grad_rows = np.concatenate([grad_rows, first], axis=-2)
        if grad_target is not None:
            first = np.zeros_like(grad_target[..., :1, :])
            grad_target = np.concatenate([first, grad_target], axis=-2)
    grad_bias = None if linear_bias is None else grad.sum(0)
    return LinearGradients(grad_rows, grad.T @ rows, grad_bias, grad_target, grad_weight)
