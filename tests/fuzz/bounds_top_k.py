"""How far from the float64 reference a divergence from stored log-probabilities may be.

Outcomes are the k classes and, where it counts, the tail: all other classes as one. With p of the teacher and q of the
student, a loss is a sum of their terms, and the gradient of a logit is g - q·Σ g with g the derivative of its
outcome's term by log q; one of the tail's has its share of that. Of each term the errors are those of p, absolute, and
of log q times its derivatives by them.
"""

from __future__ import annotations

import numpy as np

from tests.fuzz.bounds import ROUNDING, ROUNDINGS, Answer, finite
from tests.fuzz.bounds_distillation import NOTHING, Model, counts_of, placed_answers
from tests.fuzz.bounds_linear import Rows
from tests.fuzz.draw import Array
from tests.fuzz.draw_top_k import TopKLoss
from tests.kernel.library import to_float64
from tests.kernel.operations import load_reference

_reference = load_reference("reference_distillation")


class _Teacher:
    """p of the outcomes, (n, k + 1), and how far off it may be: the kernel has it in float64, whatever the student's
    dtype. Of the tail that is far of itself where 1 - Σ p cancels."""

    def __init__(self, log: Array, classes: int, precise: float):
        p = np.exp(log)
        # Whatever is added after it, an addition is off by a rounding of the sum.
        of_k = precise * p * (1 + finite(log))
        unsure = of_k.sum(-1) + precise * (1 + log.shape[-1] / ROUNDINGS) * (1 + p.sum(-1))
        rest = 1.0 - p.sum(-1)
        if log.shape[-1] == classes:
            rest, unsure = np.zeros_like(rest), np.zeros_like(rest)
        self.p = np.column_stack((p, np.maximum(rest, 0.0)))
        self.log = np.log(self.p)
        self.log[:, :-1] = log
        self.off = np.column_stack((of_k, np.where(rest < -2 * unsure, 0.0, unsure)))
        # What log p may be off by, and the largest that it may be, the tail's p near to 0 having none.
        most = np.log(self.p + self.off)
        self.far = np.maximum(finite(self.log), finite(most))
        of_log = precise * (1 + finite(log))
        of_rest = np.where(rest > 4 * unsure, 2 * unsure / np.maximum(rest, 1e-300), np.inf)
        of_rest = np.where(self.off[:, -1] == 0, 0.0, of_rest)
        self.of_log = np.column_stack((of_log, of_rest))


class _Student:
    """log q of the outcomes, and how far off they may be. The tail's is made of the others' exponentials."""

    def __init__(self, model: Model, chosen: Array, indices: Array, unit: float):
        tail = np.log(np.where(chosen, 0.0, model.p).sum(-1, keepdims=True))
        largest = np.where(chosen, -np.inf, model.log).max(-1, keepdims=True)
        below = np.where(
            chosen, 0.0, np.exp(model.log - np.where(np.isfinite(largest), largest, 0.0))
        )
        exact = largest + np.log(below.sum(-1, keepdims=True))  # where all their q are 0
        tail = np.where(np.isfinite(largest), exact, tail)
        of_tail = unit * (finite(tail) + model.moved) + 2 * model.furthest
        self.log = np.concatenate((np.take_along_axis(model.log, indices, -1), tail), -1)
        self.off = np.concatenate((np.take_along_axis(model.off, indices, -1), of_tail), -1)
        self.off = np.expm1(2 * self.off)
        self.q = np.exp(self.log)


def _terms(student: _Student, teacher: _Teacher, beta: float, unit: float) -> tuple[Array, ...]:
    """Of the outcomes: the errors of their terms of the loss, g, and its errors."""
    log_q, off_q, q = student.log, student.off, student.q
    log_p, p, off_p = teacher.log, teacher.p, teacher.off
    if beta == 0:
        size = finite(_reference._times(p, log_p - log_q))
        of_loss = unit * size + p * off_q + off_p * (1 + teacher.far + finite(log_q))
        return of_loss, -p, off_p + unit * p
    if beta == 1:
        ratio = log_q - log_p
        g = _reference._times(q, ratio)
        of_log_p = np.where(q == 0, 0.0, teacher.of_log)
        error = q * ((1 + finite(ratio)) * off_q + (1 + off_q) * of_log_p) + unit * finite(g)
        return error, g + q, error + q * (off_q + unit)
    share = 1 - beta
    m = beta * p + share * q
    log_m = np.log(m)
    to_p, to_q = finite(log_p - log_m), finite(log_q - log_m)
    g = share * _reference._times(q, log_q - log_m)
    of_m = unit * (1 + finite(log_m)) * m
    # By log q: share·q·(log(q / m) + 1 - share·q / m); by p: -beta·share·q / m.
    of_g = share * q * (1 + to_q) * off_q + beta * off_p + unit * finite(g) + of_m
    far = np.maximum(to_p, finite(teacher.far - log_m))
    of_p = beta * (off_p * (1 + far) + p * off_q + unit * p * to_p) + of_m
    return of_g + of_p, g, of_g


