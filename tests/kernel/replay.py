"""Writes calls of every operation with what they must return, for the stand-alone binary to run again.

    python -m tests.kernel.replay FILE

The expected values come from ms_ce/reference.py in float64. A file is little-endian and holds calls one after the
other until it ends:

    text    name of the operation; a text is int64 length and its bytes
    int64   number of tensors, inputs first
    tensor  text dtype, int64 rank, int64 each size, int64 kind, then by kind
            0  an input: its bytes
            1  an output: float64 expected value of each element, float64 allowed error of each element
            2  an input that is changed where it lies: as 0, then as 1
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tests.cases import CASES, NLL_CASES, Case
from tests.kernel.library import Library, cast, dtype_name, options, plan, to_float64
from tests.kernel.operations import reference
from tests.linear_tolerances import RELATIVE
from tests.tolerances import tolerance, ulp

DTYPES = ("float32", "float16", "bfloat16", "float64")
# As in tests/kernel/test_against_reference.py: sums of several rounded terms.
WIDER = {"entropy": 4, "grad_grad_loss": 8, "grad_grad_z_loss": 8}
FEATURES = 19


def _text(out: BinaryIO, text: str) -> None:
    out.write(struct.pack("<q", len(text)) + text.encode())


def _allowed(expected: np.ndarray, dtype: str, bound: Any, wider: float) -> np.ndarray:
    finite = np.where(np.isfinite(expected), expected, 0.0)
    allowed = wider * (bound.relative * np.abs(finite) + bound.absolute)
    return allowed + (bound.ulps * ulp(finite, dtype) if bound.ulps else 0.0)


class Call:
    """One operation, its arguments by name, and what it must return by name."""

    def __init__(self, name: str, dtype: str, given: dict, expected: dict, linear: bool = False):
        self.operation = Library().operations[name]
        self.dtype, self.given, self.expected, self.linear = dtype, given, expected, linear

    def _bound(self, name: str, expected: np.ndarray, dtype: str) -> np.ndarray:
        if self.linear and dtype != "int64":
            largest = np.abs(expected, where=np.isfinite(expected), out=np.zeros(expected.shape))
            size = max(largest.max(initial=0.0), 1e-3)
            return np.full(expected.shape, RELATIVE[self.dtype] * size)
        if dtype == "int64":
            return np.zeros(expected.shape)
        rows = max(1.0, np.size(self.given["target"]) / 10) if name == "grad_weight" else 1.0
        wide = dtype if name in ("loss", "total_weight") or dtype != "float64" else self.dtype
        bound = tolerance("cpu", wide)
        if dtype == "float64":
            bound = bound._replace(ulps=0)
        return _allowed(expected, dtype, bound, WIDER.get(name, 1) * rows)

    def _out_dtype(self, argument: dict[str, str]) -> str:
        fixed = {"D": "float64", "I": "int64"}.get(argument["type"])
        if fixed is not None:
            return fixed
        kind = {"P": "target", "W": "weight"}.get(argument["type"])
        return self.dtype if kind is None else dtype_name(self.given[kind])

    def _write_expected(self, out: BinaryIO, name: str, dtype: str) -> None:
        expected = np.asarray(self.expected[name], np.float64)
        if dtype == "float16":
            with np.errstate(over="ignore"):
                large = np.abs(expected) >= 65520.0
            expected = np.where(large, np.copysign(np.inf, expected), expected)
        for values in (expected, self._bound(name, expected, dtype)):
            out.write(np.ascontiguousarray(values, "<f8").tobytes())

    def write(self, out: BinaryIO) -> None:
        inputs, outputs = self.operation["inputs"], self.operation["outputs"]
        _text(out, self.operation["name"])
        out.write(struct.pack("<q", len(inputs) + len(outputs)))
        for argument in inputs:
            array = self.given[argument["name"]]
            changed = argument["name"] in self.expected
            self._head(out, dtype_name(array), array.shape, 2 if changed else 0)
            out.write(np.ascontiguousarray(array).tobytes())
            if changed:
                self._write_expected(out, argument["name"], dtype_name(array))
        for argument in outputs:
            dtype = self._out_dtype(argument)
            self._head(out, dtype, np.shape(self.expected[argument["name"]]), 1)
            self._write_expected(out, argument["name"], dtype)

    @staticmethod
    def _head(out: BinaryIO, dtype: str, shape: tuple[int, ...], kind: int) -> None:
        _text(out, dtype)
        out.write(struct.pack(f"<q{len(shape)}qq", len(shape), *shape, kind))


def _sum_of_rows(rows: np.ndarray, shape: tuple[int, ...], per_row: bool) -> np.ndarray:
    return rows.sum(1).reshape(shape) if per_row else rows.sum()


def loss_calls(case: Case, dtype: str) -> list[Call]:
    """Every operation on logits that takes this case."""
    drawn = case.inputs(dtype)
    logits, upstream = cast(drawn["logits"], dtype), cast(drawn["grad_loss"], dtype)
    target = cast(drawn["target"], dtype) if case.probabilities else drawn["target"]
    weight = None if drawn["weight"] is None else cast(drawn["weight"], dtype)
    settings = {"reduction": "mean", **case.options}
    per_row = settings["reduction"] == "none"
    exact = (
        to_float64(logits),
        to_float64(target) if case.probabilities else target,
        None if weight is None else to_float64(weight),
    )
    result = reference.cross_entropy(*exact, **settings)
    rows = result.lse.shape
    direction = cast(np.random.default_rng(1).normal(size=case.shape), dtype)

    def gradient(**changes: Any) -> Any:
        return reference.cross_entropy_grad(*exact, **{**settings, **changes})

    def along(**changes: Any) -> np.ndarray:
        unit = gradient(grad_loss=np.ones(rows if per_row else ()), **changes).logits
        product = reference.to_rows(unit * to_float64(direction))
        return _sum_of_rows(product, rows, per_row)

    of_lse = {name: settings[name] for name in ("softcap", "logit_scale") if name in settings}
    slope = reference.lse_grad(exact[0], **of_lse) * to_float64(direction)
    mean = reference.to_rows(slope).sum(1).reshape(rows)
    if not case.probabilities:
        mean = np.where(target == settings.get("ignore_index", -100), 0.0, mean)
    grads = gradient(grad_loss=to_float64(upstream))
    given = {
        "logits": logits,
        "target": target,
        "weight": cast(np.full(1, np.nan), dtype) if weight is None else weight,
        "options": options(**settings, has_weight=weight is not None),
        "grad_loss": upstream,
        "grad_z_loss": cast(np.full(1, np.nan), dtype),
        "lse": np.asarray(result.lse, np.float64),
        "total_weight": np.asarray(result.total_weight, np.float64),
        "direction": direction,
    }
    expected = {
        **result._asdict(),
        "grad_logits": grads.logits,
        "grad_target": grads.target,
        "grad_weight": grads.weight,
    }
    second = {
        "grad_grad_loss": along(),
        "grad_grad_z_loss": along() - along(z_loss=0.0),
        "grad_logits": reference.cross_entropy_hvp(
            to_float64(direction), *exact, **settings, grad_loss=to_float64(upstream)
        ),
        "direction_mean": mean,
    }
    suffix = "Rows" if per_row else ""
    names = ["Forward" + suffix, "Stats" + suffix, "Backward"]
    names += ["TargetGrad"] * case.probabilities + ["WeightGrad"] * (weight is not None)
    calls = [Call("CrossEntropy" + name, dtype, given, expected) for name in names]
    calls.append(Call("CrossEntropyDoubleBackward", dtype, given, second))
    if not per_row:
        unit = {**expected, "grad_logits": gradient().logits}
        calls.append(Call("CrossEntropyValueAndGrad", dtype, given, unit))
    return calls


def nll_calls(case: Case, dtype: str) -> list[Call]:
    """NLL of the case's logits as log-probabilities."""
    drawn = case.inputs(dtype)
    log_prob, upstream = cast(drawn["logits"], dtype), cast(drawn["grad_loss"], dtype)
    weight = None if drawn["weight"] is None else cast(drawn["weight"], dtype)
    exact = (to_float64(log_prob), drawn["target"], None if weight is None else to_float64(weight))
    loss, total_weight = reference.nll_loss(*exact, **case.options)
    grads = reference.nll_loss_grad(*exact, **case.options, grad_loss=to_float64(upstream))
    given = {
        "log_prob": log_prob,
        "target": drawn["target"],
        "weight": cast(np.full(1, np.nan), dtype) if weight is None else weight,
        "options": options(**case.options, has_weight=weight is not None),
        "grad_loss": upstream,
    }
    suffix = "Rows" if case.options.get("reduction") == "none" else ""
    expected = {"loss": loss, "total_weight": total_weight, "grad_log_prob": grads.logits}
    return [Call("NLL" + name, dtype, given, expected) for name in ("Forward" + suffix, "Backward")]


