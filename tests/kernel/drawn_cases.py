"""Cases for the stand-alone binary: sizes around the kernels' own, options drawn so that every pair of them occurs."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from tests.kernel.call import DTYPES, Dtypes, Repeat
from tests.kernel.loss_calls import LossCase
from tests.support.cases import Case

# Of the options: one under which every pair of their values occurs (test_drawn_cases.py).
_SEED = 1

# Around the widths of vectors (4, 8, 16), the classes of a chunk (64), of a tile (1024); rows of a block (128).
_SHAPES = (
    (1, 1), (9,), (3, 2), (129, 3), (260, 10), (7, 63), (66, 64), (5, 65), (3, 127), (2, 1023), (2, 1025), (1, 5000),
    (2, 5, 3), (2, 21, 9, 9), (3, 70, 67), (0, 4), (2, 3, 0), (2, 1100, 5),
)  # fmt: skip
# "own" is the dtype of the logits.
_TARGETS = ("int64", "int32", "uint8", "float32", "own")


class _Large(NamedTuple):
    """Enough for several threads, and from 8 MB on for streaming stores."""

    shape: tuple[int, ...]  # of what repeats
    repeat: Repeat
    times: int
    dtype: str
    target: str


_ROWS, _COLUMNS = Repeat(0, 13), Repeat(-1, 7)
_LARGE = (
    _Large((13, 10), _ROWS, 3077, "float32", "int64"),
    _Large((13, 10), _ROWS, 3077, "float16", "uint8"),
    _Large((13, 10), _ROWS, 3077, "bfloat16", "float32"),
    _Large((13, 10), _ROWS, 3077, "float64", "own"),
    _Large((13, 17000), _ROWS, 10, "float32", "int64"),
    _Large((13, 17000), _ROWS, 10, "float32", "own"),
    _Large((13, 17000), _ROWS, 5, "float64", "int32"),
    _Large((13, 17000), _ROWS, 5, "float64", "own"),
    _Large((13, 17000), _ROWS, 20, "float16", "own"),
    _Large((13, 17000), _ROWS, 20, "bfloat16", "int64"),
    _Large((2, 40, 7), _COLUMNS, 4000, "float32", "uint8"),
    _Large((2, 40, 7), _COLUMNS, 4000, "float32", "int32"),
    _Large((4, 40, 7), _COLUMNS, 4000, "float16", "int64"),
    _Large((4, 40, 7), _COLUMNS, 4000, "bfloat16", "own"),
)


def _draw(random: np.random.Generator, shape: tuple[int, ...], dtype: str, target: str) -> LossCase:
    """Each option in about half of the cases."""
    some: dict[str, Any] = {
        "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "logit_scale": 0.7,
    }  # fmt: skip
    drawn = {name: value for name, value in some.items() if random.integers(2)}
    drawn["reduction"] = ("none", "mean", "sum")[random.integers(3)]
    drawn["ignore_index"] = 255 if target == "uint8" else -100
    weight = (None, "float32", dtype)[random.integers(3)]
    target = dtype if target == "own" else target
    case = Case(
        "drawn",
        shape,
        probabilities="float" in target,
        weight=weight is not None,
        ignored=0.2,
        label_dtype=target,
        options=drawn,
        scale=3.0,
    )
    # Not under a scale, whose product rounds a logit of that size by more than the tolerance.
    far = random.integers(3) == 0 and "logit_scale" not in drawn
    return LossCase(
        case,
        Dtypes(dtype, target, weight or dtype),
        grad_z=bool(random.integers(2)),
        zeros=bool(random.integers(2)),
        offset=-300.0 if far else 0.0,
        row_weight=bool(random.integers(2)),
    )


def drawn_cases() -> list[LossCase]:
    """All of them, the same ones every time."""
    random = np.random.default_rng(_SEED)
    drawn = []
    for shape, dtype, target in itertools.product(_SHAPES, DTYPES, _TARGETS):
        classes = shape[0] if len(shape) == 1 else shape[1]
        if target != "uint8" or classes <= 255:
            drawn.append(_draw(random, shape, dtype, target))
    for large in _LARGE:
        one = _draw(random, large.shape, large.dtype, large.target)
        drawn.append(one._replace(repeat=large.repeat, times=large.times))
    return drawn
