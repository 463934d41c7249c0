"""Cases of the vocabulary-parallel linear loss: where rows and classes lie, options, inputs; numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.parallel.spmd_cases import EVERY_OPTION, GRAPH, JIT, PYNATIVE

ROWS_PER_RANK, CLASSES_PER_RANK, FEATURES = 8, 5, 3
SEVERAL_CHUNKS = 3  # rows of a chunk: the last one is shorter


@dataclass(frozen=True)
class LinearCase:
    """Rows split over `row_ranks`, classes over `class_ranks`; rank = row rank · class_ranks + class rank."""

    name: str
    row_ranks: int = 1
    class_ranks: int = 1
    mode: str = PYNATIVE
    dtype: str = "float32"
    loss: dict = field(default_factory=dict)
    weight: bool = False
    trains_weight: bool = False  # it is a Parameter
    row_weight: bool = False
    total_weight: float | None = None  # beside bias and row_weight, as the sixth input
    bias: bool = True
    probabilities: bool = False
    class_blocks: tuple[int, ...] | None = None
    num_classes: int | None = None
    sequence_parallel: bool = False
    gradients_mean: bool = False
    empty_row_ranks: tuple[int, ...] = ()
    chunk_rows: int = SEVERAL_CHUNKS
    batch: int | None = None  # rows are (sequence, batch) where given

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.class_blocks or (CLASSES_PER_RANK,) * self.class_ranks

    @property
    def classes(self) -> int:
        return self.num_classes or sum(self.blocks)

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_rows * max(self.blocks) * 4


def draw(case: LinearCase) -> dict[str, np.ndarray | None]:
    """Inputs of the whole; row ranks have different numbers of rows that count."""
    random = np.random.default_rng(17)
    rows = ROWS_PER_RANK * case.row_ranks
    if case.probabilities:
        target = random.dirichlet(np.ones(case.classes), rows).astype(np.float32)
    else:
        target = random.integers(0, case.classes, rows)
        target[-1] = case.classes - 1
        ignored = case.loss.get("ignore_index", -100)
        target[2:6] = ignored
        for row_rank in case.empty_row_ranks:
            target[row_rank * ROWS_PER_RANK : (row_rank + 1) * ROWS_PER_RANK] = ignored
    row_weight = np.random.default_rng(12).uniform(0.25, 2, rows).astype(np.float32)
    row_weight[1::3] = 0
    return {
        "row_weight": row_weight if case.row_weight else None,
        "input": random.normal(size=(rows, FEATURES)),
        "linear_weight": random.normal(size=(case.classes, FEATURES)),
        "target": target,
        "linear_bias": random.normal(size=case.classes) if case.bias else None,
        "weight": np.round(random.uniform(0.2, 2, case.classes), 3) if case.weight else None,
    }


def _in_forward(value: bool) -> dict:
    return {"gradient_in_forward": value}


def _two_ranks() -> list[LinearCase]:
    two = {"class_ranks": 2}
    every = {**EVERY_OPTION, "ignore_index": 3}
    padded = {"class_blocks": (7, 4), "num_classes": 9}
    sequence = {"sequence_parallel": True, **two}
    cases = [
        LinearCase("1x2 pynative", **two),
        LinearCase("1x2 graph, bfloat16", mode=GRAPH, dtype="bfloat16", bias=False, **two),
        LinearCase("one chunk", chunk_rows=100, **two),
        LinearCase("float16", dtype="float16", loss=_in_forward(False), **two),
        LinearCase("every option", loss=every, weight=True, **padded, **two),
        LinearCase(
            "every option, graph",
            mode=GRAPH,
            loss={**every, **_in_forward(True)},
            weight=True,
            trains_weight=True,
            **padded,
            **two,
        ),
        LinearCase(
            "probabilities, every option",
            loss={**EVERY_OPTION, **_in_forward(False)},
            weight=True,
            trains_weight=True,
            probabilities=True,
            **padded,
            **two,
        ),
        LinearCase(
            "rows weighted", loss=every, weight=True, trains_weight=True, row_weight=True, **two
        ),
        LinearCase(
            "rows weighted, graph, probabilities",
            mode=GRAPH,
            loss=_in_forward(True),
            probabilities=True,
            row_weight=True,
            **sequence,
        ),
        LinearCase(
            "divisor from outside, graph", mode=GRAPH, row_weight=True, total_weight=7.5, **two
        ),
        LinearCase("none", loss={"reduction": "none"}, batch=2, **sequence),
        LinearCase("sum", loss={"reduction": "sum", **_in_forward(False)}, **two),
        LinearCase("sequence parallel, float16", dtype="float16", batch=2, **sequence),
        LinearCase("sequence parallel, graph", mode=GRAPH, **sequence),
        LinearCase("composed backend", loss={"backend": "composed"}, **two),
        LinearCase("no row that counts", empty_row_ranks=(0,), **two),
        LinearCase("frozen input", loss={"frozen": ("input",), **_in_forward(False)}, **two),
        LinearCase("frozen weight, padded", loss={"frozen": ("linear_weight",)}, **padded, **two),
        LinearCase(
            "frozen head, jit",
            mode=JIT,
            loss={"frozen": ("linear_weight", "linear_bias"), **_in_forward(True)},
            **sequence,
        ),
    ]
    rows = {"row_ranks": 2}
    return [
        *cases,
        LinearCase("2x1 gradients averaged", gradients_mean=True, **rows),
        LinearCase("a rank without a row that counts", empty_row_ranks=(1,), **rows),
        LinearCase("sum over rows", loss={"reduction": "sum"}, weight=True, **rows),
        LinearCase("rows weighted, mean over rows", row_weight=True, **rows),
        LinearCase(
            "divisor from outside, gradients averaged",
            row_weight=True,
            total_weight=7.5,
            gradients_mean=True,
            **rows,
        ),
    ]


def _four_ranks() -> list[LinearCase]:
    mesh = {"row_ranks": 2, "class_ranks": 2}
    return [
        LinearCase("2x2 pynative", weight=True, empty_row_ranks=(1,), **mesh),
        LinearCase(
            "2x2 graph",
            mode=GRAPH,
            loss={**EVERY_OPTION, **_in_forward(True)},
            class_blocks=(4, 7),
            num_classes=10,
            **mesh,
        ),
        LinearCase("1x4 jit, sequence parallel", class_ranks=4, mode=JIT, sequence_parallel=True),
        LinearCase("1x4 bfloat16", class_ranks=4, dtype="bfloat16", bias=False),
    ]


def linear_cases(ranks: int) -> list[LinearCase]:
    return {2: _two_ranks, 4: _four_ranks}[ranks]()


# Checks that are programs of their own, in linear_checks.py.
LINEAR_PROGRAMS: dict[int, tuple[str, ...]] = {
    2: (
        "collectives, gradients in two sweeps",
        "collectives, gradients in one sweep",
        "collectives, frozen input",
        "wrong arguments",
        "label out of range",
    ),
    4: (),
}


def linear_names(ranks: int) -> list[str]:
    """The names of all checks, apart from those of the other losses."""
    names = [case.name for case in linear_cases(ranks)] + list(LINEAR_PROGRAMS[ranks])
    return [f"linear: {name}" for name in names]
