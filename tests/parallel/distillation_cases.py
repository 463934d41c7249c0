"""Cases of the vocabulary-parallel distillation loss: where rows and classes lie, options, inputs; numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.parallel.spmd_cases import GRAPH, JIT, PYNATIVE

ROWS_PER_RANK, CLASSES_PER_RANK = 8, 5
STUDENT_FEATURES, TEACHER_FEATURES = 3, 4
CHUNK_ROWS = 3  # the last chunk is shorter


@dataclass(frozen=True)
class DistillationCase:
    """Rows split over `row_ranks`, classes over `class_ranks`; rank = row rank · class_ranks + class rank."""

    name: str
    row_ranks: int = 1
    class_ranks: int = 2
    mode: str = PYNATIVE
    dtype: str = "float32"
    loss: dict = field(default_factory=dict)
    biases: bool = False
    row_weight: bool = False
    total_weight: float | None = None  # beside biases and row_weight, as the eighth input
    class_blocks: tuple[int, ...] | None = None
    num_classes: int | None = None
    sequence_parallel: bool = False
    gradients_mean: bool = False
    chunked: bool = True

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.class_blocks or (CLASSES_PER_RANK,) * self.class_ranks

    @property
    def classes(self) -> int:
        return self.num_classes or sum(self.blocks)


def draw(case: DistillationCase) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Hidden states, weight and bias of the student, then of the teacher; the rows' weights."""
    random, rows = np.random.default_rng(29), ROWS_PER_RANK * case.row_ranks
    arrays = []
    for features in (STUDENT_FEATURES, TEACHER_FEATURES):
        sizes = ((rows, features), (case.classes, features), (case.classes,))
        arrays += [random.normal(size=size) for size in sizes]
    if not case.biases:
        arrays[2], arrays[5] = np.zeros(case.classes), np.zeros(case.classes)
    row_weight = random.uniform(0.25, 2, rows).astype(np.float32)
    row_weight[1::3] = 0
    return arrays, row_weight if case.row_weight else None


EVERYTHING = {"temperature": 2.0, "softcap": 4.0, "logit_scale": 0.7}
PADDED = {"class_blocks": (7, 4), "num_classes": 9}


def _two_ranks() -> list[DistillationCase]:
    weighted = {"biases": True, "row_weight": True}
    return [
        DistillationCase("forward KL"),
        DistillationCase("one chunk, bfloat16", chunked=False, dtype="bfloat16"),
        DistillationCase(
            "everything, padded", loss={"beta": 0.3, **EVERYTHING}, **weighted, **PADDED
        ),
        DistillationCase(
            "everything, padded, graph",
            mode=GRAPH,
            loss={"beta": 0.3, "gradient_in_forward": True, **EVERYTHING},
            **weighted,
            **PADDED,
        ),
        DistillationCase(
            "reverse KL, two sweeps, jit",
            mode=JIT,
            loss={"beta": 1.0, "gradient_in_forward": False},
            **weighted,
        ),
        DistillationCase(
            "none, composed",
            loss={"reduction": "none", "beta": 1.0, "backend": "composed"},
            **weighted,
        ),
        DistillationCase(
            "sum, factor left out",
            loss={"reduction": "sum", "temperature_squared": False, "temperature": 3.0},
            dtype="float16",
        ),
        DistillationCase(
            "sequence parallel",
            sequence_parallel=True,
            loss={"beta": 0.3, **EVERYTHING},
            **weighted,
            **PADDED,
        ),
        DistillationCase(
            "sequence parallel, none", sequence_parallel=True, loss={"reduction": "none"}
        ),
        DistillationCase(
            "sequence parallel, two sweeps, jit, bfloat16",
            mode=JIT,
            dtype="bfloat16",
            sequence_parallel=True,
            loss={"gradient_in_forward": False},
        ),
        DistillationCase(
            "divisor from outside, gradients averaged",
            row_ranks=2,
            class_ranks=1,
            loss={"temperature": 1.5},
            total_weight=7.5,
            gradients_mean=True,
            **weighted,
        ),
    ]


def _four_ranks() -> list[DistillationCase]:
    mesh = {"row_ranks": 2, "class_ranks": 2, "row_weight": True, "biases": True}
    return [
        DistillationCase("2x2", loss={"beta": 0.5}, **mesh),
        DistillationCase("2x2 graph", mode=GRAPH, loss={"gradient_in_forward": True}, **mesh),
        DistillationCase(
            "2x2 sequence parallel, graph",
            mode=GRAPH,
            sequence_parallel=True,
            loss={"gradient_in_forward": True},
            **mesh,
        ),
    ]


def distillation_cases(ranks: int) -> list[DistillationCase]:
    return {2: _two_ranks, 4: _four_ranks}[ranks]()


# Checks that are programs of their own, in distillation_checks.py.
DISTILLATION_PROGRAMS: dict[int, tuple[str, ...]] = {2: ("wrong arguments",), 4: ()}


def distillation_names(ranks: int) -> list[str]:
    names = [case.name for case in distillation_cases(ranks)] + list(DISTILLATION_PROGRAMS[ranks])
    return [f"distillation: {name}" for name in names]
