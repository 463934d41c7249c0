"""Distillation without logits from what is stored of a teacher: the log-probabilities of its k likeliest classes."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from ms_ce import _checks, _linear
from ms_ce.backend import resolved, top_k_form
from ms_ce.distillation import (
    checked_beta,
    checked_model,
    finished,
    known_lead,
    planned,
    shares,
    summed,
)
from ms_ce.functional import constant
from ms_ce.ops import precision
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import compiling, known_shape
from ms_ce.ops.precision import of_known


def linear_top_k_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_log_probs: Tensor,
    teacher_indices: Tensor,
    student_bias: Tensor | None = None,
    *,
    beta: float = 0.0,
    tail: bool = True,
    temperature: float = 1.0,
    temperature_squared: bool = True,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_bytes: int | None = None,
    gradient_in_forward: bool | str = "auto",
    backend: str = "auto",
) -> Tensor:
    r"""`linear_distillation_loss` from what a teacher said beforehand: log-probabilities of its k likeliest classes.

    The divergences are those of `linear_distillation_loss` between two distributions over k + 1 outcomes: the k
    classes, and all others as one, of probability 1 - Σ of the k for teacher and student alike. That is no more than
    the divergence over all classes, and equal to it where k is their number. Without `tail` the sums have the k
    classes only: with beta = 0, Σ_k p_k·log(p_k / q_k), whose gradient by the logits is q·Σ p_k - p.

    Args:
        student_hidden (Tensor), student_weight (Tensor), student_bias (Tensor): as in `linear_distillation_loss`.
        teacher_log_probs (Tensor): (…, k) of student_hidden's leading shape, any float dtype: log-probabilities over
            the whole vocabulary, at the temperature given here; -inf for a place that stands empty. A constant.
        teacher_indices (Tensor): (…, k), int32 or int64: their classes, no class twice in a row.

    Keyword Args:
        beta (float): as in `linear_distillation_loss`. Default 0.
        tail (bool): whether the other classes count, as one. Default True.
        temperature (float), temperature_squared (bool), reduction (str): as there.
        row_weight (Tensor), total_weight (number, Tensor): as there.
        softcap (float), logit_scale (float): of the student.
        gradient_in_forward (bool), backend (str): as there.
        chunk_bytes (int): what the logits of a chunk may take. Default: as there.

    Returns:
        Tensor of student_hidden's dtype: a scalar, or with 'none' of its leading shape.

    Raises:
        TypeError, ValueError: as `linear_distillation_loss`; a class outside [0, num_classes), or twice in a row,
            raises in PyNative and makes the loss nan in a compiled graph.
        NotImplementedError: for a second derivative.

    Example:
        >>> import mindspore, ms_ce
        >>> student, table = mindspore.Tensor([[1.0, 0.0, 0.0]]), mindspore.ops.eye(3)
        >>> log_probs = mindspore.ops.log(mindspore.Tensor([[0.7]]))
        >>> loss = ms_ce.linear_top_k_distillation_loss(student, table, log_probs, mindspore.Tensor([[0]]))
        >>> print(f"{float(loss):.4f}")  # 0.7·log(0.7 / 0.5761) + 0.3·log(0.3 / 0.4239)
        0.0326

    Source: as `linear_distillation_loss`.
    """
    op = "linear_top_k_distillation_loss"
    values, more = (
        (temperature, softcap, logit_scale),
        (chunk_bytes, False, (), gradient_in_forward),
    )
    plan = resolved(planned(op, backend, values, reduction, *more))
    beta, tail = checked_beta(op, beta), _checks.check_flag(op, "tail", tail)
    temperature_squared = _checks.check_flag(op, "temperature_squared", temperature_squared)
    student = (student_hidden, student_weight, student_bias)
    teacher = (teacher_log_probs, teacher_indices)
    checked_model(op, "student", *student)
    check_top_k(op, student, teacher, row_weight, student_weight.shape[0])
    factor = temperature * temperature if temperature_squared else 1.0
    row_weight, divisor = shares(op, reduction, factor, student_hidden, row_weight, total_weight)
    plan = summed(plan)
    student_hidden = precision.begin(student_hidden)
    form = top_k_form(plan.backend)
    student = (student_hidden, student_weight, student_bias)
    later = form.may_scale_later(student_hidden.dtype)
    wanted = _linear.gradients(plan.gradient_in_forward, later, False, (), *student)
    teacher, row_weight = constant_top_k(teacher), constant(row_weight)
    loss = form.top_k_distillation(plan, wanted, beta, tail, student, teacher, row_weight)
    loss = finished(loss, student_hidden.dtype, divisor)
    precision.end()
    return loss


def _check_teacher(op: str, classes: int, dtypes, ranks, lead, log_probs, indices) -> None:
    """What is known of the teacher's log-probabilities and indices."""
    _checks.refuse_unknown_rank(op, teacher_log_probs=ranks[0], teacher_indices=ranks[1])
    if dtypes[0] not in _checks.FLOATS:
        raise TypeError(
            f"{op}: teacher_log_probs must have dtype float16, bfloat16, float32 or float64, got "
            f"{str(dtypes[0]).lower()}"
        )
    if dtypes[1] not in (mstype.int32, mstype.int64):
        raise TypeError(
            f"{op}: teacher_indices must have dtype int32 or int64, got {str(dtypes[1]).lower()}"
        )
    if lead is not None and log_probs is not None and log_probs[:-1] != lead:
        raise ValueError(
            f"{op}: teacher_log_probs must have shape {(*lead, 'k')} to match student_hidden, got {log_probs}"
        )
    if log_probs is not None and not 1 <= log_probs[-1] <= classes:
        raise ValueError(
            f"{op}: teacher_log_probs must have from 1 to {classes} classes on its last axis, got {log_probs}"
        )
    if log_probs is not None and indices is not None and indices != log_probs:
        raise ValueError(
            f"{op}: teacher_indices must have shape {log_probs} to match teacher_log_probs, got {indices}"
        )


