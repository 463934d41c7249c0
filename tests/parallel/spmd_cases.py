"""What the msrun workers compute: where rows and classes lie, options, inputs; numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ROWS_PER_RANK, CLASSES_PER_RANK = 6, 5
PYNATIVE, GRAPH, JIT = "pynative", "graph", "jit"


@dataclass(frozen=True)
class Case:
    """Rows split over `row_ranks`, classes over `class_ranks`; rank = row rank · class_ranks + class rank."""

    name: str
    row_ranks: int = 1
    class_ranks: int = 1
    mode: str = PYNATIVE
    dtype: str = "float32"
    loss: dict = field(default_factory=dict)
    weight: bool = False
    trains_weight: bool = False
    row_weight: bool = False
    total_weight: float | None = None  # beside row_weight, as the fourth input
    probabilities: bool = False
    infinite_logits: bool = False
    without_softmax: bool = False
    positions: tuple[int, ...] = ()
    class_blocks: tuple[int, ...] | None = None
    num_classes: int | None = None
    gradients_mean: bool = False
    empty_row_ranks: tuple[int, ...] = ()

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.class_blocks or (CLASSES_PER_RANK,) * self.class_ranks

    @property
    def classes(self) -> int:
        return self.num_classes or sum(self.blocks)


def draw(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Logits, target and weight of the whole; row ranks have different numbers of rows that count."""
    random = np.random.default_rng(11)
    rows = ROWS_PER_RANK * case.row_ranks
    logits = 3 * random.normal(size=(rows, case.classes, *case.positions))
    if case.infinite_logits:
        logits[0, 0::2] = -np.inf
    if case.probabilities:
        target = np.moveaxis(
            random.dirichlet(np.ones(case.classes), (rows, *case.positions)), -1, 1
        )
        if case.infinite_logits:
            target[0] = np.where(np.isinf(logits[0]), 0, target[0])
        if case.without_softmax:
            logits[:2], target[:2] = -np.inf, 0
            logits[1, 1], target[1, 2], target[1, 3] = np.inf, 1, -1
    else:
        target = random.integers(0, case.classes, (rows, *case.positions))
        target[0] = 1
        target[-1] = case.classes - 1
        ignored = case.loss.get("ignore_index", -100)
        target[1 : ROWS_PER_RANK - 1] = ignored
        for row_rank in case.empty_row_ranks:
            target[row_rank * ROWS_PER_RANK : (row_rank + 1) * ROWS_PER_RANK] = ignored
    weight = np.round(random.uniform(0.2, 2, case.classes), 3) if case.weight else None
    return logits, target, weight


def row_weight_of(case: Case) -> np.ndarray | None:
    """A third of the rows counts for nothing."""
    if not case.row_weight:
        return None
    random = np.random.default_rng(12)
    shape = (ROWS_PER_RANK * case.row_ranks, *case.positions)
    weight = (0.25 + random.random(shape)) * (random.random(shape) < 0.67)
    return weight.astype(np.float32)


SMOOTHED = {"label_smoothing": 0.1}
EVERY_OPTION = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 20.0, "logit_scale": 0.7}


def _modes_and_dtypes(ranks: int) -> list[Case]:
    """Every mode in float32 on every mesh; the other dtypes in PyNative mode, where two ranks show them."""
    meshes = {2: ((1, 2), (2, 1)), 4: ((1, 4), (2, 2))}[ranks]
    dtypes = {2: ("float16", "bfloat16", "float64"), 4: ("bfloat16",)}[ranks]
    cases = []
    for rows, classes in meshes:
        mesh = f"{rows}x{classes}"
        cases += [Case(f"{mesh} {mode}", rows, classes, mode) for mode in (PYNATIVE, GRAPH, JIT)]
        cases += [Case(f"{mesh} {dtype}", rows, classes, dtype=dtype) for dtype in dtypes]
    return [*cases, Case(f"{mesh} graph float16", rows, classes, GRAPH, "float16")]


