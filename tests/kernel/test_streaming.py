"""Gradients too large for the caches leave in whole cache lines, some while the next row is being read."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernel.library import Library, options
from tests.tolerances import check_close, tolerance

PLACEHOLDER = np.zeros(1, np.float32)
SHAPE = (33, 70001)  # 9 MB, rows that begin anywhere in a cache line
WHOLE_LINES = (36, 65536)
IGNORED = (0, 7, 8, SHAPE[0] - 1)


def at_offset(array: np.ndarray, elements: int) -> np.ndarray:
    """A copy that begins `elements` after a boundary of 64 bytes."""
    room = np.empty(array.size + 64, array.dtype)
    first = -room.ctypes.data % 64 // array.itemsize + elements
    out = room[first : first + array.size].reshape(array.shape)
    out[...] = array
    return out


def problem(shape: tuple[int, int], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rows, classes = shape
    rng = np.random.default_rng(8)
    x = rng.normal(size=shape).astype(dtype)
    x[2] = np.sort(
        60 * x[2]
    )  # the maximum rises from tile to tile: its exponentials cannot be kept
    x[3, :] = -np.inf
    x[3, 5] = 1.0
    target = rng.integers(0, classes, rows)
    target[[1, 2, 3, 4]] = 0, classes - 1, 5, classes // 2
    target[[row for row in IGNORED if row < rows]] = -100
    return x, target


def gradient(x: np.ndarray, target: np.ndarray, smoothing: float, scale: float) -> np.ndarray:
    wide = x.astype(np.float64)
    p = np.exp(wide - wide.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    rows = np.flatnonzero(target != -100)
    out = np.zeros_like(p)
    out[rows] = p[rows] - smoothing / x.shape[1]
    out[rows, target[rows]] -= 1 - smoothing
    return scale * out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [SHAPE, WHOLE_LINES], ids=["odd", "lines"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("offset", [0, 3])
def test_streamed_gradient(
    isa_library: Library, dtype: str, shape: tuple[int, int], smoothing: float, offset: int
) -> None:
    x, target = problem(shape, dtype)
    if smoothing:
        x[3] = 0.0  # a share of the loss in -inf is infinite
    x = at_offset(x, offset)
    opts = options(reduction="sum", label_smoothing=smoothing)
    loss, total, lse = np.empty((), dtype), np.empty(()), np.empty(shape[0])
    isa_library.call("CrossEntropyForward", [x, target, PLACEHOLDER, opts], [loss, total, lse])
    bound = tolerance("cpu", dtype)
    # The second upstream is so small that its product with a probability is no normal float32.
    for upstream in (1.0, 2.0**-100):
        out = at_offset(np.full(shape, np.nan, dtype), offset)
        grad_loss = np.array(upstream, dtype)
        inputs = [grad_loss, PLACEHOLDER, x, target, PLACEHOLDER, lse, total, opts]
        isa_library.call("CrossEntropyBackward", inputs, [out])
        unit = out.astype(np.float64) / upstream
        check_close(unit, gradient(x, target, smoothing, 1.0), dtype, bound, f"upstream {upstream}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [SHAPE, WHOLE_LINES], ids=["odd", "lines"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradient_that_waits_for_the_next_row(
    isa_library: Library, dtype: str, shape: tuple[int, int], smoothing: float
) -> None:
    x, target = problem(shape, dtype)
    if smoothing:
        x[3] = 0.0
    opts = options(label_smoothing=smoothing)
    inputs = [x, target, PLACEHOLDER, opts]
    bound = tolerance("cpu", dtype)
    results = []
    for threads in (1, 3):
        isa_library.set_threads(threads)
        loss, total, lse = np.empty((), dtype), np.empty(()), np.empty(shape[0])
        out = np.full(shape, np.nan, dtype)
        isa_library.call("CrossEntropyValueAndGrad", inputs, [loss, total, lse, out])
        results.append((loss, total, lse, out))
        counted = np.count_nonzero(target != -100)
        check_close(out, gradient(x, target, smoothing, 1 / counted), dtype, bound, "gradient")
        forward = [np.empty((), dtype), np.empty(()), np.empty(shape[0])]
        isa_library.call("CrossEntropyForward", inputs, forward)
        for ours, theirs in zip((loss, total, lse), forward, strict=True):
            assert ours.tobytes() == theirs.tobytes()
    for one, three in zip(*results, strict=True):
        assert one.tobytes() == three.tobytes()


def test_nan_spoils_its_row_only(isa_library: Library) -> None:
    x, target = problem(WHOLE_LINES, "float32")
    x[9, 1000] = np.nan
    outputs = [np.empty((), np.float32), np.empty(()), np.empty(x.shape[0])]
    out = np.zeros(x.shape, np.float32)
    inputs = [x, target, PLACEHOLDER, options()]
    isa_library.call("CrossEntropyValueAndGrad", inputs, [*outputs, out])
    assert np.isnan(out[9]).all()
    assert np.isfinite(np.delete(out, 9, axis=0)).all()