def check_top_k(
    op: str,
    student: tuple,
    teacher: tuple,
    row_weight: Tensor | None,
    classes: int,
    parts: int = 1,
) -> None:
    """Everything that can be known of the teacher's (log-probabilities, indices) and of the rows' weights beside a
    checked student of so many classes in all; `parts` as in `check_models`."""
    _check_tensors(op, student[0], *teacher, row_weight, classes, parts)
    if not compiling():
        _refuse_classes(op, teacher[1], row_weight, classes)


@of_known
def _check_tensors(op, hidden, log_probs, indices, row_weight, classes, parts) -> None:
    log_probs = _checks.check_tensor(op, "teacher_log_probs", log_probs)
    indices = _checks.check_tensor(op, "teacher_indices", indices)
    lead = known_lead(hidden, parts)
    shapes = (lead, known_shape(log_probs), known_shape(indices))
    dtypes, ranks = (log_probs.dtype, indices.dtype), (log_probs.ndim, indices.ndim)
    _check_teacher(op, classes, dtypes, ranks, *shapes)
    if row_weight is not None:
        _checks.check_row_weight(op, row_weight, hidden.ndim - 1, lead)


def constant_top_k(teacher: tuple) -> tuple:
    """The teacher's log-probabilities and indices without a gradient."""
    return without_gradient(teacher[0]), without_gradient(teacher[1])


def _refuse_classes(op, indices, row_weight, classes):
    """In rows that count."""
    host = indices.asnumpy()
    counts = np.ones(host.shape[:-1], bool)
    if row_weight is not None:
        counts = row_weight.astype(mstype.float32).asnumpy() != 0
    bad = ((host < 0) | (host >= classes)) & counts[..., None]
    if bad.any():
        position = tuple(int(place) for place in np.argwhere(bad)[0])
        raise ValueError(
            f"{op}: teacher_indices must be in [0, {classes}), got {int(host[position])} at position {position}"
        )
    ordered = np.sort(host, -1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & counts[..., None]
    if twice.any():
        *row, place = (int(each) for each in np.argwhere(twice)[0])
        raise ValueError(
            f"{op}: teacher_indices must hold no class twice in a row, got {int(ordered[(*row, place)])} twice in row "
            f"{tuple(row)}"
        )
