"""Inputs of a case, and what the right answer is: float64, from ms_ce/reference.py.

The reference keeps about a dozen float64 arrays of the logits' size. It therefore judges a few
rows of every case, loss and gradient; the mean over all rows comes from `row_losses`, which is
the same formula in blocks and is itself compared with the reference on those rows.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cases import IGNORE_INDEX, Case

POOL = 4_194_301  # a prime: tiled over the logits, no two rows are alike
JUDGED_ROWS = 16  # of each kind, first and last among them
BLOCK_ELEMENTS = 1 << 21
# Share of the loss and of the largest gradient. float32: mean losses summed serially over a
# million rows are that far off in MindSpore. Half precision: some units in its last place, since
# peers round in between.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}


class Expected(NamedTuple):
    loss: float
    rows: np.ndarray  # the judged rows
    gradient: np.ndarray  # theirs, (rows, C)


def _reference():
    """ms_ce/reference.py without ms_ce, whose import would bring MindSpore into this process."""
    path = Path(__file__).resolve().parent.parent / "ms_ce" / "reference.py"
    spec = importlib.util.spec_from_file_location("ms_ce_reference", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 numbers that bfloat16 holds exactly; numpy has no bfloat16 to store them in."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def make(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(logits, target); bfloat16 values travel as float32 and are converted by the peer."""
    generator = np.random.default_rng(0)
    pool = generator.standard_normal(min(POOL, math.prod(case.shape)), dtype=np.float32) * 2
    if case.dtype == "bfloat16":
        pool = _rounded_to_bfloat16(pool)
    logits = np.resize(
        pool.astype(np.float16 if case.dtype == "float16" else np.float32), case.shape
    )
    classes = case.shape[1]
    if case.target == "probability":
        weights = generator.random(case.shape, dtype=np.float32) ** 8
        target = weights / weights.sum(axis=1, keepdims=True)
        return logits, _rounded_to_bfloat16(target) if case.dtype == "bfloat16" else target
    target = generator.integers(0, classes, case.rows, dtype=np.int32)
    if case.minus_infinity:
        logits[np.arange(case.rows), (target + 1) % classes] = -np.inf
    ignored = generator.permutation(case.rows)[: round(case.ignored * case.rows)]
    target[ignored] = IGNORE_INDEX
    return logits, target.reshape(case.shape[:1] + case.shape[2:])


def _block_losses(logits: np.ndarray, target: np.ndarray, smoothing: float) -> np.ndarray:
    """Losses of a block (outer, C, inner), 0 in ignored rows, nothing multiplied by -inf."""
    x = logits.astype(np.float64)
    top = x.max(axis=1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(x - top).sum(axis=1))
    if target.ndim == 3:
        q = (1 - smoothing) * target.astype(np.float64) + smoothing / x.shape[1]
        return (q * (lse[:, None] - x)).sum(axis=1)
    index = np.where(target == IGNORE_INDEX, 0, target)
    loss = lse - np.take_along_axis(x, index[:, None], axis=1)[:, 0]
    if smoothing:
        loss = (1 - smoothing) * loss + smoothing * (lse - x.mean(axis=1))
    return np.where(target == IGNORE_INDEX, 0.0, loss)


def row_losses(case: Case, logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    outer, classes = case.shape[:2]
    inner = math.prod(case.shape[2:])
    x = logits.reshape(outer, classes, inner)
    t = target.reshape(x.shape if case.target == "probability" else (outer, inner))
    step = max(1, BLOCK_ELEMENTS // (classes * inner))
    with ThreadPoolExecutor(2) as pool:
        blocks = pool.map(
            lambda start: _block_losses(
                x[start : start + step], t[start : start + step], case.label_smoothing
            ),
            range(0, outer, step),
        )
        return np.concatenate(list(blocks)).reshape(-1)


def _spread(rows: np.ndarray) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, JUDGED_ROWS).astype(np.int64))]


def judged_rows(case: Case, target: np.ndarray) -> np.ndarray:
    """Rows that count and, where there are any, rows that are ignored."""
    if case.target == "probability":
        return _spread(np.arange(case.rows))
    ignored = target.reshape(-1) == IGNORE_INDEX
    groups = (np.flatnonzero(~ignored), np.flatnonzero(ignored))
    return np.sort(np.concatenate([_spread(rows) for rows in groups if len(rows)]))


def take_rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows (len(rows), C) of an array (N, C, d1…dK)."""
    flat = array.reshape(*array.shape[:2], -1)
    return flat[rows // flat.shape[2], :, rows % flat.shape[2]]


def expected(case: Case, logits: np.ndarray, target: np.ndarray) -> Expected:
    """The mean loss, and the gradient of the judged rows."""
    losses = row_losses(case, logits, target)
    rows = judged_rows(case, target)
    x = take_rows(logits, rows).astype(np.float64)
    if case.target == "probability":
        q, counts = take_rows(target, rows).astype(np.float64), np.ones(len(rows), bool)
        total_weight = case.rows
    else:
        index = target.reshape(-1)[rows]
        counts = index != IGNORE_INDEX
        # One-hot probabilities: the reference's own one-hot needs C² numbers.
        q = (np.arange(case.shape[1]) == index[:, None]).astype(np.float64)
        total_weight = int((target != IGNORE_INDEX).sum())
    reference = _reference()
    options = {"label_smoothing": case.label_smoothing}
    by_reference = reference.cross_entropy(x, q, reduction="none", **options).loss
    np.testing.assert_allclose(losses[rows][counts], by_reference[counts], rtol=1e-11)
    gradient = reference.cross_entropy_grad(x, q, reduction="sum", **options).logits
    gradient = np.where(counts[:, None], gradient, 0.0) / total_weight
    return Expected(float(losses.sum() / total_weight), rows, gradient)


def errors(
    case: Case, loss: float, gradient: np.ndarray | None, right: Expected
) -> dict[str, float]:
    """How far an answer is off, as shares of the loss and of the largest judged gradient."""
    off = {"loss": abs(loss - right.loss) / abs(right.loss)}
    if gradient is not None:
        largest = np.abs(right.gradient).max() or 1.0
        off["gradient"] = float(np.abs(gradient - right.gradient).max() / largest)
    return off


def what_is_wrong(case: Case, off: dict[str, float]) -> str | None:
    """None for an answer within TOLERANCE; nan is never within."""
    limit = TOLERANCE[case.dtype]
    parts = [f"{name} off by {share:.1e}" for name, share in off.items() if not share <= limit]
    return ", ".join(parts) or None
