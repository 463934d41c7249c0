"""The sizes of the linear benchmarks, and the losses and gradients that are right, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from linear_worker import ENTROPY_SHARE, IGNORE_INDEX, inputs, teacher_of, top_k_of


class Case(NamedTuple):
    """Sizes, and the share of rows whose target is ignored."""

    name: str
    rows: int
    features: int
    classes: int
    ignored: float = 0.0

    @property
    def logits_bytes(self) -> int:
        return 4 * self.rows * self.classes

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.features * (self.rows + self.classes)

    @property
    def flops(self) -> float:
        """Of the three products a step needs: logits, and the gradients of hidden and weight."""
        kept = self.rows * (1.0 - self.ignored)
        return 6.0 * kept * self.features * self.classes

    def request(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"kind": kind, **self._asdict(), **more}


CASES = (
    Case("32k", 2048, 1024, 32000),
    Case("32k half ignored", 2048, 1024, 32000, 0.5),
    Case("128k", 1024, 2048, 128256),
    Case("small", 256, 256, 8000),
)
LARGE = Case("large", 16384, 512, 262144)


def truth(case: Case) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss and gradients in float64."""
    hidden, linear_weight, target = inputs(case.rows, case.features, case.classes, case.ignored)
    kept = target != IGNORE_INDEX
    hidden, linear_weight = hidden.astype(np.float64), linear_weight.astype(np.float64)
    logits = hidden @ linear_weight.T
    top = logits.max(1, keepdims=True)
    lse = top + np.log(np.exp(logits - top).sum(1, keepdims=True))
    rows = np.flatnonzero(kept)
    loss = (lse[rows, 0] - logits[rows, target[rows]]).mean()
    gradient = np.exp(logits - lse) * kept[:, None]
    gradient[rows, target[rows]] -= 1.0
    gradient /= len(rows)
    return float(loss), gradient @ linear_weight, gradient.T @ hidden


def truth_of_tokens(case: Case) -> tuple[float, np.ndarray, np.ndarray]:
    """The same of -mean(log_prob + ENTROPY_SHARE·entropy)."""
    hidden, linear_weight, target = inputs(case.rows, case.features, case.classes, 0.0)
    hidden, linear_weight = hidden.astype(np.float64), linear_weight.astype(np.float64)
    logits = hidden @ linear_weight.T
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    p, rows = np.exp(log_p), np.arange(case.rows)
    entropy = -(p * log_p).sum(1, keepdims=True)
    loss = -(log_p[rows, target] + ENTROPY_SHARE * entropy[:, 0]).mean()
    gradient = p + ENTROPY_SHARE * p * (log_p + entropy)
    gradient[rows, target] -= 1.0
    gradient /= case.rows
    return float(loss), gradient @ linear_weight, gradient.T @ hidden


def truth_of_distillation(case: Case) -> tuple[float, np.ndarray, np.ndarray]:
    """The same of the mean of KL(teacher‖student)."""
    student = inputs(case.rows, case.features, case.classes, 0.0)[:2]
    hidden, linear_weight = (each.astype(np.float64) for each in student)
    log_probs = []
    for rows, table in (student, teacher_of(*student)):
        logits = rows.astype(np.float64) @ table.astype(np.float64).T
        logits -= logits.max(1, keepdims=True)
        log_probs.append(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    log_q, log_p = log_probs
    loss = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    gradient = (np.exp(log_q) - np.exp(log_p)) / case.rows
    return float(loss), gradient @ linear_weight, gradient.T @ hidden


def truth_of_top_k(case: Case) -> tuple[float, np.ndarray, np.ndarray]:
    """The same of the mean of KL(teacher‖student) where all classes but those stored are one."""
    student = inputs(case.rows, case.features, case.classes, 0.0)[:2]
    log_p, classes = top_k_of(*student)
    hidden, linear_weight = (each.astype(np.float64) for each in student)
    logits = hidden @ linear_weight.T
    log_q = logits - logits.max(1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(1, keepdims=True))
    q, p = np.exp(log_q), np.exp(log_p.astype(np.float64))
    q_tail, p_tail = (
        1.0 - each.sum(1, keepdims=True) for each in (np.take_along_axis(q, classes, 1), p)
    )
    terms = p * (log_p - np.take_along_axis(log_q, classes, 1))
    loss = (terms.sum(1, keepdims=True) + p_tail * np.log(p_tail / q_tail)).mean()
    gradient = q * (1.0 - p_tail / q_tail)
    np.put_along_axis(gradient, classes, np.take_along_axis(q, classes, 1) - p, 1)
    gradient /= case.rows
    return float(loss), gradient @ linear_weight, gradient.T @ hidden


# By what an entrant computes; '' is the linear loss.
TRUTHS = {
    "top-k": truth_of_top_k,
    "distillation": truth_of_distillation,
    "tokens": truth_of_tokens,
    "": truth,
}
