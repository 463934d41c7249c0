"""Cases of vocabulary-parallel distillation from a stored teacher: numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.parallel.distillation_cases import (
    EVERYTHING,
    PADDED,
    ROWS_PER_RANK,
    STUDENT_FEATURES,
    DistillationCase,
)
from tests.parallel.spmd_cases import GRAPH, JIT


@dataclass(frozen=True)
class TopKCase(DistillationCase):
    """`biases` is the student's."""

    k: int = 4


def draw(case: TopKCase) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray | None]:
    """Hidden states, weight and bias of the student; the teacher's log-probabilities and their classes; the rows'
    weights. Of some rows all classes lie on one rank."""
    random, rows = np.random.default_rng(31), ROWS_PER_RANK * case.row_ranks
    sizes = ((rows, STUDENT_FEATURES), (case.classes, STUDENT_FEATURES), (case.classes,))
    student = [random.normal(size=size) for size in sizes]
    if not case.biases:
        student[2] = np.zeros(case.classes)
    logits = 2 * random.normal(size=(rows, case.classes))
    logits[::4, : case.blocks[0]] += 9
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    indices = np.argsort(-log_probs, axis=1, kind="stable")[:, : case.k]
    log_probs = np.take_along_axis(log_probs, indices, 1).astype(np.float32)
    if case.k > 1 and case.loss.get("beta") != 1.0:  # which has no finite loss there
        log_probs[1, -1] = -np.inf  # a place that stands empty
    row_weight = random.uniform(0.25, 2, rows).astype(np.float32)
    row_weight[2::3] = 0
    return student, log_probs, indices, row_weight if case.row_weight else None


def _two_ranks() -> list[TopKCase]:
    weighted = {"biases": True, "row_weight": True}
    return [
        TopKCase("forward KL"),
        TopKCase("one class, without the tail", k=1, loss={"tail": False}),
        TopKCase("all classes, bfloat16", k=10, dtype="bfloat16", loss={"beta": 0.5}),
        TopKCase("everything, padded", loss={"beta": 0.3, **EVERYTHING}, **weighted, **PADDED),
        TopKCase(
            "everything, padded, graph",
            mode=GRAPH,
            loss={"beta": 0.3, "gradient_in_forward": True, **EVERYTHING},
            **weighted,
            **PADDED,
        ),
        TopKCase(
            "reverse KL, two sweeps, jit",
            mode=JIT,
            loss={"beta": 1.0, "gradient_in_forward": False},
            **weighted,
        ),
        TopKCase(
            "none, composed, rows in blocks",
            loss={"reduction": "none", "beta": 1.0, "backend": "composed"},
            sequence_parallel=True,
            **weighted,
        ),
        TopKCase(
            "sum, factor left out, rows in blocks",
            loss={"reduction": "sum", "temperature_squared": False, "temperature": 3.0},
            dtype="float16",
            sequence_parallel=True,
        ),
        TopKCase(
            "divisor from outside, gradients averaged",
            row_ranks=2,
            class_ranks=1,
            loss={"temperature": 1.5},
            total_weight=7.5,
            gradients_mean=True,
            **weighted,
        ),
    ]


def _four_ranks() -> list[TopKCase]:
    mesh = {"row_ranks": 2, "class_ranks": 2, "row_weight": True, "biases": True}
    return [
        TopKCase("2x2", loss={"beta": 0.5}, **mesh),
        TopKCase("2x2 graph", mode=GRAPH, loss={"gradient_in_forward": True}, **mesh),
    ]


def top_k_cases(ranks: int) -> list[TopKCase]:
    return {2: _two_ranks, 4: _four_ranks}[ranks]()


# Checks that are programs of their own, in top_k_checks.py.
TOP_K_PROGRAMS: dict[int, tuple[str, ...]] = {
    2: ("wrong arguments", "a class that is there twice"),
    4: (),
}


def top_k_names(ranks: int) -> list[str]:
    names = [case.name for case in top_k_cases(ranks)] + list(TOP_K_PROGRAMS[ranks])
    return [f"top-k distillation: {name}" for name in names]