def block_calls(dtype: str, probabilities: bool) -> list[Call]:
    """Every operation on a block of the classes: classes 4 to 12 of 17, in the formulas of reference.py."""
    random = np.random.default_rng(9)
    block, classes, smoothing = slice(4, 13), 17, 0.1
    logits = cast(random.normal(size=(6, classes)), dtype)
    weight = cast(random.random(classes), dtype)
    target = random.integers(0, classes, 6)
    q = np.eye(classes)[target]
    if probabilities:
        target = cast(random.random((6, classes)), dtype)
        q = to_float64(target)
    x, w = to_float64(logits), to_float64(weight)
    factor = w * ((1 - smoothing) * q + smoothing / classes)
    lse, own = (np.log(np.exp(part).sum(1)) for part in (x, x[:, block]))
    dot, mass = ((factor[:, block] * values).sum(1) for values in (x[:, block], 1.0))
    grad_rows, grad_lse, whole_mass = random.normal(size=6), random.normal(size=6), factor.sum(1)
    p = np.exp(x - lse[:, None])[:, block]
    of_rows = grad_rows[:, None] * (whole_mass[:, None] * p - factor[:, block])
    settings = {"reduction": "none", "label_smoothing": smoothing}
    exact = (x, q if probabilities else target, w)
    whole = reference.cross_entropy_grad(*exact, **settings, grad_loss=grad_rows)
    grad_weight = np.zeros(classes)
    grad_weight[block] = whole.weight[block]
    given = {
        "logits": logits[:, block].copy(),
        "target": target[:, block].copy() if probabilities else target,
        "weight": weight,
        "options": options(**settings, class_offset=4, total_classes=classes, has_weight=True),
        "grad_rows": grad_rows,
        "grad_lse": grad_lse,
        "lse": lse,
        "mass": whole_mass,
        "total_weight": np.zeros(()),
    }
    expected = {
        "partial": np.stack([own, dot, mass], axis=1),
        "grad_logits": of_rows + grad_lse[:, None] * p,
        "grad_weight": grad_weight,
    }
    names = ["", "Backward", "WeightGrad"]
    if probabilities:
        expected["grad_target"] = whole.target[:, block]
        names.append("TargetGrad")
    return [Call("CrossEntropyPartial" + name, dtype, given, expected) for name in names]


