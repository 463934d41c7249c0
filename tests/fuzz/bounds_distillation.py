"""How far from the float64 reference a divergence of two models may be, and what those of every kind share.

With p of the teacher, q of the student and m = beta·p + (1 - beta)·q, both losses and gradients are sums of a
probability times a difference of logarithms. A logarithm may be off absolutely, by its own rounding and by what the
logits are off, a probability by as much of itself.
"""

from __future__ import annotations

import numpy as np

from tests.fuzz.bounds import ROUNDING, ROUNDINGS, STEEPEST, Answer, finite, to64
from tests.fuzz.bounds_linear import Rows, is_narrow
from tests.fuzz.draw_distillation import DistillationLoss, DivergenceLoss
from tests.kernel.operations import load_reference

_reference = load_reference("reference_distillation")
# A teacher's float64 is rounded to float32 where the student is computed in it.
_CONVERSIONS = 4
# Below it the type computed in may have 0 for a probability: what is infinite beside it is not known.
NOTHING = {"float32": 1e-36, "float64": 1e-298}


class Model:
    """The log-probabilities of one, and how far off they may be."""

    def __init__(self, rows: Rows, options: dict, unit: float):
        scale, softcap = options["logit_scale"], options["softcap"]
        self.log, _ = _reference._log_probs(rows.logits, 1.0, softcap, scale)
        self.p, self.steep = np.exp(self.log), unit
        off = abs(scale) * rows.off
        if softcap:
            self.steep = unit + STEEPEST * off / softcap
        furthest = off.max(-1, initial=0.0, keepdims=True)
        largest = abs(scale) * finite(rows.logits).max(-1, initial=0.0, keepdims=True) + softcap
        self.moved = 1.0 + bool(softcap or scale != 1.0) * largest
        self.furthest = furthest
        self.off = unit * (finite(self.log) + self.moved) + off + furthest
        self.relative = unit * (finite(self.log) + self.moved) + np.expm1(2 * furthest)

    def of(self, other: np.ndarray, of_other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p·(log p - other), 0 where p is, and what it is off by."""
        difference = _reference._times(self.p, self.log - other)
        away = finite(self.log - other)
        return difference, self.p * self.times(away, self.off + of_other)

    def times(self, size: np.ndarray, off: np.ndarray) -> np.ndarray:
        """What a term of p is off by, as a part of p: its factor's size, and what that is off by."""
        return self.relative * size + (1 + self.relative) * off


class _Divergence:
    """Of every row the loss, its gradient by the student's logits, and what both are off by."""

    def __init__(self, student: Model, teacher: Model, options: dict, unit: float, least: float):
        self.q, self.p, self.beta = student, teacher, options["beta"]
        self.unit, self.least = unit, least
        scale = abs(options["logit_scale"])
        self.loss, gradient, size = self._of_beta()
        self.gradient = scale * (gradient + student.steep * size + least * (1 + size))

    def _of_beta(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is allowed of each loss, of each element of the gradient, and the size of the gradient's terms."""
        q, p, beta = self.q, self.p, self.beta
        nothing = self.least * (1 + finite(q.log) + finite(p.log))
        if beta == 0:
            _, loss = p.of(q.log, q.off)
            return (loss + nothing).sum(-1), q.p * q.relative + p.p * p.relative, q.p + p.p
        log_m, of_m, share = p.log, p.off, 1.0
        if beta < 1:
            share = 1 - beta
            parts = (beta * p.p, share * q.p)
            m = parts[0] + parts[1]
            log_m = np.log(m)
            relative = (parts[0] * p.relative + parts[1] * q.relative) / np.where(m == 0, 1.0, m)
            of_m = 2 * relative + self.unit * (1 + finite(log_m))
        terms, off = q.of(log_m, of_m)
        loss = share * off
        if beta < 1:
            loss = loss + beta * p.of(log_m, of_m)[1]
        ratio, mean = finite(q.log - log_m), finite(terms.sum(-1, keepdims=True))
        of_mean = (off + nothing).sum(-1, keepdims=True) + self.unit * mean
        size = share * q.p * (ratio + mean)
        gradient = share * q.p * q.times(ratio + mean, q.off + of_m + of_mean)
        return (loss + nothing).sum(-1), gradient, size

    def known(self) -> bool:
        """Whether no infinite logarithm stands beside a probability that may be 0."""
        nothing = NOTHING["float64" if self.least < 1e-100 else "float32"]
        q, p = self.q, self.p
        pairs = {0.0: ((p, q),), 1.0: ((q, p),)}.get(self.beta, ())
        return not any(
            np.any((one.p > 0) & (one.p < nothing) & np.isinf(other.log)) for one, other in pairs
        )


def distillation_answers(
    drawn: DistillationLoss, composed: bool = False, coarse: float = 1.0, least_p: float = 0.0
) -> dict[str, Answer]:
    """Loss and gradients by name; "own" are those for an upstream of 1."""
    with np.errstate(all="ignore"):
        options = drawn.options
        student = Rows(drawn.exact_layer, drawn, composed)
        teacher = Rows(drawn.exact_teacher, drawn, composed, _CONVERSIONS)
        unit = coarse * ROUNDINGS * ROUNDING[drawn.form.dtype]
        models = (Model(student, options, unit), Model(teacher, options, unit))
        of = _Divergence(*models, options, unit, max(student.least, least_p))
        if not of.known():
            return {}
        given = {
            **options, "temperature": 1.0, "reduction": "none", "row_weight": student.row_weight,
        }  # fmt: skip
        losses, slopes = _reference.distillation(student.logits, teacher.logits, **given)
        counts = counts_of(student)
        return placed_answers(
            drawn,
            student,
            Answer(losses, counts * finite(of.loss)),
            Answer(slopes, counts[:, None] * of.gradient),
            composed,
        )


def counts_of(student: Rows) -> np.ndarray:
    """What multiplies the errors of each row."""
    weight = student.row_weight
    return np.ones(len(student.logits)) if weight is None else np.abs(weight)


def placed_answers(
    drawn: DivergenceLoss, student: Rows, losses: Answer, slopes: Answer, composed: bool
) -> dict[str, Answer]:
    """Of the loss and the student's tensors, `slopes` being those by its logits."""
    loss, upstream = Answer(losses.value.sum(), losses.allowed.sum()), to64(drawn.upstream)
    if drawn.per_row:
        loss, upstream = student.placed(losses), student.of_rows(upstream)
    answers = {"loss": loss}
    for own, arriving in {"": upstream, "own ": np.ones(())}.items():
        each = arriving.reshape(-1, 1)
        grad = Answer(each * slopes.value, np.abs(each) * slopes.allowed)
        made = student.of_matrices(grad, is_narrow(drawn, composed))
        answers |= {own + name: answer for name, answer in made.items()}
    return answers
