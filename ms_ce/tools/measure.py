"""Times losses in turn, each checked against the float64 reference before its first timed call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import ms_ce
from ms_ce import reference

# Share of the loss and of the largest gradient. float32: MindSpore's CPU sums means of many rows serially.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
PASSES = ("forward", "forward + backward")
MODES = {"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}
# Rows whose gradients are compared: the reference is slow.
JUDGED = 16


@dataclass
class Entry:
    """A loss, a mode, a pass, and what was found."""

    loss: str
    mode: str
    computation: str
    problem: str | None = None
    milliseconds: list[float] = field(default_factory=list)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median, third quartile."""
        times = sorted(self.milliseconds)
        if len(times) < 2:
            return (times[0],) * 3
        first, middle, third = statistics.quantiles(times, n=4, method="inclusive")
        return first, middle, third


@dataclass(frozen=True)
class Problem:
    """What is computed: logits of `shape`, class indices, 'mean'."""

    shape: tuple[int, ...]
    dtype: str
    label_smoothing: float
    ignored: float

    def inputs(self) -> tuple[Tensor, Tensor]:
        generator = np.random.default_rng(0)
        logits = generator.standard_normal(self.shape, np.float32)
        rows = reference.rows_shape(self.shape)
        labels = generator.integers(0, self.shape[1], rows)
        labels[generator.random(rows) < self.ignored] = -100
        labels.flat[0] = 0  # so that some row counts
        return Tensor(logits).astype(getattr(ms, self.dtype)), Tensor(labels, ms.int32)


def losses(problem: Problem) -> dict[str, Callable[[], nn.Cell]]:
    """Ours, and MindSpore's; made anew for each mode."""
    smoothing = problem.label_smoothing
    return {
        "ms_ce": lambda: ms_ce.CrossEntropyLoss(label_smoothing=smoothing).set_train(),
        "mindspore": lambda: nn.CrossEntropyLoss(label_smoothing=smoothing),
    }


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.astype(ms.float32).asnumpy()


def _wait(result: Any) -> None:
    """PyNative returns before the work is done; numpy has no bfloat16."""
    last = result[1] if isinstance(result, tuple) else result
    last.asnumpy() if last.dtype != ms.bfloat16 else last.flush_from_cache()


class Expected:
    """The right loss, and the gradients of some rows, each of which is its own softmax's over the mean's divisor."""

    def __init__(self, problem: Problem, logits: np.ndarray, labels: np.ndarray):
        rows, flat = reference.to_rows(logits), labels.reshape(-1)
        smoothing = problem.label_smoothing
        total = 0.0
        for start in range(0, len(rows), 256):
            part = slice(start, start + 256)
            sums = reference.cross_entropy(rows[part], flat[part], None, -100, "sum", smoothing)
            total += float(sums.loss)
        counted = int((flat != -100).sum())
        self.loss = total / counted
        self.rows = np.linspace(0, len(rows) - 1, min(JUDGED, len(rows))).astype(int)
        judged = rows[self.rows], flat[self.rows]
        gradients = reference.cross_entropy_grad(
            *judged, reduction="sum", label_smoothing=smoothing
        )
        self.gradient = gradients.logits / counted
        self.limit = TOLERANCE[problem.dtype]

    def problem_with(self, result: Any) -> str | None:
        """None for a right answer; nan is none."""
        loss, gradient = result if isinstance(result, tuple) else (result, None)
        off = {"loss": abs(float(_numpy(loss)) - self.loss) / self.loss}
        if gradient is not None:
            found = reference.to_rows(_numpy(gradient))[self.rows]
            off["gradient"] = np.abs(found - self.gradient).max() / np.abs(self.gradient).max()
        wrong = [
            f"{name} off by {share:.1e}" for name, share in off.items() if not share <= self.limit
        ]
        return f"wrong: {', '.join(wrong)}" if wrong else None


def measure(
    problem: Problem, modes: tuple[str, ...], seconds: float, say: Callable[[str], None]
) -> list[Entry]:
    """Entries of all modes, losses and passes; `seconds` are shared out among the modes."""
    logits, labels = problem.inputs()
    say("the right answer, in float64")
    expected = Expected(problem, _numpy(logits), labels.asnumpy())
    found = []
    before = ms.get_context("mode")
    try:
        for mode in modes:
            ms.set_context(mode=MODES[mode])
            found += _of_mode(problem, mode, expected, (logits, labels), seconds / len(modes), say)
    finally:
        ms.set_context(mode=before)
    return found


def _of_mode(problem, mode, expected, inputs, seconds, say) -> list[Entry]:
    calls, entries = [], []
    for computation in PASSES:
        for name, make in losses(problem).items():
            entry = Entry(name, mode, computation)
            entries.append(entry)
            say(f"{mode}, {computation}, {name}: compile, check")
            try:
                call = make() if computation == PASSES[0] else ms.value_and_grad(make())
                entry.problem = expected.problem_with(call(*inputs))
            except (
                Exception
            ) as error:  # whatever a loss refuses with: it is told, and the others go on
                entry.problem = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            if entry.problem is None:
                calls.append((entry, call))
    say(f"{mode}: {len(calls)} of {len(entries)} in turn, for {seconds:.0f} s")
    end = time.monotonic() + seconds
    while calls and (time.monotonic() < end or len(calls[-1][0].milliseconds) < 3):
        for entry, call in calls:
            began = time.perf_counter()
            _wait(call(*inputs))
            entry.milliseconds.append(1e3 * (time.perf_counter() - began))
    return entries
