"""The cases drawn for the stand-alone binary: no two values of options are left that never meet."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np

from tests.kernel.call import DTYPES
from tests.kernel.drawn_cases import drawn_cases
from tests.kernel.loss_calls import LossCase

Level = tuple[str, object]

STREAM_BYTES = 8 << 20
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def levels(drawn: LossCase) -> list[Level]:
    """The values of one case that a kernel may treat in its own way, by name."""
    case, dtypes = drawn.case, drawn.dtypes
    shape = drawn.shape
    classes = shape[0] if len(shape) == 1 else shape[1]
    weight = "none" if not case.weight else "float32" if dtypes.weight == "float32" else "own"
    layout = "long rows" if classes > 64 else "short rows"
    if np.prod(shape[2:]) > 1:
        layout = "columns"
    options = {
        name: name in case.options
        for name in ("label_smoothing", "z_loss", "softcap", "logit_scale")
    }
    streams = np.prod(shape) * BYTES[dtypes.logits] >= STREAM_BYTES
    return [
        ("dtype", dtypes.logits),
        ("layout", layout),
        ("target", dtypes.target),
        ("weight", weight),
        ("reduction", case.options["reduction"]),
        *options.items(),
        ("grad_z", drawn.grad_z),
        ("row_weight", drawn.row_weight),
        ("offset", drawn.offset != 0.0),
        ("streams", bool(streams)),
    ]


def impossible(one: Level, other: Level) -> bool:
    """The kernel takes no such target, the tolerance no such offset; few classes in a row fill no cache."""
    pair = dict((one, other))
    target = pair.get("target")
    return (
        pair in ({"offset": True, "logit_scale": True}, {"layout": "short rows", "streams": True})
        or pair == {"dtype": "float32", "weight": "own"}
        or ("dtype" in pair and target in DTYPES and target not in ("float32", pair["dtype"]))
    )


def test_every_pair_of_levels_occurs() -> None:
    seen: set[tuple[Level, Level]] = set()
    values: dict[str, set[object]] = defaultdict(set)
    for drawn in drawn_cases():
        seen.update(itertools.permutations(levels(drawn), 2))
        for name, value in levels(drawn):
            values[name].add(value)
    all_levels = [(name, value) for name, each in values.items() for value in each]
    missing = [
        (one, other)
        for one, other in itertools.combinations(all_levels, 2)
        if one[0] != other[0] and (one, other) not in seen and not impossible(one, other)
    ]
    assert not missing