# Operations of the linear loss that leave out gradients nobody wants.
LEFT_OUT = {
    "": (),
    "Input": ("linear_weight",),
    "Weight": ("input",),
    "Bias": ("input", "linear_weight"),
}


def linear_calls(dtype: str, reduction: str) -> list[Call]:
    """Every operation of the linear loss, in chunks of two rows."""
    random = np.random.default_rng(5)
    hidden, linear_weight, bias = (
        cast(random.normal(size=size), dtype) for size in ((9, FEATURES), (37, FEATURES), (37,))
    )
    target = np.where(random.random(9) < 0.2, -100, random.integers(0, 37, 9))
    settings = {"reduction": reduction, "label_smoothing": 0.1}
    exact = (to_float64(hidden), to_float64(linear_weight), target, to_float64(bias))
    result = reference.linear_cross_entropy(*exact, **settings)
    upstream = cast(random.normal(size=result.loss.shape), dtype)
    given = {
        "input": hidden,
        "linear_weight": linear_weight,
        "target": target,
        "linear_bias": bias,
        "weight": cast(np.full(1, np.nan), dtype),
        "options": options(**settings),
        "plan": plan(chunk_bytes=2 * 37 * (8 if dtype == "float64" else 4)),
        "grad_loss": upstream,
        "grad_z_loss": cast(np.full(1, np.nan), dtype),
        "lse": np.asarray(result.lse, np.float64),
        "total_weight": np.asarray(result.total_weight, np.float64),
        "applied": np.array(np.nan),
    }

    def gradients(grad_loss: Any) -> dict[str, np.ndarray]:
        grads = reference.linear_cross_entropy_grad(*exact, **settings, grad_loss=grad_loss)
        return {f"grad_{name}": value for name, value in grads._asdict().items()}

    suffix = "Rows" if reduction == "none" else ""
    calls = [
        ("Forward" + suffix, given, result._asdict()),
        ("Stats" + suffix, given, result._asdict()),
    ]
    nothing = {
        form: {f"grad_{name}": np.zeros(()) for name in names} for form, names in LEFT_OUT.items()
    }
    of_upstream = gradients(to_float64(upstream))
    for form, zeros in nothing.items():
        calls.append(("Backward" + form, given, {**of_upstream, **zeros}))
    if reduction != "none":
        made = gradients(1.0)
        whole = {**result._asdict(), **made, "applied": np.nan}
        for form, zeros in nothing.items():
            calls.append(("ValueAndGrad" + form, given, {**whole, **zeros}))
        rounded = {name: cast(value, dtype) for name, value in made.items()}
        factor = to_float64(upstream)
        scaled = {name: factor * to_float64(value) for name, value in rounded.items()}
        ends = {**scaled, "done": factor, "applied": factor}
        calls.append(("Rescale", {**given, **rounded}, ends))
    return [Call("LinearCrossEntropy" + name, dtype, g, e, linear=True) for name, g, e in calls]


def write(path: Path) -> None:
    """Every case of tests/cases.py and the linear loss, in every dtype."""
    with path.open("wb") as out:
        for dtype in DTYPES:
            for case in CASES:
                for call in loss_calls(case, dtype):
                    call.write(out)
            for case in NLL_CASES:
                for call in nll_calls(case, dtype):
                    call.write(out)
            for probabilities in (False, True):
                for call in block_calls(dtype, probabilities):
                    call.write(out)
            for reduction in ("none", "mean", "sum"):
                for call in linear_calls(dtype, reduction):
                    call.write(out)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
