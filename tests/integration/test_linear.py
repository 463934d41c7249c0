"""linear_cross_entropy and its Cell against the float64 reference, in every mode and dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

import ms_ce
from ms_ce import reference
from tests.cases import round_to
from tests.integration.conftest import DTYPES, MODES, to_numpy, to_tensor

ROW_BYTES = 4  # of one float32 logit: chunk_bytes below are so many rows of so many classes


class Case(NamedTuple):
    """One call; `chunk_rows` cuts it into several chunks, the last one shorter."""

    name: str
    lead: tuple[int, ...]
    features: int = 7
    classes: int = 65
    bias: bool = True
    probabilities: bool = False
    weight: bool = False
    ignored: float = 0.0
    label_dtype: str = "int32"
    chunk_rows: int = 4
    shift: bool = False
    options: dict[str, Any] = {}

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
        rows = (*self.lead[:-1], self.lead[-1] - 1) if self.shift else self.lead
        shape = (self.classes, self.features)
        return {
            "input": round_to(random.normal(size=(*self.lead, self.features)), dtype),
            "linear_weight": round_to(random.normal(size=shape), dtype),
            "target": target,
            "linear_bias": round_to(random.normal(size=self.classes), dtype) if self.bias else None,
            "weight": round_to(random.random(self.classes) + 0.25, dtype) if self.weight else None,
            "grad_loss": round_to(random.normal(size=rows if none else ()), dtype),
        }

    def extras(self) -> dict[str, Any]:
        return {
            "chunk_bytes": self.chunk_rows * self.classes * ROW_BYTES,
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
    Case("ignored sum", (33,), ignored=0.9, label_dtype="uint8", options={"ignore_index": 255, **SUM}),
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
COMPILED = ("plain", "none", "ignored", "everything", "everything probabilities", "shift none")


def _tensors(data, dtype):
    names = ("input", "linear_weight", "target", "linear_bias", "weight", "grad_loss")
    return [to_tensor(data[name], dtype) for name in names]


def _reference(case, data):
    arguments = [data[name] for name in ("input", "linear_weight", "target", "linear_bias", "weight")]
    loss = reference.linear_cross_entropy(*arguments, shift=case.shift, **case.options).loss
    gradients = reference.linear_cross_entropy_grad(
        *arguments, shift=case.shift, **case.options, grad_loss=data["grad_loss"]
    )
    return [loss, *gradients]


# float32: sums of up to 1300 products of unit size, so 1e-5 of the largest result. The 16-bit dtypes add the one
# rounding of the result, and bfloat16 that of the logits' gradient (2^-8 of each of its terms).
RELATIVE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
# MindSpore's CPU exp and tanh: see tests/tolerances.py.
PRIMITIVES = 1e-4


def _check(actual, expected, case, backend, dtype, what):
    actual = to_numpy(actual).astype(np.float64)
    assert actual.shape == np.shape(expected), f"{what}: shape {actual.shape}"
    bound = RELATIVE[dtype] + (PRIMITIVES if backend != "cpu" else 0.0)
    allowed = bound * max(np.abs(expected).max(initial=0.0), 1e-3)
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= allowed, f"{case.name}, {what}: off by {error:.3g}, {allowed:.3g} allowed"


def _function(case, backend, present, gradient_in_forward):
    options = {**case.extras(), "backend": backend, "gradient_in_forward": gradient_in_forward}

    if present == (True, True):

        def loss(input, linear_weight, target, linear_bias, weight):
            return ms_ce.linear_cross_entropy(
                input, linear_weight, target, linear_bias, weight, **options
            )

    elif present == (True, False):

        def loss(input, linear_weight, target, linear_bias):
            return ms_ce.linear_cross_entropy(input, linear_weight, target, linear_bias, **options)

    else:

        def loss(input, linear_weight, target):
            return ms_ce.linear_cross_entropy(input, linear_weight, target, **options)

    return loss


def _run_case(case, dtype, backend, run, gradient_in_forward="auto"):
    data = case.inputs(dtype)
    *tensors, upstream = _tensors(data, dtype)
    present = (case.bias, case.weight)
    arguments = [tensor for tensor in tensors if tensor is not None]
    function = _function(case, backend, present, gradient_in_forward)

    def scaled(upstream, *arguments):
        return function(*arguments) * upstream

    expected = _reference(case, data)
    actual = run(function, *arguments)
    assert actual.dtype == getattr(ms, dtype)
    _check(actual, expected[0], case, backend, dtype, "loss")
    positions = (1, 2, 4) if case.bias else (1, 2)
    gradients = run(ms.grad(scaled, positions), upstream, *arguments)
    names = ("gradient of input", "gradient of linear_weight", "gradient of linear_bias")
    for name, gradient, value in zip(names, gradients, expected[1:], strict=False):
        _check(gradient, value, case, backend, dtype, name)


def _combinations():
    for case in CASES:
        for dtype in DTYPES:
            for backend in ("cpu", "composed"):
                for mode in MODES:
                    if backend == "composed" and case.name in ("many classes", "many features"):
                        continue
                    compiled = case.name in COMPILED and dtype in ("float32", "bfloat16")
                    if mode == "pynative" or (compiled and (mode == "jit" or dtype == "float32")):
                        name = f"{case.name}-{dtype}-{backend}-{mode}".replace(" ", "-")
                        yield pytest.param(case, dtype, backend, mode, id=name)


@pytest.mark.parametrize(("case", "dtype", "backend", "run"), list(_combinations()), indirect=["run"])
def test_loss_and_gradients(case, dtype, backend, run):
    _run_case(case, dtype, backend, run)


@pytest.mark.parametrize("gradient_in_forward", (True, False))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ("plain", "weight", "everything"))
def test_gradient_in_forward(name, dtype, gradient_in_forward, run):
    case = next(case for case in CASES if case.name == name)
    _run_case(case, dtype, "cpu", run, gradient_in_forward)
