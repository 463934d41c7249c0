"""What the operators must return: ms_ce/reference.py in float64, and how far a float32 computation may be from it.

A bound is a count of float32 roundings times the size of the terms that are rounded, plus one rounding to a 16-bit
output: the loss is a difference of terms as large as the logits' spread, and the gradient takes exp of a
difference with
lse, so that its relative error grows with |lse|.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EPSILON = 2.0**-23
ROUNDINGS = 12  # subtract, exp, a tree of sums, log, two products
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {
    "float32": 2.0**-149,
    "float16": 2.0**-24,
    "bfloat16": 2.0**-133,
}  # spacing of subnormals
IGNORE = -100


def _load_reference():
    """ms_ce/reference.py by its path, since importing ms_ce would need MindSpore."""
    path = Path(__file__).resolve().parents[2] / "ms_ce" / "reference.py"
    spec = importlib.util.spec_from_file_location("ms_ce_reference", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = _load_reference()


@dataclass(frozen=True)
class Options:
    """Options of one call, in the terms of the public functions."""

    reduction: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    weighted: bool = False
    ignore_index: int = IGNORE
    target_dtype: str = "int32"

    def attributes(self) -> dict[str, float | int]:
        return {
            "labelSmoothing": self.label_smoothing,
            "zLoss": self.z_loss,
            "ignoreIndex": self.ignore_index,
        }


# Every option at a value that is not its default, alone and with the options it interacts with.
OPTIONS = {
    "mean": Options(),
    "sum-int64": Options("sum", target_dtype="int64"),
    "none": Options("none"),
    "mean-weight": Options(weighted=True, target_dtype="int64"),
    "none-smooth": Options("none", label_smoothing=0.1),
    "mean-smooth-weight": Options(label_smoothing=0.1, weighted=True),
    "sum-z-ignore0": Options("sum", z_loss=0.01, ignore_index=0),
    "none-all": Options("none", 0.2, 0.01, True, 3, "int64"),
    "mean-all": Options("mean", 1.0, 0.001, True),
}


@dataclass
class Problem:
    """Inputs of a call as float64 values that the dtype represents."""

    logits: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    options: Options
    grad_loss: np.ndarray

    def _arguments(self):
        o = self.options
        keywords = {
            "reduction": o.reduction,
            "label_smoothing": o.label_smoothing,
            "z_loss": o.z_loss,
        }
        keywords["ignore_index"] = o.ignore_index if self.target.dtype.kind == "i" else IGNORE
        return (self.logits, self.target, self.weight), keywords

    def result(self):
        arguments, keywords = self._arguments()
        with np.errstate(all="ignore"):
            return reference.cross_entropy(*arguments, **keywords)

    def gradient(self) -> np.ndarray:
        arguments, keywords = self._arguments()
        with np.errstate(all="ignore"):
            return reference.cross_entropy_grad(
                *arguments, **keywords, grad_loss=self.grad_loss
            ).logits

    def kept(self) -> np.ndarray:
        if self.target.dtype.kind == "f":
            return np.ones(len(self.logits), bool)
        return self.target != self.options.ignore_index

    def target_rows(self) -> np.ndarray:
        """q', the smoothed target of every row."""
        classes = self.logits.shape[1]
        smoothing = self.options.label_smoothing
        q = self.target
        if q.dtype.kind == "i":
            q = np.where(self.kept(), q, 0)[:, None] == np.arange(classes)
        return (1 - smoothing) * q + smoothing / classes

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Size of the terms of each row's loss, and of each element of the gradient."""
        weight = np.ones(self.logits.shape[1]) if self.weight is None else self.weight
        factor = weight * self.target_rows()
        mass = factor.sum(1, keepdims=True)
        kept = self.kept()
        finite = np.where(np.isfinite(self.logits), self.logits, 0.0)
        finite = np.where(kept[:, None], finite, 0.0)
        top = finite.max(1, initial=0.0)
        lse = np.abs(self.result().lse)
        lse = np.where(np.isfinite(lse), lse, 0.0)
        spread = np.abs(factor * (top[:, None] - finite)).sum(1) + mass[:, 0] * 20
        rows = np.where(kept, spread + 4 * self.options.z_loss * (lse + 1) ** 2, 0.0)
        with np.errstate(all="ignore"):
            p = np.nan_to_num(np.exp(finite - self.result().lse[:, None]))
        upstream = np.broadcast_to(np.abs(self.grad_loss).reshape(-1), kept.shape)
        if self.options.reduction == "mean" and self.result().total_weight:
            upstream = upstream / self.result().total_weight
        slope = mass + 2 * self.options.z_loss * lse[:, None]
        relative = 1 + (lse / ROUNDINGS)[:, None]
        return rows, kept[:, None] * upstream[:, None] * (relative * slope * p + factor)


def within(actual, expected, bound, what: str) -> None:
    """Asserts |actual - expected| ≤ bound, with nan and inf in the same places."""
    actual, expected = (
        np.asarray(actual, np.float64).ravel(),
        np.asarray(expected, np.float64).ravel(),
    )
    assert actual.shape == expected.shape, f"{what}: {actual.shape} values, not {expected.shape}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=what)
    bound = np.broadcast_to(np.asarray(bound, np.float64).ravel(), expected.shape)
    assert np.isfinite(bound[finite]).all(), f"{what}: a bound that anything would keep"
    difference = np.abs(np.where(finite, actual, 0.0) - np.where(finite, expected, 0.0))
    excess = np.where(np.isnan(difference), np.inf, difference - bound)
    excess = np.where(finite, excess, -1.0)
    worst = int(np.argmax(excess)) if excess.size else 0
    assert excess.size == 0 or excess[worst] <= 0, (
        f"{what}: value {worst} is {actual[worst]!r}, not {expected[worst]!r} (±{bound[worst]:.3g}); "
        f"{np.sum(excess > 0)} of {excess.size} are outside"
    )


def check_loss(problem: Problem, loss: np.ndarray) -> None:
    rows, _ = problem.sizes()
    expected = problem.result().loss
    size = rows
    if problem.options.reduction != "none":
        divisor = problem.result().total_weight if problem.options.reduction == "mean" else 1.0
        size = rows.sum() / (divisor or 1.0)
    within(loss, expected, EPSILON * (ROUNDINGS * size + np.abs(expected)), "loss")


def check_lse(problem: Problem, lse: np.ndarray) -> None:
    expected = problem.result().lse
    within(lse, expected, EPSILON * (ROUNDINGS + np.abs(expected)), "lse")


def check_gradient(problem: Problem, gradient: np.ndarray, dtype: str) -> None:
    expected = problem.gradient()
    _, size = problem.sizes()
    bound = ROUNDINGS * EPSILON * size
    within(
        gradient,
        expected,
        bound + UNIT[dtype] * (np.abs(expected) + bound) + SMALLEST[dtype],
        "gradient",
    )
