"""One call of an operation with what it must return: by name here, as tensors in order for a file."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.kernel.library import Library, cast, dtype_name, fixed_dtypes
from tests.support.linear_tolerances import RELATIVE
from tests.support.tolerances import Tolerance, tolerance

DTYPES = ("float32", "float16", "bfloat16", "float64")

# As in tests/kernel/test_against_reference.py: sums of several rounded terms.
_WIDER = {"entropy": 4, "grad_grad_loss": 8, "grad_grad_z_loss": 8}


class Dtypes(NamedTuple):
    """Of a call's tensors. Probabilities and weights have the logits' dtype or float32."""

    logits: str
    target: str
    weight: str


class Recorded(NamedTuple):
    """A tensor as a file holds it (tests/kernel/replay.py)."""

    dtype: str
    shape: tuple[int, ...]
    period: tuple[int, ...]
    given: np.ndarray | None = None
    expected: np.ndarray | None = None
    allowed: Tolerance = Tolerance(0, 0, 0)
    label: str = ""

    @property
    def kind(self) -> int:
        if self.given is None:
            return 1
        return 0 if self.expected is None else 2


class Repeat(NamedTuple):
    """Logits and whatever has their rows repeat after `period` rows of `axis` (0 or -1)."""

    axis: int
    period: int


class Call:
    """An operation, its arguments and its results by name. `labels` names results that another call has too."""

    def __init__(
        self,
        name: str,
        dtype: str,
        given: dict[str, np.ndarray],
        expected: dict[str, Any],
        *,
        linear: bool = False,
        labels: dict[str, str] | None = None,
        repeat: Repeat | None = None,
    ):
        self.name, self.dtype, self.given, self.expected = name, dtype, given, expected
        self.linear, self.labels, self.repeat = linear, labels or {}, repeat

    def tensors(self) -> list[Recorded]:
        """Inputs, then outputs, in the order of the call."""
        operation = Library().operations[self.name]
        recorded = []
        for argument in operation["inputs"]:
            array = self.given[argument["name"]]
            tensor = self._head(argument, dtype_name(array), array.shape)
            tensor = tensor._replace(given=self._one_period(array, tensor.period))
            changed = argument["name"] in self.expected
            recorded.append(self._with_result(tensor, argument) if changed else tensor)
        for argument in operation["outputs"]:
            shape = np.shape(self.expected[argument["name"]])
            tensor = self._head(argument, self._out_dtype(argument), shape)
            recorded.append(self._with_result(tensor, argument))
        return recorded

    def _head(self, argument: dict[str, str], dtype: str, shape: tuple[int, ...]) -> Recorded:
        period = list(shape)
        repeats = argument["extent"] in ("logits", "rows", "loss", "target")
        if self.repeat is not None and period and repeats:
            axis = self.repeat.axis
            period[axis] = min(self.repeat.period, shape[axis])
        return Recorded(dtype, shape, tuple(period))

    @staticmethod
    def _one_period(array: np.ndarray, period: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(array[tuple(slice(size) for size in period)])

    def _out_dtype(self, argument: dict[str, str]) -> str:
        fixed = fixed_dtypes().get(argument["type"])
        if fixed is not None:
            return fixed
        kind = {"P": "target", "W": "weight"}.get(argument["type"])
        return self.dtype if kind is None else dtype_name(self.given[kind])

    def _with_result(self, tensor: Recorded, argument: dict[str, str]) -> Recorded:
        name = argument["name"]
        expected = np.asarray(self.expected[name], np.float64)
        allowed = self._allowed(name, expected, tensor.dtype)
        expected = self._one_period(expected, tensor.period)
        if tensor.dtype == "float16":  # what rounds to inf there
            large = np.abs(expected) >= 65520.0
            expected = np.where(large, np.copysign(np.inf, expected), expected)
        return tensor._replace(expected=expected, allowed=allowed, label=self.labels.get(name, ""))

    def _allowed(self, name: str, expected: np.ndarray, dtype: str) -> Tolerance:
        if dtype in ("int32", "int64"):
            return Tolerance(0, 0, 0)
        if self.linear:
            largest = np.abs(expected[np.isfinite(expected)]).max(initial=1e-3)
            return Tolerance(0, max(RELATIVE[self.dtype], RELATIVE[dtype]) * largest, 0)
        # total_weight in float64 is a sum of weights; other float64 results are as near as the logits' dtype.
        wide = dtype if name == "total_weight" or dtype != "float64" else self.dtype
        bound = tolerance("cpu", wide)
        rows = max(1.0, np.size(self.given["target"]) / 10) if name == "grad_weight" else 1.0
        wider = _WIDER.get(name, 1) * rows
        ulps = 0.0 if dtype == "float64" else bound.ulps
        return Tolerance(wider * bound.relative, wider * bound.absolute, ulps)


def placeholder(dtype: str) -> np.ndarray:
    """What stands for a tensor that is not given: nothing may read it."""
    return cast(np.full(1, np.nan), dtype)
