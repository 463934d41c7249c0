"""What drawn losses of every kind share: kinds of targets, options, weights, and how a loss is told to the kernel.

A form is what a compiled graph is made for, a drawn loss a form and its values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.kernel.call import placeholder
from tests.kernel.library import (
    NO_ROW_WEIGHT,
    cast,
    dtype_name,
    fixed_dtypes,
    options,
    to_float64,
)

DTYPES = ("float32", "float16", "bfloat16", "float64")
# Every so many losses one is large enough for two and three threads (ops/csrc/platform/thread_pool.cc).
SMALL_FOR_ONE_LARGE = 400
# Every so many losses of logits one has a gradient that goes past the cache (ops/csrc/loss/run.cc).
SMALL_FOR_ONE_STREAMED = 200
STREAMED_BYTES = 8 << 20
REDUCTIONS = ("none", "mean", "sum")

Array = np.ndarray
Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Form:
    """All of a loss but its values; of weights their dtype, None where there are none. Each kind has `rows`, the shape
    of the losses, and `classes`."""

    dtype: str
    target: str = "none"
    probabilities: bool = False
    weight: str | None = None
    row_weight: bool = False
    options: dict[str, Any]

    def with_options(self, **changes: Any) -> Any:
        return replace(self, options={**self.options, **changes})


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss and how it is called. Values are as the kernel gets them."""

    form: Any
    target: Any = None
    weight: Array | None = None
    row_weight: Array | None = None
    upstream: Array
    odd: int  # elements between a cache line and a tensor

    @property
    def options(self) -> dict[str, Any]:
        return self.form.options

    @property
    def per_row(self) -> bool:
        return self.options["reduction"] == "none"

    @property
    def exact_target(self) -> Array:
        return to_float64(self.target) if self.form.probabilities else np.asarray(self.target)

    @property
    def exact_weight(self) -> Array | None:
        return None if self.weight is None else to_float64(self.weight)

    @property
    def kept_class(self) -> int:
        """The class that keeps its place wherever classes change theirs: one may be the ignored one."""
        has_classes = self.target is not None and not self.form.probabilities
        return self.options["ignore_index"] if has_classes else -1

    @property
    def counting(self) -> Array:
        """Whether each row counts, of the rows' shape."""
        counts = np.ones(self.form.rows, bool)
        if self.target is not None and not self.form.probabilities:
            counts &= np.asarray(self.target).astype(np.int64) != self.options["ignore_index"]
        return counts if self.row_weight is None else np.asarray(counts & (self.row_weight != 0))

    def given(self) -> dict[str, Array]:
        """The inputs of operations by name."""
        nothing = placeholder(self.form.dtype)
        flags = {
            "has_weight": self.weight is not None,
            "has_row_weight": self.row_weight is not None,
        }
        return {
            "target": self.target,
            "weight": nothing if self.weight is None else self.weight,
            "row_weight": NO_ROW_WEIGHT if self.row_weight is None else self.row_weight,
            "options": options(**self.options, **flags),
            "grad_loss": self.upstream,
            "grad_z_loss": nothing,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the outputs, by their extent."""
        rows = self.form.rows
        return {
            "scalar": (),
            "rows": rows,
            "loss": rows if self.per_row else (),
            "target": np.shape(self.target),
            "weight": np.shape(self.weight),
        }

    def dtypes(self) -> dict[str, str]:
        """Of the outputs, by their type."""
        given = {"P": self.target, "W": self.weight}
        own = {kind: dtype_name(each) for kind, each in given.items() if each is not None}
        return {**fixed_dtypes(), "F": self.form.dtype, "W": self.form.dtype, **own}

    def with_options(self, **changes: Any) -> Any:
        return replace(self, form=self.form.with_options(**changes))

    def replaced_rows(self, rows: Array) -> dict[str, Any]:
        """What of_rows changes of every loss."""
        return {
            "target": taken(self.target, rows),
            "row_weight": taken(self.row_weight, rows),
            "upstream": taken(self.upstream, rows) if self.per_row else self.upstream,
        }

    def replaced_classes(self, order: Array, axis: int) -> dict[str, Any]:
        """What of_classes changes of every loss; `axis` is that of the classes in probabilities."""
        if self.form.probabilities:
            target = taken(self.target, order, axis)
        else:
            target = renamed(self.target, order, self.options["ignore_index"])
        return {"target": target, "weight": taken(self.weight, order)}


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


def draw_softmax(random: Random) -> dict[str, float]:
    """What a softmax is taken of: the options that every loss has."""
    return {
        "softcap": float(random.choice((0.0, 0.0, 0.0, 1.0, 30.0))),
        "logit_scale": float(random.choice((1.0, 1.0, 0.7, -1.3, 0.0))),
    }


def draw_loss(random: Random, dtype: str, classes: int, classes_only: bool) -> dict[str, Any]:
    """The fields of a form of logits or hidden states, but for their sizes."""
    probabilities = not classes_only and bool(random.random() < 0.35)
    kinds = ("int64", "int32", "uint8") if classes <= 255 else ("int64", "int32")
    options = {
        "ignore_index": -100 if probabilities else int(random.choice((-100, 255, 0, -1))),
        "reduction": str(random.choice(REDUCTIONS)),
        "label_smoothing": float(random.choice((0.0, 0.0, 0.1, 1.0, random.random()))),
        "z_loss": float(random.choice((0.0, 0.0, 1e-4, 0.1))),
        **draw_softmax(random),
    }
    return {
        "dtype": dtype,
        "target": str(random.choice(("float32", dtype) if probabilities else kinds)),
        "probabilities": probabilities,
        "weight": str(random.choice(("float32", dtype))) if random.random() < 0.5 else None,
        "row_weight": bool(random.random() < 0.3),
        "options": options,
    }


def fill_loss(random: Random, form: Any, axis: int) -> dict[str, Any]:
    """Values of the fields that losses of logits and of hidden states share; `axis` is that of the classes."""
    if form.probabilities:
        shape = list(form.rows)
        shape.insert(len(shape) if axis < 0 else axis, form.classes)
        target = _probabilities(random, tuple(shape), axis, form.target)
    else:
        target = _classes(random, form)
    weight = None if form.weight is None else cast(_weights(random, (form.classes,)), form.weight)
    return {"form": form, "target": target, "weight": weight, **fill_rows(random, form)}


def fill_rows(random: Random, form: Any) -> dict[str, Any]:
    """Values of the fields that every loss has."""
    if form.options["reduction"] == "none":
        upstream = random.normal(size=form.rows)
    else:
        upstream = random.normal() if random.random() < 0.7 else 1.0
    return {
        "row_weight": _weights(random, form.rows) if form.row_weight else None,
        "upstream": cast(upstream, form.dtype),
        "odd": int(random.integers(0, 9)),
    }


def _weights(random: Random, size: tuple[int, ...]) -> Array:
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


def _probabilities(random: Random, shape: tuple[int, ...], axis: int, dtype: str) -> Array:
    values = random.random(shape) + 1e-9
    values = np.where(random.random(shape) < 0.3, 0.0, values)
    if random.random() < 0.7:
        values = values / np.maximum(values.sum(axis, keepdims=True), 1e-9)
    return cast(values, dtype)


def _classes(random: Random, form: Any) -> Array:
    values, ignored = random.integers(0, form.classes, form.rows), form.options["ignore_index"]
    if form.target != "uint8" or 0 <= ignored <= 255:
        share = random.choice((0.0, 0.2, 1.0), p=(0.4, 0.5, 0.1))
        values = np.where(random.random(form.rows) < share, ignored, values)
    return np.asarray(values).astype(form.target)
