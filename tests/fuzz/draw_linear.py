"""Losses of hidden states drawn at random: the linear loss and distillation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tests.fuzz.draw import (
    DTYPES,
    SMALL_FOR_ONE_LARGE,
    Array,
    Form,
    Loss,
    Random,
    draw_loss,
    fill_loss,
    replaced,
    taken,
)
from tests.kernel.library import cast, plan, to_float64

# Around tiles of 6 by 8 to 64, panels of 16 to 96 rows, sums that are cut at 128 classes and at 256 features.
_ROWS = (1, 1, 2, 3, 5, 6, 7, 8, 13, 16, 17, 31, 33)
_CLASSES = (1, 2, 3, 5, 8, 9, 13, 16, 17, 31, 33, 64, 65, 97, 129)
_FEATURES = (1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 65, 130, 259)
_MOST_PRODUCTS = 60000
# Every so many layers one has rows of several tiles, which are of 1024 classes.
_SMALL_FOR_ONE_OF_TILES = 30
_CLASSES_OF_TILES = (1023, 1024, 1025, 2049, 2500)


@dataclass(frozen=True, kw_only=True)
class HiddenForm(Form):
    """Of a loss of hidden states."""

    rows: tuple[int, ...]
    features: int
    classes: int
    parameters: str  # dtype of the layer's weight and bias
    bias: bool
    shift: bool = False


@dataclass(frozen=True, kw_only=True)
class HiddenLoss(Loss):
    """A loss of hidden states."""

    hidden: Array
    linear_weight: Array
    linear_bias: Array | None
    chunk_bytes: int

    @property
    def exact_layer(self) -> tuple[Array, Array, Array | None]:
        """Hidden states, weight and bias for the reference."""
        bias = None if self.linear_bias is None else to_float64(self.linear_bias)
        return to_float64(self.hidden), to_float64(self.linear_weight), bias

    @property
    def counting(self) -> Array:
        """Whether each hidden state counts, of the rows' shape."""
        counts = super().counting
        if self.form.shift:
            counts = np.concatenate([counts[..., 1:], np.zeros_like(counts[..., :1])], -1)
        return counts

    @property
    def counting_places(self) -> Array:
        """Whether what a hidden state is paired with counts, of the rows' shape: under shift it stands one later."""
        return np.roll(self.counting, 1, -1) if self.form.shift else self.counting

    def given(self) -> dict[str, Array]:
        return {
            "input": self.hidden,
            "linear_weight": self.linear_weight,
            "linear_bias": bias_given(self.linear_bias, self.form.dtype),
            "plan": plan(chunk_bytes=self.chunk_bytes, shift=self.form.shift),
            **super().given(),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "input": self.hidden.shape,
            "linear_weight": self.linear_weight.shape,
            "linear_bias": np.shape(self.linear_bias),
            **super().shapes(),
        }

    def of_rows(self, rows: Array) -> HiddenLoss:
        """The loss of some rows of the first axis, in their order."""
        form = replace(self.form, rows=(len(rows), *self.form.rows[1:]))
        hidden = taken(self.hidden, rows)
        return replace(self, form=form, hidden=hidden, **self.replaced_rows(rows))

    def of_classes(self, order: Array) -> HiddenLoss:
        """The loss whose class i was class order[i]."""
        layer = {
            "linear_weight": taken(self.linear_weight, order),
            "linear_bias": taken(self.linear_bias, order),
        }
        return replace(self, **layer, **self.replaced_classes(order, -1))

    def with_spoiled(self, value: float) -> HiddenLoss:
        """With `value` for the hidden states of rows that do not count."""
        spoiled = np.expand_dims(~self.counting, -1)
        return replace(self, hidden=replaced(self.hidden, spoiled, cast([value], self.form.dtype)))

    def __str__(self) -> str:
        form = self.form
        kind = "probabilities" if form.probabilities else form.target
        given = [name for name in ("bias", "weight", "row_weight", "shift") if getattr(form, name)]
        sizes = f"{form.rows}, {form.features} features, {form.classes} classes"
        dtypes = f"{form.dtype} and {form.parameters}"
        return f"linear {sizes}, {dtypes}, {kind}, {given}, chunks of {self.chunk_bytes}, {form.options}"


def bias_given(bias: Array | None, dtype: str) -> Array:
    """As operations take it."""
    return cast(np.zeros(()), dtype) if bias is None else bias


def bytes_computed(form: Form) -> int:
    """Of an element of the type that is computed in."""
    return 8 if form.dtype == "float64" else 4


def draw_sizes(random: Random) -> tuple[tuple[int, ...], int, int]:
    """Rows, features and classes."""
    if random.integers(SMALL_FOR_ONE_LARGE) == 0:  # work for three threads
        return (int(random.integers(64, 100)),), int(random.choice((64, 130))), 1000
    if random.integers(_SMALL_FOR_ONE_OF_TILES) == 0:
        rows, features = int(random.integers(1, 8)), int(random.integers(1, 4))
        return (rows,), features, int(random.choice(_CLASSES_OF_TILES))
    while True:
        rank = int(random.choice((0, 1, 1, 1, 2, 2, 3)))
        rows = tuple(int(random.choice(_ROWS)) for _ in range(rank))
        features, classes = int(random.choice(_FEATURES)), int(random.choice(_CLASSES))
        if np.prod(rows, dtype=float) * features * classes <= _MOST_PRODUCTS:
            return rows, features, classes


def draw_layer_form(random: Random, mixed: bool) -> dict[str, object]:
    """Sizes and dtypes. `mixed`: hidden states of 16 bits may meet parameters of float32."""
    rows, features, classes = draw_sizes(random)
    dtype = str(random.choice(DTYPES))
    wide = mixed and dtype in ("float16", "bfloat16") and random.random() < 0.3
    return {
        "rows": rows,
        "features": features,
        "classes": classes,
        "dtype": dtype,
        "parameters": "float32" if wide else dtype,
        "bias": bool(random.random() < 0.5),
        "shift": bool(rows) and bool(random.random() < 0.3),
    }


def draw_linear_form(random: Random, classes_only: bool = False, mixed: bool = False) -> HiddenForm:
    layer = draw_layer_form(random, mixed)
    given = draw_loss(random, str(layer["dtype"]), int(layer["classes"]), classes_only)
    return HiddenForm(**layer | given)


def draw_layer(
    random: Random, form: HiddenForm, features: int, dtypes: tuple[str, str]
) -> tuple[Array, Array]:
    """Hidden states and weight, of the dtypes: they are finite, and so are the logits in any type computed in."""
    size = 10.0 ** random.uniform(-2, 1)
    hidden = size * random.normal(size=(*form.rows, features))
    weight = 2 * random.normal(size=(form.classes, features)) / np.sqrt(features)
    return cast(hidden, dtypes[0]), cast(weight, dtypes[1])


def draw_chunk_bytes(random: Random, form: HiddenForm) -> int:
    """A few rows, or 0, which leaves them to the loss."""
    return int(random.integers(0, 5)) * form.classes * bytes_computed(form)


def fill_linear(random: Random, form: HiddenForm) -> HiddenLoss:
    """Values for a form."""
    hidden, weight = draw_layer(random, form, form.features, (form.dtype, form.parameters))
    bias = cast(3 * random.normal(size=form.classes), form.parameters) if form.bias else None
    return HiddenLoss(
        hidden=hidden,
        linear_weight=weight,
        linear_bias=bias,
        chunk_bytes=draw_chunk_bytes(random, form),
        **fill_loss(random, form, -1),
    )
