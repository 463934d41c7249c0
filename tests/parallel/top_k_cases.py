"""Cases of vocabulary-parallel distillation from a stored teacher: numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.parallel.spmd_cases import GRAPH, JIT, PYNATIVE

ROWS_PER_RANK, CLASSES_PER_RANK, FEATURES = 8, 5, 3
CHUNK_ROWS = 3  # the last chunk is shorter


@dataclass(frozen=True)
class TopKCase:
    """Rows split over `row_ranks`, classes over `class_ranks`; rank = row rank · class_ranks + class rank."""

    name: str
    row_ranks: int = 1
    class_ranks: int = 2
    mode: str = PYNATIVE
    dtype: str = "float32"
    loss: dict = field(default_factory=dict)
    k: int = 4
    bias: bool = False
    row_weight: bool = False
    total_weight: float | None = None  # beside bias and row_weight
    class_blocks: tuple[int, ...] | None = None
    num_classes: int | None = None
    gradients_mean: bool = False
    sequence_parallel: bool = False

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.class_blocks or (CLASSES_PER_RANK,) * self.class_ranks

    @property
    def classes(self) -> int:
        return self.num_classes or sum(self.blocks)


def draw(case: TopKCase) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray | None]:
    """Hidden states, weight and bias of the student; the teacher's log-probabilities and their classes; the rows'
    weights. Of some rows all classes lie on one rank."""
    random, rows = np.random.default_rng(31), ROWS_PER_RANK * case.row_ranks
    sizes = ((rows, FEATURES), (case.classes, FEATURES), (case.classes,))
    student = [random.normal(size=size) for size in sizes]
    if not case.bias:
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


_EVERYTHING = {"temperature": 2.0, "softcap": 4.0, "logit_scale": 0.7}
_PADDED = {"class_blocks": (7, 4), "num_classes": 9}


def _two_ranks() -> list[TopKCase]:
    weighted = {"bias": True, "row_weight": True}
    return [
        TopKCase("forward KL"),
        TopKCase("one class, without the tail", k=1, loss={"tail": False}),
        TopKCase("all classes, bfloat16", k=10, dtype="bfloat16", loss={"beta": 0.5}),
        TopKCase("everything, padded", loss={"beta": 0.3, **_EVERYTHING}, **weighted, **_PADDED),
        TopKCase(
            "everything, padded, graph",
            mode=GRAPH,
            loss={"beta": 0.3, "gradient_in_forward": True, **_EVERYTHING},
            **weighted,
            **_PADDED,
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
    mesh = {"row_ranks": 2, "class_ranks": 2, "row_weight": True, "bias": True}
    return [
        TopKCase("2x2", loss={"beta": 0.5}, **mesh),
        TopKCase("2x2 graph", mode=GRAPH, loss={"gradient_in_forward": True}, **mesh),
    ]


def top_k_cases(ranks: int) -> list[TopKCase]:
    return {2: _two_ranks, 4: _four_ranks}[ranks]()


# Checks that are programs of their own, in top_k_checks.py.
TOP_K_PROGRAMS: dict[int, tuple[str, ...]] = {2: ("wrong arguments",), 4: ()}


def top_k_names(ranks: int) -> list[str]:
    names = [case.name for case in top_k_cases(ranks)] + list(TOP_K_PROGRAMS[ranks])
    return [f"top-k distillation: {name}" for name in names]
