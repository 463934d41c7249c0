"""Calls of the linear loss, their inputs and what the float64 reference says."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
import pytest

from ms_ce import reference
from tests.integration.conftest import to_numpy, to_tensor
from tests.support.cases import round_to

TENSORS = ("input", "linear_weight", "target", "linear_bias", "weight")
ROW_BYTES = 4  # of one float32 logit: chunk_bytes below are so many rows of so many classes


def loop_in_a_bprop(**only: Any) -> pytest.MarkDecorator:
    """The mark of a test that needs the gradient of several chunks in a graph and not from the forward pass;
    backend=None where it has no such parameter."""
    wanted = {"backend": "composed", **only}
    return pytest.mark.mindspore(
        ">=2.8",
        reason="a graph holds no loop over chunks in a bprop",
        only={name: value for name, value in wanted.items() if value is not None},
    )


def check_rows_keep_their_bits(losses_of, hidden, classes: int) -> None:
    """losses_of(hidden[rows], rows, chunk_bytes) are losses of rows; they and the gradients of hidden states have the
    same bits alone, beside other rows and in other chunks."""
    everything, some = list(range(len(hidden))), [0, 7, 8, 31]

    def of(rows, chunk_bytes):
        def losses(hidden):
            return losses_of(hidden, rows, chunk_bytes)

        def total(hidden):
            return losses(hidden).sum()

        return to_numpy(losses(hidden[rows])), to_numpy(ms.grad(total)(hidden[rows]))

    expected = [each[some] for each in of(everything, None)]
    row_bytes = ROW_BYTES * classes
    for rows, chunk_bytes in ((some, None), (some, row_bytes), (everything, 7 * row_bytes)):
        places = [rows.index(row) for row in some]
        for found, wanted in zip(of(rows, chunk_bytes), expected, strict=True):
            np.testing.assert_array_equal(found[places], wanted)


class Case(NamedTuple):
    """One call, by default in three chunks, the last one shorter."""

    name: str
    lead: tuple[int, ...]
    features: int = 7
    classes: int = 65
    bias: bool = True
    probabilities: bool = False
    weight: bool = False
    ignored: float = 0.0
    label_dtype: str = "int32"
    chunk_rows: int | None = None
    shift: bool = False
    options: dict[str, Any] = {}

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (*self.lead[:-1], self.lead[-1] - 1) if self.shift else self.lead

    @property
    def chunk_bytes(self) -> int:
        rows = self.chunk_rows or math.prod(self.row_shape) // 3 + 1
        return rows * self.classes * ROW_BYTES

    def inputs(self, dtype: str) -> dict[str, np.ndarray | None]:
        random = np.random.default_rng(7)
        if self.probabilities:
            target = random.random((*self.lead, self.classes))
            target = round_to(target / target.sum(-1, keepdims=True), dtype)
        else:
            target = np.array(random.integers(0, self.classes, self.lead))
            ignore_index = self.options.get("ignore_index", -100)
            target = np.where(random.random(self.lead) < self.ignored, ignore_index, target)
            target = target.astype(self.label_dtype)
        none = self.options.get("reduction") == "none"
        shape = (self.classes, self.features)
        return {
            "input": round_to(random.normal(size=(*self.lead, self.features)), dtype),
            "linear_weight": round_to(random.normal(size=shape), dtype),
            "target": target,
            "linear_bias": round_to(random.normal(size=self.classes), dtype) if self.bias else None,
            "weight": round_to(random.random(self.classes) + 0.25, dtype) if self.weight else None,
            "grad_loss": round_to(random.normal(size=self.row_shape if none else ()), dtype),
        }

    def extras(self) -> dict[str, Any]:
        return {
            "chunk_bytes": self.chunk_bytes,
            "shift": self.shift,
            **self.options,
        }


NONE, SUM = {"reduction": "none"}, {"reduction": "sum"}
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 4.0, "logit_scale": 1.5}

CASES = (
    Case("plain", (13,), bias=False),
    Case("one chunk", (13,), chunk_rows=100),
    Case("one row", (), chunk_rows=1),
    Case("leading shape", (2, 3, 5), options=SUM),
    Case("none", (4, 5), options=NONE),
    Case("few classes", (70,), classes=5),
    Case("many classes", (9,), classes=1300, features=33),
    Case("many features", (9,), features=700),
    Case("ignored", (4, 8), ignored=0.5, label_dtype="int64"),
    Case("ignored none", (4, 8), ignored=0.5, options=NONE),
    Case(
        "ignored sum", (33,), ignored=0.9, label_dtype="uint8", options={"ignore_index": 255, **SUM}
    ),
    Case("weight", (21,), weight=True, ignored=0.3),
    Case("smoothing", (21,), weight=True, ignored=0.3, options={"label_smoothing": 0.2}),
    Case("z-loss", (21,), options={"z_loss": 0.05}),
    Case("softcap", (21,), options={"softcap": 3.0}),
    Case("logit scale", (21,), options={"logit_scale": 0.3, **NONE}),
    Case("probabilities", (4, 5), probabilities=True, weight=True),
    Case("probabilities none", (11,), probabilities=True, options={"label_smoothing": 0.1, **NONE}),
    Case("shift", (3, 6), shift=True, ignored=0.2),
    Case("shift none", (2, 2, 5), shift=True, ignored=0.2, options=NONE),
    Case("shift probabilities", (3, 6), shift=True, probabilities=True),
    Case("everything", (3, 9), weight=True, ignored=0.3, shift=True, options=EVERYTHING),
    Case("everything probabilities", (17,), weight=True, probabilities=True, options=EVERYTHING),
)
# Those that are compiled too.
COMPILED = ("plain", "none", "ignored", "everything", "everything probabilities", "shift none")


def tensors_of(data, dtype):
    return [to_tensor(data[name], dtype) for name in (*TENSORS, "grad_loss")]


def reference_of(case, data):
    arguments = [data[name] for name in TENSORS]
    loss = reference.linear_cross_entropy(*arguments, shift=case.shift, **case.options).loss
    gradients = reference.linear_cross_entropy_grad(
        *arguments, shift=case.shift, **case.options, grad_loss=data["grad_loss"]
    )
    return [loss, *(getattr(gradients, name) for name in TENSORS)]
