"""Losses drawn at random: shapes, every kind of target and option, values at the dtypes' ends."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.kernel.library import cast, to_float64

DTYPES = ("float32", "float16", "bfloat16", "float64")
# Scaled, or summed over a tile of 1024 classes, they still fit the type computed in.
LARGEST = {"float16": 6e4, "bfloat16": 1e32, "float32": 1e32, "float64": 1e300}
SMALLEST = {"float16": 6e-8, "bfloat16": 1e-40, "float32": 1e-45, "float64": 5e-324}
# Around vectors of 4 to 32 lanes, chunks of 64 classes, tiles of 1024.
_CLASSES = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    10,
    15,
    16,
    17,
    31,
    33,
    63,
    64,
    65,
    100,
    127,
    129,
    255,
    257,
    1000,
    1025,
)
_ROWS = (0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 129)
_MOST_ELEMENTS = 6000


class Drawn(NamedTuple):
    """A loss and how it is called. Values are as the kernel gets them."""

    shape: tuple[int, ...]
    dtype: str
    logits: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    row_weight: np.ndarray | None
    options: dict[str, Any]
    upstream: np.ndarray
    odd: int  # elements between a cache line and a tensor

    @property
    def rows(self) -> tuple[int, ...]:
        return () if len(self.shape) == 1 else (self.shape[0], *self.shape[2:])

    @property
    def probabilities(self) -> bool:
        return self.target.dtype.kind == "f" or self.target.shape == self.shape

    @property
    def exact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Logits, target and weight for the reference."""
        target = to_float64(self.target) if self.probabilities else np.asarray(self.target)
        return (
            to_float64(self.logits),
            target,
            None if self.weight is None else to_float64(self.weight),
        )

    def __str__(self) -> str:
        kind = "probabilities" if self.probabilities else self.target.dtype.name
        weights = [name for name in ("weight", "row_weight") if getattr(self, name) is not None]
        return f"logits {self.shape} {self.dtype}, {kind}, {weights}, {self.options}"


def _shape(random: np.random.Generator) -> tuple[int, ...]:
    while True:
        classes = int(random.choice(_CLASSES))
        rank = int(random.choice((1, 2, 2, 2, 3, 3, 4)))
        rows = [int(random.choice(_ROWS)) for _ in range(rank - 1)]
        shape = (classes,) if rank == 1 else (rows[0], classes, *rows[1:])
        if np.prod(shape, dtype=float) <= _MOST_ELEMENTS:
            return shape


def _logits(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = random.normal(size=shape) * 10.0 ** random.uniform(-3, 1.5)
    if random.random() < 0.2:
        values = values + random.choice((-300.0, -90.0, 100.0, 3000.0))
    kind = random.integers(12)
    some = random.random(shape) < random.choice((0.02, 0.3))
    if kind == 0:
        values = np.where(some, -np.inf, values)
    elif kind == 1:
        values = np.where(some, random.choice((np.inf, np.nan)), values)
    elif kind == 2:
        values = np.where(some, LARGEST[dtype] * random.choice((-1, 1)), values)
    elif kind == 3:
        values = values * SMALLEST[dtype]
    elif kind == 4:
        values = np.full(shape, values.flat[0] if values.size else 0.0)
    elif kind == 5:
        values = np.where(some, values + 60.0, values)  # one dominant class
    elif kind == 6:  # the first classes of a row, or the last, do not occur
        axis = 0 if len(shape) == 1 else 1
        place = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        cut = int(random.integers(shape[axis] + 1))
        values = np.where(place < cut if random.integers(2) else place >= cut, -np.inf, values)
    return cast(values, dtype)


def _weights(random: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Small multiples of 1/4, whose sums are exact in any order: those of both signs may cancel."""
    kind = random.integers(5)
    values = random.integers(1, 12, size) / 4.0
    if kind == 1:
        values = np.where(random.random(size) < 0.4, 0.0, values)
    elif kind == 2:
        values = np.where(random.random(size) < 0.5, -values, values)
    elif kind == 3:
        values = values * 2.0 ** int(random.choice((-10, 10)))
    return values


def _target(random, shape, rows, dtype, ignore_index) -> np.ndarray:
    classes = shape[0] if len(shape) == 1 else shape[1]
    if random.random() < 0.35:
        axis = 0 if len(shape) == 1 else 1
        values = random.random(shape) + 1e-9
        values = np.where(random.random(shape) < 0.3, 0.0, values)
        if random.random() < 0.7:
            values = values / np.maximum(values.sum(axis, keepdims=True), 1e-9)
        return cast(values, str(random.choice(("float32", dtype))))
    kinds = ("int64", "int32", "uint8") if classes <= 255 else ("int64", "int32")
    kind = str(random.choice(kinds))
    values = random.integers(0, classes, rows)
    if kind != "uint8" or 0 <= ignore_index <= 255:
        values = np.where(
            random.random(rows) < random.choice((0.0, 0.2, 1.0), p=(0.4, 0.5, 0.1)),
            ignore_index,
            values,
        )
    return np.asarray(values).astype(kind)


def draw(random: np.random.Generator) -> Drawn:
    shape, dtype = _shape(random), str(random.choice(DTYPES))
    rows = () if len(shape) == 1 else (shape[0], *shape[2:])
    classes = shape[0] if len(shape) == 1 else shape[1]
    ignore_index = int(random.choice((-100, 255, 0, -1)))
    target = _target(random, shape, rows, dtype, ignore_index)
    if target.shape == shape:
        ignore_index = -100
    options = {
        "ignore_index": ignore_index,
        "reduction": str(random.choice(("none", "mean", "sum"))),
        "label_smoothing": float(random.choice((0.0, 0.0, 0.1, 1.0, random.random()))),
        "z_loss": float(random.choice((0.0, 0.0, 1e-4, 0.1))),
        "softcap": float(random.choice((0.0, 0.0, 0.0, 1.0, 30.0))),
        "logit_scale": float(random.choice((1.0, 1.0, 0.7, -1.3, 0.0))),
    }
    weight = None
    if random.random() < 0.5:
        weight = cast(_weights(random, (classes,)), str(random.choice(("float32", dtype))))
    row_weight = _weights(random, rows) if random.random() < 0.3 else None
    upstream = random.normal(size=rows if options["reduction"] == "none" else ())
    return Drawn(
        shape,
        dtype,
        _logits(random, shape, dtype),
        target,
        weight,
        row_weight if row_weight is None else np.asarray(row_weight, np.float64),
        options,
        cast(upstream, dtype),
        int(random.integers(0, 9)),
    )
