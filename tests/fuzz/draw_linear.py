"""Linear losses drawn at random, as tests/fuzz/draw.py draws losses of logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.draw import (
    DTYPES,
    SMALL_FOR_ONE_LARGE,
    Array,
    draw_classes,
    draw_probabilities,
    renamed,
    replaced,
    taken,
    weights,
)
from tests.kernel.call import placeholder
from tests.kernel.library import NO_ROW_WEIGHT, cast, dtype_name, options, plan, to_float64

# Around tiles of 6 by 8 to 64, panels of 16 to 96 rows, sums that are cut at 128 classes and at 256 features.
_ROWS = (1, 1, 2, 3, 5, 6, 7, 8, 13, 16, 17, 31, 33)
_CLASSES = (1, 2, 3, 5, 8, 9, 13, 16, 17, 31, 33, 64, 65, 97, 129)
_FEATURES = (1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 65, 130, 259)
_MOST_PRODUCTS = 60000


class LinearForm(NamedTuple):
    """All of a linear loss but its values; of weights their dtype, None where there are none."""

    rows: tuple[int, ...]
    features: int
    classes: int
    dtype: str
    parameters: str  # dtype of the layer's weight and bias
    bias: bool
    target: str
    probabilities: bool
    weight: str | None
    row_weight: bool
    shift: bool
    options: dict[str, Any]


class LinearDrawn(NamedTuple):
    """A linear loss and how it is called. Values are as the kernel gets them."""

    form: LinearForm
    hidden: Array
    linear_weight: Array
    linear_bias: Array | None
    target: Array
    weight: Array | None
    row_weight: Array | None
    upstream: Array
    chunk_bytes: int
    odd: int  # elements between a cache line and a tensor

    @property
    def options(self) -> dict[str, Any]:
        return self.form.options

    @property
    def exact(self) -> tuple[Array | None, ...]:
        """Input, weight, target, bias and class weight for the reference."""
        target = to_float64(self.target) if self.form.probabilities else np.asarray(self.target)
        bias, weight = (
            None if each is None else to_float64(each) for each in (self.linear_bias, self.weight)
        )
        return to_float64(self.hidden), to_float64(self.linear_weight), target, bias, weight

    @property
    def counting(self) -> Array:
        """Whether each hidden state counts, of the rows' shape."""
        counts = np.ones(self.form.rows, bool)
        if not self.form.probabilities:
            counts &= np.asarray(self.target).astype(np.int64) != self.options["ignore_index"]
        if self.row_weight is not None:
            counts = np.asarray(counts & (self.row_weight != 0))
        if self.form.shift:
            counts = np.concatenate([counts[..., 1:], np.zeros_like(counts[..., :1])], -1)
        return counts

    def given(self) -> dict[str, Array]:
        """The inputs of every operation of the linear loss by name."""
        nothing = placeholder(self.form.dtype)
        flags = {
            "has_weight": self.weight is not None,
            "has_row_weight": self.row_weight is not None,
        }
        no_bias = cast(np.zeros(()), self.form.dtype)
        return {
            "input": self.hidden,
            "linear_weight": self.linear_weight,
            "target": self.target,
            "linear_bias": no_bias if self.linear_bias is None else self.linear_bias,
            "weight": nothing if self.weight is None else self.weight,
            "row_weight": NO_ROW_WEIGHT if self.row_weight is None else self.row_weight,
            "options": options(**self.options, **flags),
            "plan": plan(chunk_bytes=self.chunk_bytes, shift=self.form.shift),
            "grad_loss": self.upstream,
            "grad_z_loss": nothing,
        }  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the outputs, by their extent."""
        form, per_row = self.form, self.options["reduction"] == "none"
        return {
            "scalar": (),
            "rows": form.rows,
            "loss": form.rows if per_row else (),
            "target": self.target.shape,
            "weight": np.shape(self.weight),
            "input": self.hidden.shape,
            "linear_weight": self.linear_weight.shape,
            "linear_bias": np.shape(self.linear_bias),
        }

    def dtypes(self) -> dict[str, str]:
        """Of the outputs, by their type."""
        weight = self.form.dtype if self.weight is None else dtype_name(self.weight)
        own = {"P": dtype_name(self.target), "F": self.form.dtype, "W": weight}
        return {"D": "float64", "I": "int64", **own}

    def with_options(self, **changes: Any) -> LinearDrawn:
        return self._replace(form=self.form._replace(options={**self.options, **changes}))

    def of_rows(self, rows: Array) -> LinearDrawn:
        """The loss of some rows of the first axis, in their order."""
        per_row = self.options["reduction"] == "none"
        return self._replace(
            form=self.form._replace(rows=(len(rows), *self.form.rows[1:])),
            hidden=taken(self.hidden, rows),
            target=taken(self.target, rows),
            row_weight=taken(self.row_weight, rows),
            upstream=taken(self.upstream, rows) if per_row else self.upstream,
        )

    def of_classes(self, order: Array) -> LinearDrawn:
        """The loss whose class i was class order[i]."""
        if self.form.probabilities:
            target = taken(self.target, order, -1)
        else:
            target = renamed(self.target, order, self.options["ignore_index"])
        return self._replace(
            linear_weight=taken(self.linear_weight, order),
            linear_bias=taken(self.linear_bias, order),
            target=target,
            weight=taken(self.weight, order),
        )

    def with_spoiled(self, value: float) -> LinearDrawn:
        """With `value` for the hidden states of rows that do not count."""
        spoiled = np.expand_dims(~self.counting, -1)
        hidden = replaced(self.hidden, spoiled, cast([value], self.form.dtype))
        return self._replace(hidden=hidden)

    def __str__(self) -> str:
        form = self.form
        kind = "probabilities" if form.probabilities else form.target
        given = [name for name in ("bias", "weight", "row_weight", "shift") if getattr(form, name)]
        sizes = f"{form.rows}, {form.features} features, {form.classes} classes"
        dtypes = f"{form.dtype} and {form.parameters}"
        return f"linear {sizes}, {dtypes}, {kind}, {given}, chunks of {self.chunk_bytes}, {form.options}"


def _sizes(random: np.random.Generator) -> tuple[tuple[int, ...], int, int]:
    if random.integers(SMALL_FOR_ONE_LARGE) == 0:  # work for three threads
        return (int(random.integers(64, 100)),), int(random.choice((64, 130))), 1000
    while True:
        rank = int(random.choice((0, 1, 1, 1, 2, 2, 3)))
        rows = tuple(int(random.choice(_ROWS)) for _ in range(rank))
        features, classes = int(random.choice(_FEATURES)), int(random.choice(_CLASSES))
        if np.prod(rows, dtype=float) * features * classes <= _MOST_PRODUCTS:
            return rows, features, classes


def draw_linear_form(
    random: np.random.Generator, classes_only: bool = False, mixed: bool = False
) -> LinearForm:
    """`mixed`: hidden states of 16 bits may meet parameters of float32."""
    rows, features, classes = _sizes(random)
    dtype, probabilities = str(random.choice(DTYPES)), not classes_only and bool(random.random() < 0.3)  # fmt: skip
    kinds = ("int64", "int32", "uint8") if classes <= 255 else ("int64", "int32")
    ignored = -100 if probabilities else int(random.choice((-100, 255, 0, -1)))
    wide = mixed and dtype in ("float16", "bfloat16") and random.random() < 0.3
    given = {
        "ignore_index": ignored,
        "reduction": str(random.choice(("none", "mean", "sum"))),
        "label_smoothing": float(random.choice((0.0, 0.0, 0.1, 1.0, random.random()))),
        "z_loss": float(random.choice((0.0, 0.0, 1e-4, 0.1))),
        "softcap": float(random.choice((0.0, 0.0, 0.0, 1.0, 30.0))),
        "logit_scale": float(random.choice((1.0, 1.0, 0.7, -1.3, 0.0))),
    }
    return LinearForm(
        rows,
        features,
        classes,
        dtype,
        "float32" if wide else dtype,
        bool(random.random() < 0.5),
        str(random.choice(("float32", dtype) if probabilities else kinds)),
        probabilities,
        str(random.choice(("float32", dtype))) if random.random() < 0.4 else None,
        bool(random.random() < 0.3),
        bool(rows) and bool(random.random() < 0.3),
        given,
    )


def fill_linear(random: np.random.Generator, form: LinearForm) -> LinearDrawn:
    """Values for a form. They are finite, and so are the logits in any type computed in."""
    rows, classes, features = form.rows, form.classes, form.features
    if form.probabilities:
        target = draw_probabilities(random, (*rows, classes), -1, form.target)
    else:
        ignored = form.options["ignore_index"]
        target = draw_classes(random, rows, classes, form.target, ignored)
    size = 10.0 ** random.uniform(-2, 1)
    row_bytes = classes * (8 if form.dtype == "float64" else 4)
    upstream = random.normal(size=rows if form.options["reduction"] == "none" else ())
    bias = cast(3 * random.normal(size=classes), form.parameters) if form.bias else None
    weight = cast(weights(random, (classes,)), form.weight) if form.weight else None
    return LinearDrawn(
        form,
        cast(size * random.normal(size=(*rows, features)), form.dtype),
        cast(2 * random.normal(size=(classes, features)) / np.sqrt(features), form.parameters),
        bias,
        target,
        weight,
        weights(random, rows) if form.row_weight else None,
        cast(upstream, form.dtype),
        int(random.integers(0, 5)) * row_bytes,
        int(random.integers(0, 9)),
    )
