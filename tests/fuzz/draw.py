"""Losses drawn at random: shapes, every kind of target and option, values at the dtypes' ends.

A form is what a compiled graph is made for, a drawn loss a form and its values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.kernel.call import placeholder
from tests.kernel.library import NO_ROW_WEIGHT, cast, dtype_name, options, to_float64

DTYPES = ("float32", "float16", "bfloat16", "float64")
# Scaled, or summed over a tile of 1024 classes, they still fit the type computed in.
LARGEST = {"float16": 6e4, "bfloat16": 1e32, "float32": 1e32, "float64": 1e300}
SMALLEST = {"float16": 6e-8, "bfloat16": 1e-40, "float32": 1e-45, "float64": 5e-324}
# Around vectors of 4 to 32 lanes, chunks of 64 classes, tiles of 1024.
_CLASSES = (*range(1, 11), 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 255, 257, 1000, 1025)
_ROWS = (0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 129)
_MOST_ELEMENTS = 2000
# Every so many losses one is large enough for two and three threads (ops/csrc/platform/thread_pool.cc).
SMALL_FOR_ONE_LARGE = 400
_LARGE = (2 * 131072, 3 * 131072 + 1000)
_LARGE_CLASSES = (16, 129, 1000, 4099, 32000, 131072)

Array = np.ndarray


class Form(NamedTuple):
    """All of a loss but its values; of weights their dtype, None where there are none."""

    shape: tuple[int, ...]
    dtype: str
    target: str
    probabilities: bool
    weight: str | None
    row_weight: bool
    options: dict[str, Any]

    @property
    def rows(self) -> tuple[int, ...]:
        return rows_of(self.shape)

    @property
    def classes(self) -> int:
        return self.shape[class_axis(self.shape)]


def class_axis(shape: tuple[int, ...]) -> int:
    return 0 if len(shape) == 1 else 1


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if len(shape) == 1 else (shape[0], *shape[2:])


def taken(array: Array | None, index: Array, axis: int = 0) -> Array | None:
    """Of an array of any dtype, bfloat16 too."""
    if array is None:
        return None
    return np.ascontiguousarray(np.take(np.asarray(array), index, axis)).view(type(array))


def replaced(array: Array, where: Array, value: Any) -> Array:
    """Of an array of any dtype, bfloat16 too."""
    mixed = np.where(where, np.asarray(value), np.asarray(array)).astype(array.dtype)
    return np.array(mixed, order="C").view(type(array))


def renamed(target: Array, order: Array, ignore_index: int) -> Array:
    """Class indices after class order[i] has become class i; ignored ones stay."""
    index = np.asarray(target).astype(np.int64)
    new = np.argsort(order)[np.where(index == ignore_index, 0, index)]
    return np.where(index == ignore_index, index, new).astype(target.dtype)


class Drawn(NamedTuple):
    """A loss of logits and how it is called. Values are as the kernel gets them."""

    form: Form
    logits: Array
    target: Array
    weight: Array | None
    row_weight: Array | None
    upstream: Array
    odd: int  # elements between a cache line and a tensor

    @property
    def options(self) -> dict[str, Any]:
        return self.form.options

    @property
    def exact(self) -> tuple[Array, Array, Array | None]:
        """Logits, target and weight for the reference."""
        target = to_float64(self.target) if self.form.probabilities else np.asarray(self.target)
        weight = None if self.weight is None else to_float64(self.weight)
        return to_float64(self.logits), target, weight

    @property
    def counting(self) -> Array:
        """Whether each row counts, of the rows' shape."""
        counts = np.ones(self.form.rows, bool)
        if not self.form.probabilities:
            counts &= np.asarray(self.target).astype(np.int64) != self.options["ignore_index"]
        return counts if self.row_weight is None else counts & (self.row_weight != 0)

    def given(self) -> dict[str, Array]:
        """The inputs of every operation on logits by name."""
        nothing = placeholder(self.form.dtype)
        flags = {
            "has_weight": self.weight is not None,
            "has_row_weight": self.row_weight is not None,
        }
        return {
            "logits": self.logits,
            "log_prob": self.logits,
            "target": self.target,
            "weight": nothing if self.weight is None else self.weight,
            "row_weight": NO_ROW_WEIGHT if self.row_weight is None else self.row_weight,
            "options": options(**self.options, **flags),
            "grad_loss": self.upstream,
            "grad_z_loss": nothing,
        }  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the outputs, by their extent."""
        per_row = self.options["reduction"] == "none"
        rows = self.form.rows
        return {
            "scalar": (), "rows": rows, "loss": rows if per_row else (), "logits": self.form.shape,
            "target": self.target.shape, "weight": np.shape(self.weight),
        }  # fmt: skip

    def dtypes(self) -> dict[str, str]:
        """Of the outputs, by their type."""
        weight = self.form.dtype if self.weight is None else dtype_name(self.weight)
        own = {"P": dtype_name(self.target), "F": self.form.dtype, "W": weight}
        return {"D": "float64", "I": "int64", **own}

    def with_options(self, **changes: Any) -> Drawn:
        return self._replace(form=self.form._replace(options={**self.options, **changes}))

    def of_rows(self, rows: Array) -> Drawn:
        """The loss of some rows of the first axis, in their order."""
        per_row = self.options["reduction"] == "none"
        return self._replace(
            form=self.form._replace(shape=(len(rows), *self.form.shape[1:])),
            logits=taken(self.logits, rows),
            target=taken(self.target, rows),
            row_weight=taken(self.row_weight, rows),
            upstream=taken(self.upstream, rows) if per_row else self.upstream,
        )

    def of_classes(self, order: Array) -> Drawn:
        """The loss whose class i was class order[i]."""
        axis = class_axis(self.form.shape)
        if self.form.probabilities:
            target = taken(self.target, order, axis)
        else:
            target = renamed(self.target, order, self.options["ignore_index"])
        return self._replace(
            logits=taken(self.logits, order, axis), target=target, weight=taken(self.weight, order)
        )

    def with_spoiled(self, value: float) -> Drawn:
        """With `value` for the logits of rows that do not count, and any target where a row weighs nothing."""
        axis, target = class_axis(self.form.shape), self.target
        if self.row_weight is not None:
            nothing, anything = self.row_weight == 0, 250
            if self.form.probabilities:
                nothing, anything = np.expand_dims(nothing, axis), cast([value], self.form.target)
            target = replaced(target, nothing, anything)
        spoiled = np.expand_dims(~self.counting, axis)
        logits = replaced(self.logits, spoiled, cast([value], self.form.dtype))
        return self._replace(logits=logits, target=target)

    def __str__(self) -> str:
        form = self.form
        kind = "probabilities" if form.probabilities else form.target
        weights = [name for name in ("weight", "row_weight") if getattr(form, name)]
        return f"logits {form.shape} {form.dtype}, {kind}, {weights}, {form.options}"


def _shape(random: np.random.Generator) -> tuple[int, ...]:
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


def draw_form(random: np.random.Generator, classes_only: bool = False) -> Form:
    """`classes_only`: with class indices."""
    shape, dtype = _shape(random), str(random.choice(DTYPES))
    classes, ignore_index = shape[class_axis(shape)], int(random.choice((-100, 255, 0, -1)))
    probabilities = not classes_only and bool(random.random() < 0.35)
    kinds = ("int64", "int32", "uint8") if classes <= 255 else ("int64", "int32")
    given = {
        "ignore_index": -100 if probabilities else ignore_index,
        "reduction": str(random.choice(("none", "mean", "sum"))),
        "label_smoothing": float(random.choice((0.0, 0.0, 0.1, 1.0, random.random()))),
        "z_loss": float(random.choice((0.0, 0.0, 1e-4, 0.1))),
        "softcap": float(random.choice((0.0, 0.0, 0.0, 1.0, 30.0))),
        "logit_scale": float(random.choice((1.0, 1.0, 0.7, -1.3, 0.0))),
    }
    return Form(
        shape,
        dtype,
        str(random.choice(("float32", dtype) if probabilities else kinds)),
        probabilities,
        str(random.choice(("float32", dtype))) if random.random() < 0.5 else None,
        bool(random.random() < 0.3),
        given,
    )


def _logits(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
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
        axis = class_axis(shape)
        place = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        cut = int(random.integers(shape[axis] + 1))
        values = np.where(place < cut if random.integers(2) else place >= cut, -np.inf, values)
    return cast(values, dtype)


def weights(random: np.random.Generator, size: tuple[int, ...]) -> Array:
    """Small multiples of 1/4, whose sums are exact in any order: those of both signs may cancel."""
    kind = random.integers(5)
    values = random.integers(1, 12, size) / 4.0
    if kind == 1:
        values = np.where(random.random(size) < 0.4, 0.0, values)
    elif kind == 2:
        values = np.where(random.random(size) < 0.5, -values, values)
    elif kind == 3:
        values = values * 2.0 ** int(random.choice((-10, 10)))
    return np.asarray(values)


def draw_probabilities(random, shape: tuple[int, ...], axis: int, dtype: str) -> Array:
    values = random.random(shape) + 1e-9
    values = np.where(random.random(shape) < 0.3, 0.0, values)
    if random.random() < 0.7:
        values = values / np.maximum(values.sum(axis, keepdims=True), 1e-9)
    return cast(values, dtype)


def draw_classes(random, rows: tuple[int, ...], classes: int, kind: str, ignored: int) -> Array:
    values = random.integers(0, classes, rows)
    if kind != "uint8" or 0 <= ignored <= 255:
        share = random.choice((0.0, 0.2, 1.0), p=(0.4, 0.5, 0.1))
        values = np.where(random.random(rows) < share, ignored, values)
    return np.asarray(values).astype(kind)


def fill(random: np.random.Generator, form: Form) -> Drawn:
    """Values for a form."""
    if form.probabilities:
        target = draw_probabilities(random, form.shape, class_axis(form.shape), form.target)
    else:
        ignored = form.options["ignore_index"]
        target = draw_classes(random, form.rows, form.classes, form.target, ignored)
    weight = None if form.weight is None else cast(weights(random, (form.classes,)), form.weight)
    row_weight = weights(random, form.rows) if form.row_weight else None
    upstream = random.normal(size=form.rows if form.options["reduction"] == "none" else ())
    return Drawn(
        form,
        _logits(random, form.shape, form.dtype),
        target,
        weight,
        row_weight,
        cast(upstream, form.dtype),
        int(random.integers(0, 9)),
    )
