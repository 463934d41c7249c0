"""Cases of the vocabulary-parallel log-probabilities: where classes lie, options, inputs; numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.parallel.spmd_cases import GRAPH, JIT, PYNATIVE

ROWS, CLASSES_PER_RANK, FEATURES = 8, 5, 3
CHUNK_ROWS = 3  # the last chunk is shorter


@dataclass(frozen=True)
class TokenCase:
    """Classes split over `class_ranks`; of logits, or with `linear` of hidden states."""

    name: str
    class_ranks: int = 2
    linear: bool = False
    mode: str = PYNATIVE
    dtype: str = "float32"
    options: dict = field(default_factory=dict)
    expected: dict = field(default_factory=dict)  # what they are to the reference
    lead: tuple[int, ...] = (ROWS,)
    masked_block: bool = False  # the last rank's classes all have logit -inf
    bias: bool = True
    class_blocks: tuple[int, ...] | None = None
    num_classes: int | None = None
    sequence_parallel: bool = False
    row_ranks: int = 1

    @property
    def entropy(self) -> bool:
        return self.options.get("entropy", True)

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.class_blocks or (CLASSES_PER_RANK,) * self.class_ranks

    @property
    def classes(self) -> int:
        return self.num_classes or sum(self.blocks)


def draw(case: TokenCase) -> dict[str, np.ndarray]:
    """Hidden states, table and bias of the whole, targets, and what arrives at both results."""
    random = np.random.default_rng(23)
    target = random.integers(0, case.classes, ROWS)
    target[-1] = case.classes - 1
    target[0] = 1
    target[2:5] = case.options.get("ignore_index", -100)
    bias = random.normal(size=case.classes)
    if case.masked_block:
        bias[sum(case.blocks[:-1]) :] = -np.inf
        target[-1] = 0
    return {
        "input": random.normal(size=(ROWS, FEATURES)),
        "linear_weight": random.normal(size=(case.classes, FEATURES)),
        "linear_bias": bias if case.bias else np.zeros(case.classes),
        "target": target,
        "of_log_prob": random.normal(size=ROWS).astype(np.float32),
        "of_entropy": random.normal(size=ROWS).astype(np.float32) * case.entropy,
    }


EVERYTHING = {
    "options": {"temperature": 1.5, "softcap": 4.0, "logit_scale": 0.8, "ignore_index": 3},
    "expected": {"softcap": 4.0 / 1.5, "logit_scale": 0.8 / 1.5, "ignore_index": 3},
}
_PADDED = {"class_blocks": (7, 4), "num_classes": 9}
_ALONE = {"options": {"entropy": False}}


def _of_both(linear: bool) -> list[TokenCase]:
    """For two ranks, of logits or of hidden states."""
    of = "hidden" if linear else "logits"
    given = {"linear": linear}
    return [
        TokenCase(f"{of}, pynative", **given),
        TokenCase(f"{of}, graph", mode=GRAPH, lead=(2, 4), **given),
        TokenCase(f"{of}, everything, padded", **EVERYTHING, **_PADDED, **given),
        TokenCase(f"{of}, everything, jit", mode=JIT, **EVERYTHING, **_PADDED, **given),
        TokenCase(f"{of}, float16", dtype="float16", **given),
        TokenCase(f"{of}, bfloat16", dtype="bfloat16", lead=(2, 4), **given),
        TokenCase(f"{of}, graph, bfloat16", mode=GRAPH, dtype="bfloat16", **given),
        TokenCase(f"{of}, log-probabilities alone", **_ALONE, **given),
        TokenCase(f"{of}, log-probabilities alone, graph", mode=GRAPH, **_ALONE, **given),
        TokenCase(f"{of}, a block of -inf", masked_block=True, **given),
        TokenCase(
            f"{of}, composed",
            options={"backend": "composed", **EVERYTHING["options"]},
            expected=EVERYTHING["expected"],
            **given,
        ),
    ]


def token_cases(ranks: int) -> list[TokenCase]:
    if ranks == 4:
        return [
            TokenCase("logits, 1x4 graph", class_ranks=4, mode=GRAPH),
            TokenCase("hidden, 2x2", linear=True, row_ranks=2),
            TokenCase("hidden, 1x4 sequence", class_ranks=4, linear=True, sequence_parallel=True),
        ]
    sequence = {"linear": True, "sequence_parallel": True}
    return [
        *_of_both(linear=False),
        TokenCase("logits, float64", dtype="float64"),
        *_of_both(linear=True),
        TokenCase("hidden, sequence parallel, graph", mode=GRAPH, lead=(4, 2), **sequence),
        TokenCase("hidden, no bias", linear=True, bias=False),
        TokenCase("hidden, frozen table", linear=True, options={"frozen": ("linear_weight",)}),
    ]


# Checks that are programs of their own, in token_checks.py.
TOKEN_PROGRAMS: dict[int, tuple[str, ...]] = {
    2: ("collectives", "wrong arguments", "label out of range"),
    4: (),
}


def token_names(ranks: int) -> list[str]:
    names = [case.name for case in token_cases(ranks)] + list(TOKEN_PROGRAMS[ranks])
    return [f"tokens: {name}" for name in names]