class _Outcomes:
    """Of every row what its loss and its gradient by the student's logits are off by."""

    def __init__(
        self,
        drawn: TopKLoss,
        student: Model,
        log: Array,
        indices: Array,
        precise: float,
        unit: float,
    ):
        n, classes = student.log.shape
        self.beta, self.indices = drawn.options["beta"], indices
        self.model, self.unit = student, unit
        self.chosen = np.zeros((n, classes), bool)
        np.put_along_axis(self.chosen, indices, True, -1)
        self.teacher = _Teacher(log, classes, precise)
        self.student = _Student(student, self.chosen, indices, unit)
        self.tail = drawn.form.tail and log.shape[-1] < classes
        parts = _terms(self.student, self.teacher, self.beta, unit)
        self.of_loss, self.g, self.of_g = (part if self.tail else part[:, :-1] for part in parts)

    def _counted(self, values: Array) -> Array:
        return values if self.tail else values[:, :-1]

    def losses(self, least: float) -> Array:
        logs = 1 + finite(self._counted(self.student.log)) + self._counted(self.teacher.far)
        return (self.of_loss + least * logs).sum(-1)

    def slopes(self, least: float) -> tuple[Array, Array]:
        """(what they are off by, the sizes of their terms), by the logits as transformed."""
        g, whole = finite(self.g), finite(self.g.sum(-1, keepdims=True))
        of_whole = self.of_g.sum(-1, keepdims=True) + self.unit * g.sum(-1, keepdims=True)
        outcome_q, off = self._counted(self.student.q), self._counted(self.student.off)
        size = g + outcome_q * whole
        error = self.of_g + outcome_q * (off * whole + of_whole) + self.unit * size
        p, off_p = self.model.p, self.model.relative
        every = (p * (off_p * whole + of_whole + self.unit * whole), p * whole)
        if self.tail:
            log_tail = self.student.log[:, -1:]
            share = np.where(np.isfinite(log_tail), np.exp(self.model.log - log_tail), 0.0)
            relative = np.expm1(2 * (self.model.off + self.student.off[:, -1:]))
            every = (
                share * (error[:, -1:] + size[:, -1:] * relative + self.unit * size[:, -1:]),
                share * size[:, -1:],
            )
        for made, own in zip(every, (error, size), strict=True):
            np.put_along_axis(made, self.indices, own[:, : self.indices.shape[-1]], -1)
        return every[0] + least * (1 + every[1]), every[1]

    def known(self, counts: Array, nothing: float) -> bool:
        """Whether of the rows that count no infinite logarithm stands beside a probability that may be 0."""
        q, p = self._counted(self.student.q), self._counted(self.teacher.p)
        log_q, log_p = self._counted(self.student.log), self._counted(self.teacher.log)
        off_p, of_log = self._counted(self.teacher.off), self._counted(self.teacher.of_log)
        unsure = np.zeros(q.shape, bool)
        if self.beta == 0:
            unsure = np.isinf(log_q) & (p + off_p > 0) & (p <= np.maximum(nothing, off_p))
        elif self.beta == 1:
            unsure = (q > 0) & (q < nothing) & np.isinf(log_p)
            unsure |= (log_q > -np.inf) & np.isinf(of_log)
        return not np.any(unsure[counts != 0])


def top_k_answers(
    drawn: TopKLoss, composed: bool = False, coarse: float = 1.0, least_p: float = 0.0
) -> dict[str, Answer]:
    """Loss and gradients by name; "own" are those for an upstream of 1. Gradients that are infinite beside an infinite
    loss are not among them: what a sum makes of them depends on its order."""
    with np.errstate(all="ignore"):
        options, top = drawn.options, drawn.form.top
        student = Rows(drawn.exact_layer, drawn, composed)
        unit = coarse * ROUNDINGS * ROUNDING[drawn.form.dtype]
        precise = unit if composed else ROUNDINGS * 2.0**-53
        log_probs, indices, invalid = (
            _rows_of(each, drawn.form.shift, top)
            for each in (to_float64(drawn.teacher_log_probs), drawn.teacher_indices, drawn.invalid)
        )
        invalid = invalid.any(-1, keepdims=True)
        log_probs = np.where(invalid, np.nan, log_probs)
        indices = np.where(invalid, np.arange(top), indices)
        model, counts = Model(student, options, unit), counts_of(student)
        of = _Outcomes(drawn, model, log_probs, indices, precise, unit)
        least = max(student.least, least_p)
        if not of.known(counts, NOTHING["float64" if least < 1e-100 else "float32"]):
            return {}
        given = {
            **options, "temperature": 1.0, "reduction": "none", "row_weight": student.row_weight,
        }  # fmt: skip
        losses, slopes = _reference.top_k_distillation(
            student.logits, log_probs, indices, tail=drawn.form.tail, **given
        )
        off, size = of.slopes(least)
        off = abs(options["logit_scale"]) * (off + model.steep * size)
        answers = placed_answers(
            drawn,
            student,
            Answer(losses, counts * finite(of.losses(least))),
            Answer(slopes, counts[:, None] * finite(off)),
            composed,
        )
        return {"loss": answers["loss"]} if np.any(np.isinf(slopes)) else answers


def _rows_of(stored: Array, shift: bool, top: int) -> Array:
    """The rows that are paired with a hidden state."""
    return (stored[..., 1:, :] if shift else stored).reshape(-1, top)
