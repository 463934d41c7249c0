"""What the distillation losses are, in numpy and float64, beside `ms_ce.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _log_probs(logits: Array, temperature: float, softcap, logit_scale: float):
    """(log-probabilities (N, C), the derivative of what the softmax is taken of by the logits)."""
    x = logit_scale * np.asarray(logits, np.float64)
    slope = np.full_like(x, logit_scale / temperature)
    if softcap:
        slope = slope * (1 - np.tanh(x / softcap) ** 2)
        x = softcap * np.tanh(x / softcap)
    x = x / temperature
    x = x - x.max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return x - np.log(np.exp(x).sum(-1, keepdims=True)), slope


def _times(factor: Array, value: Array) -> Array:
    """factor·value, 0 where the factor is."""
    with np.errstate(invalid="ignore"):
        return np.where(factor == 0, 0.0, factor * value)


def _rows(student, teacher, beta, temperature, temperature_squared, softcap, logit_scale):
    """(divergences (N,), their gradients by the student's logits (N, C))."""
    log_q, slope = _log_probs(student, temperature, softcap, logit_scale)
    log_p, _ = _log_probs(teacher, temperature, softcap, logit_scale)
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(divide="ignore", invalid="ignore"):
        if beta == 0:
            loss, grad_x = _times(p, log_p - log_q).sum(-1), q - p
        else:
            log_m = log_p if beta == 1 else np.log(beta * p + (1 - beta) * q)
            share = 1.0 if beta == 1 else 1 - beta
            ratio = log_q - log_m
            loss = share * _times(q, ratio).sum(-1)
            if beta < 1:
                loss = loss + beta * _times(p, log_p - log_m).sum(-1)
            mean = _times(q, ratio).sum(-1, keepdims=True)
            grad_x = share * _times(q, ratio - mean)
    factor = temperature**2 if temperature_squared else 1.0
    return factor * loss, factor * grad_x * slope


def distillation(
    student_logits,
    teacher_logits,
    *,
    beta=0.0,
    temperature=1.0,
    temperature_squared=True,
    reduction="mean",
    row_weight=None,
    total_weight=None,
    softcap=None,
    logit_scale=1.0,
    grad_loss=1.0,
) -> tuple[Array, Array]:
    """(loss, the gradient of Σ grad_loss·loss by the student's logits) of logits (N, C)."""
    options = (beta, temperature, temperature_squared, softcap, logit_scale)
    rows = len(student_logits)
    weight = np.ones(rows) if row_weight is None else np.asarray(row_weight, np.float64).reshape(-1)
    keep = weight != 0
    student, teacher = (
        np.where(keep[:, None], np.asarray(each, np.float64), 0.0)
        for each in (student_logits, teacher_logits)
    )
    losses, slopes = _rows(student, teacher, *options)
    losses, slopes = np.where(keep, weight * losses, 0.0), weight[:, None] * slopes
    if reduction == "none":
        return losses, np.asarray(grad_loss, np.float64).reshape(-1, 1) * slopes
    divisor = np.float64(1.0)
    if reduction == "mean":
        divisor = np.float64(weight.sum() if total_weight is None else total_weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = losses.sum() / divisor
    return loss, grad_loss * (slopes / divisor if divisor else np.zeros_like(slopes))


def _coarse(log_q: Array, classes: Array, tail: bool) -> tuple[Array, Array]:
    """(log q (k + 1,) of the classes and of the rest, its Jacobian by what the softmax is taken of (k + 1, C))."""
    others = np.setdiff1d(np.arange(len(log_q)), classes)
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(log_q[others]).sum())
    outcomes, tail = np.append(log_q[classes], rest), tail and len(others) > 0
    jacobian = np.tile(-np.exp(log_q), (len(outcomes), 1))
    jacobian[np.arange(len(classes)), classes] += 1
    if np.isfinite(rest):
        jacobian[-1, others] += np.exp(log_q[others] - rest)
    return (outcomes, jacobian) if tail else (outcomes[:-1], jacobian[:-1])


def _outcome_terms(log_q: Array, log_p: Array, beta: float) -> tuple[float, Array]:
    """(the sum of the divergence's terms, its derivative by log q)."""
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(divide="ignore", invalid="ignore"):
        if beta == 0:
            return _times(p, log_p - log_q).sum(), -p
        if beta == 1:
            return _times(q, log_q - log_p).sum(), _times(q, log_q - log_p + 1)
        log_m = np.log(beta * p + (1 - beta) * q)
        of_student = (1 - beta) * _times(q, log_q - log_m)
        return (beta * _times(p, log_p - log_m) + of_student).sum(), of_student


def top_k_distillation(
    student_logits,
    teacher_log_probs,
    teacher_indices,
    *,
    beta=0.0,
    tail=True,
    temperature=1.0,
    temperature_squared=True,
    reduction="mean",
    row_weight=None,
    total_weight=None,
    softcap=None,
    logit_scale=1.0,
    grad_loss=1.0,
) -> tuple[Array, Array]:
    """(loss, the gradient of Σ grad_loss·loss by the student's logits) of logits (N, C) and (N, k) of the teacher."""
    rows = len(student_logits)
    weight = np.ones(rows) if row_weight is None else np.asarray(row_weight, np.float64).reshape(-1)
    factor = temperature**2 if temperature_squared else 1.0
    losses, slopes = np.zeros(rows), np.zeros_like(student_logits, dtype=np.float64)
    for n in np.flatnonzero(weight):
        log_q, slope = _log_probs(student_logits[n], temperature, softcap, logit_scale)
        outcomes, jacobian = _coarse(log_q, teacher_indices[n], tail)
        log_p = np.asarray(teacher_log_probs[n], np.float64)
        if tail and len(log_p) < len(log_q):
            with np.errstate(divide="ignore"):
                log_p = np.append(log_p, np.log(max(0.0, 1 - np.exp(log_p).sum())))
        total, by_outcome = _outcome_terms(outcomes, log_p, beta)
        losses[n] = weight[n] * factor * total
        slopes[n] = weight[n] * factor * (by_outcome @ jacobian) * slope
    if reduction == "none":
        return losses, np.asarray(grad_loss, np.float64).reshape(-1, 1) * slopes
    divisor = 1.0
    if reduction == "mean":
        divisor = weight.sum() if total_weight is None else total_weight
    return losses.sum() / divisor, grad_loss * slopes / divisor
