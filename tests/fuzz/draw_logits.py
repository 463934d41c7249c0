"""Losses of logits drawn at random: shapes, every kind of target and option, values at the dtypes' ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tests.fuzz.draw import (
    DTYPES,
    SMALL_FOR_ONE_LARGE,
    STREAMED_BYTES,
    Array,
    Form,
    Loss,
    Random,
    draw_loss,
    fill_loss,
    replaced,
    taken,
)
from tests.kernel.library import cast, to_float64

# Scaled, or summed over a tile of 1024 classes, they still fit the type computed in.
_LARGEST = {"float16": 6e4, "bfloat16": 1e32, "float32": 1e32, "float64": 1e300}
_SMALLEST = {"float16": 6e-8, "bfloat16": 1e-40, "float32": 1e-45, "float64": 5e-324}
# Around vectors of 4 to 32 lanes, chunks of 64 classes, tiles of 1024.
_CLASSES = (*range(1, 11), 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 255, 257, 1000, 1025)
_ROWS = (0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 129)
_MOST_ELEMENTS = 2000
_LARGE = (2 * 131072, 3 * 131072 + 1000)
_LARGE_CLASSES = (16, 129, 1000, 4099, 32000, 131072)
# Rows that begin anywhere in a cache line or with one, and are read a block at a time or alone.
_STREAMED_CLASSES = (16, 129, 1000, 4099, 32000, 65536, 70001)
_STREAMED_INNER = (3, 32, 65, 128)


def class_axis(shape: tuple[int, ...]) -> int:
    return 0 if len(shape) == 1 else 1


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if len(shape) == 1 else (shape[0], *shape[2:])


@dataclass(frozen=True, kw_only=True)
class LogitsForm(Form):
    """Of a loss of logits, or of log-probabilities."""

    shape: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        return rows_of(self.shape)

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def axis(self) -> int:
        """Of the classes."""
        return class_axis(self.shape)


@dataclass(frozen=True, kw_only=True)
class LogitsLoss(Loss):
    """A loss of logits, or of log-probabilities."""

    logits: Array

    @property
    def exact(self) -> tuple[Array, Array, Array | None]:
        """Logits, target and weight for the reference."""
        return to_float64(self.logits), self.exact_target, self.exact_weight

    def given(self) -> dict[str, Array]:
        return {"logits": self.logits, "log_prob": self.logits, **super().given()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        partial = (*self.form.rows, 3)
        return {"logits": self.form.shape, "partial": partial, **super().shapes()}

    def of_rows(self, rows: Array) -> LogitsLoss:
        """The loss of some rows of the first axis, in their order."""
        form = replace(self.form, shape=(len(rows), *self.form.shape[1:]))
        logits = taken(self.logits, rows)
        return replace(self, form=form, logits=logits, **self.replaced_rows(rows))

    def of_classes(self, order: Array) -> LogitsLoss:
        """The loss whose class i was class order[i]."""
        axis = self.form.axis
        logits = taken(self.logits, order, axis)
        return replace(self, logits=logits, **self.replaced_classes(order, axis))

    def with_spoiled(self, value: float) -> LogitsLoss:
        """With `value` for the logits of rows that do not count, and any target where a row weighs nothing."""
        axis, target = self.form.axis, self.target
        if self.row_weight is not None:
            nothing, anything = self.row_weight == 0, 250
            if self.form.probabilities:
                nothing, anything = np.expand_dims(nothing, axis), cast([value], self.form.target)
            target = replaced(target, nothing, anything)
        spoiled = np.expand_dims(~self.counting, axis)
        logits = replaced(self.logits, spoiled, cast([value], self.form.dtype))
        return replace(self, logits=logits, target=target)

    def block(self, first: int, end: int) -> LogitsLoss:
        """Of the classes [first, end), as an operation on a block of them takes it."""
        index, axis, target = np.arange(first, end), self.form.axis, self.target
        shape = list(self.form.shape)
        shape[axis] = end - first
        form = replace(self.form, shape=tuple(shape))
        form = form.with_options(class_offset=first, total_classes=self.form.classes)
        if form.probabilities:
            target = taken(target, index, axis)
        return replace(self, form=form, logits=taken(self.logits, index, axis), target=target)

    def __str__(self) -> str:
        form = self.form
        kind = "probabilities" if form.probabilities else form.target
        weights = [name for name in ("weight", "row_weight") if getattr(form, name)]
        return f"logits {form.shape} {form.dtype}, {kind}, {weights}, {form.options}"


@dataclass(frozen=True, kw_only=True)
class BlocksLoss(LogitsLoss):
    """A loss of logits of which each device has a block of the classes."""

    ends: tuple[int, ...]  # of the blocks

    def blocks(self) -> list[LogitsLoss]:
        return [self.block(*each) for each in zip((0, *self.ends), self.ends, strict=False)]

    def __str__(self) -> str:
        return f"{super().__str__()}, blocks that end at {self.ends}"


def _shape(random: Random) -> tuple[int, ...]:
    if random.integers(SMALL_FOR_ONE_LARGE) == 0:
        elements, classes = int(random.integers(*_LARGE)), int(random.choice(_LARGE_CLASSES))
        rows = max(elements // classes, 1)
        inner = int(random.choice((1, 1, 3, rows)))
        return (rows, classes) if inner == 1 else (max(rows // inner, 1), classes, inner)
    while True:
        classes = int(random.choice(_CLASSES))
        rank = int(random.choice((1, 2, 2, 2, 3, 3, 4)))
        rows = [int(random.choice(_ROWS)) for _ in range(rank - 1)]
        shape = (classes,) if rank == 1 else (rows[0], classes, *rows[1:])
        if np.prod(shape, dtype=float) <= _MOST_ELEMENTS:
            return shape


def _streamed_shape(random: Random, dtype: str) -> tuple[int, ...]:
    """Of gradients that go past the cache, with three rows and more along the first axis."""
    size = 8 if dtype == "float64" else 4 if dtype == "float32" else 2
    elements = int(STREAMED_BYTES // size * random.uniform(1.0, 1.3))
    classes = int(random.choice(_STREAMED_CLASSES))
    inner = int(random.choice(_STREAMED_INNER)) if random.random() < 0.3 else 1
    if 3 * classes * inner > elements:
        inner = 1
    outer = -(-elements // (classes * inner))
    return (outer, classes) if inner == 1 else (outer, classes, inner)


def draw_form(random: Random, classes_only: bool = False, streamed: bool = False) -> LogitsForm:
    """`classes_only`: with class indices. `streamed`: its gradient goes past the cache."""
    dtype = str(random.choice(DTYPES))
    shape = _streamed_shape(random, dtype) if streamed else _shape(random)
    given = draw_loss(random, dtype, shape[class_axis(shape)], classes_only)
    form = LogitsForm(shape=shape, **given)
    if streamed and form.options["reduction"] == "mean":  # whose rows depend on one another
        form = form.with_options(reduction="sum")
    return form


def fill(random: Random, form: LogitsForm) -> LogitsLoss:
    """Values for a form."""
    logits = _logits(random, form)
    return LogitsLoss(logits=logits, **fill_loss(random, form, form.axis))


def fill_within(random: Random, form: LogitsForm, most: float, absent: bool = False) -> LogitsLoss:
    """Values for a form, with logits that are numbers below `most`, or `absent`, which -inf says."""
    while True:
        drawn = fill(random, form)
        values = to_float64(drawn.logits)
        if np.all((np.abs(values) < most) | (absent & (values == -np.inf))):
            return drawn


def in_blocks(random: Random, drawn: LogitsLoss) -> BlocksLoss:
    """Its classes cut in at most four blocks."""
    classes = drawn.form.classes
    cuts = {int(cut) for cut in random.integers(1, max(classes, 2), random.integers(4))}
    ends = (*sorted(cut for cut in cuts if cut < classes), classes)
    return BlocksLoss(ends=ends, **vars(drawn))


def _logits(random: Random, form: LogitsForm) -> Array:
    shape, dtype = form.shape, form.dtype
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
        values = np.where(some, _LARGEST[dtype] * random.choice((-1, 1)), values)
    elif kind == 3:
        values = values * _SMALLEST[dtype]
    elif kind == 4:
        values = np.full(shape, values.flat[0] if values.size else 0.0)
    elif kind == 5:
        values = np.where(some, values + 60.0, values)  # one dominant class
    elif kind == 6:  # the first classes of a row, or the last, do not occur
        place = np.arange(form.classes)
        place = place.reshape([-1 if i == form.axis else 1 for i in range(len(shape))])
        cut = int(random.integers(form.classes + 1))
        values = np.where(place < cut if random.integers(2) else place >= cut, -np.inf, values)
    return cast(values, dtype)