def _options() -> list[Case]:
    """For two ranks that split the classes."""
    two, trained = {"class_ranks": 2}, {"weight": True, "trains_weight": True}
    return [
        Case("every option", loss=EVERY_OPTION, weight=True, **two),
        Case("every option, graph", mode=GRAPH, loss=EVERY_OPTION, weight=True, **two),
        Case("rows weighted", loss=EVERY_OPTION, row_weight=True, **trained, **two),
        Case("rows weighted, graph", mode=GRAPH, loss=EVERY_OPTION, row_weight=True, **two),
        Case(
            "rows weighted, probabilities, none",
            loss={"reduction": "none", "backend": "composed"},
            probabilities=True,
            positions=(2,),
            row_weight=True,
            **two,
        ),
        Case("weight trained", loss=EVERY_OPTION, **trained, **two),
        Case("weight trained, graph", mode=GRAPH, loss=EVERY_OPTION, **trained, **two),
        Case(
            "weight trained, composed", loss={**SMOOTHED, "backend": "composed"}, **trained, **two
        ),
        Case(
            "weight trained, float16", dtype="float16", loss={"reduction": "sum"}, **trained, **two
        ),
        Case("probabilities", probabilities=True, **two),
        Case("probabilities, graph", mode=GRAPH, probabilities=True, **two),
        Case(
            "probabilities, every option", loss=EVERY_OPTION, probabilities=True, **trained, **two
        ),
        Case(
            "probabilities, composed",
            loss={**SMOOTHED, "backend": "composed"},
            probabilities=True,
            **trained,
            **two,
        ),
        Case("probabilities, bfloat16", dtype="bfloat16", probabilities=True, **two),
        Case("probabilities, padded vocabulary", num_classes=8, probabilities=True, **two),
        Case("unequal blocks", class_blocks=(7, 3), **two),
        Case("unequal blocks, jit", mode=JIT, class_blocks=(7, 3), **two),
        Case("padded vocabulary", num_classes=8, loss=EVERY_OPTION, weight=True, **two),
        Case("padded vocabulary, graph", mode=GRAPH, num_classes=8, **two),
        Case("ignore_index in range", loss={"ignore_index": 3}, **two),
        Case("infinite logits", infinite_logits=True, **two),
        Case("infinite logits, probabilities", infinite_logits=True, probabilities=True, **two),
        Case(
            "rows without a softmax",
            loss={"reduction": "none"},
            without_softmax=True,
            probabilities=True,
            **two,
        ),
        Case("positions", positions=(2, 3), **two),
        Case("none", loss={"reduction": "none"}, **two),
        Case("sum", loss={"reduction": "sum"}, **two),
        Case("composed backend", loss={"backend": "composed"}, **two),
    ]


def _global_means() -> list[Case]:
    """For two ranks that split the rows."""
    two = {"row_ranks": 2}
    return [
        Case("gradients averaged", gradients_mean=True, **two),
        Case("gradients averaged, graph", mode=GRAPH, gradients_mean=True, **two),
        Case("a rank without a row that counts", empty_row_ranks=(1,), **two),
        Case("no row that counts", empty_row_ranks=(0, 1), **two),
        Case("sum over rows", loss={"reduction": "sum"}, **two),
        Case("weighted mean over rows", weight=True, **two),
        Case("rows weighted, mean over rows", weight=True, row_weight=True, **two),
        Case(
            "divisor from outside, gradients averaged",
            weight=True,
            row_weight=True,
            total_weight=7.5,
            gradients_mean=True,
            **two,
        ),
        Case("weighted mean over rows, trained", weight=True, trains_weight=True, **two),
        Case(
            "weight trained, no row that counts",
            weight=True,
            trains_weight=True,
            empty_row_ranks=(0, 1),
            **two,
        ),
    ]


def _whole_mesh() -> list[Case]:
    """Gradients of probabilities and weights where four ranks split rows and classes."""
    mesh = {"row_ranks": 2, "class_ranks": 2, "weight": True, "trains_weight": True}
    return [
        Case(
            f"2x2 {targets}, weight trained, {mode}", mode=mode, loss=EVERY_OPTION, **mesh, **given
        )
        for mode in (PYNATIVE, GRAPH)
        for targets, given in (
            ("class indices", {"gradients_mean": True}),
            ("probabilities", {"probabilities": True}),
        )
    ]


def cases(ranks: int) -> list[Case]:
    more = _options() + _global_means() if ranks == 2 else _whole_mesh()
    return _modes_and_dtypes(ranks) + more


# Checks that are programs of their own, in spmd_programs.py and precision_programs.py.
PROGRAMS = {
    2: (
        "accumulated micro-batches",
        "TrainOneStepCell, gradients summed",
        "TrainOneStepCell, gradients averaged",
        "SumGradient",
        "one collective forward, none backward",
        "drop-in pynative",
        "drop-in graph",
        "drop-in jit",
        "mixed precision: logits",
        "mixed precision: linear",
        "mixed precision: global mean",
        "mixed precision: sums",
        "mixed precision: a refusal",
        "check_for_nan names the rank",
        "wrong arguments",
        "label out of range",
    ),
    4: (),
}
