"""Gradients too large for the caches leave in whole cache lines, some while the next row is being read."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernel.library import NO_ROW_WEIGHT, Library, cast, empty, options, to_float64
from tests.support.tolerances import check_close, tolerance

PLACEHOLDER = np.zeros(1, np.float32)
CLASSES = [70001, 65536]  # rows that begin anywhere in a cache line, or with one
IDS = ["odd", "lines"]
BYTES = 9.2e6  # of a gradient: more than the caches that stores go past
IGNORED = (0, 7, 8, 32)
DTYPES = ["float32", "float64", "float16", "bfloat16"]


def at_offset(array: np.ndarray, elements: int) -> np.ndarray:
    """A copy that begins `elements` after a boundary of 64 bytes."""
    room = np.empty(array.size + 64, array.dtype).view(type(array))
    first = -room.ctypes.data % 64 // array.itemsize + elements
    out = room[first : first + array.size].reshape(array.shape)
    out[...] = array
    return out


def problem(classes: int, dtype: str, smoothing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rows = max(33, int(BYTES / classes / cast(0, dtype).itemsize))
    rng = np.random.default_rng(8)
    x = rng.normal(size=(rows, classes))
    # The maximum rises from tile to tile: these exponentials cannot be kept.
    x[2] = np.sort(60 * x[2])
    x[3] = -np.inf
    x[3, 5] = 1.0
    if smoothing:
        x[3] = 0.0  # a share of the loss in -inf is infinite
    target = rng.integers(0, classes, rows)
    target[[1, 2, 3, 4]] = 0, classes - 1, 5, classes // 2
    target[list(IGNORED)] = -100
    return cast(x, dtype), target


def outputs(rows: int, dtype: str) -> list[np.ndarray]:
    return [empty((), dtype), empty((), "float64"), empty((rows,), "float64")]


def gradient(x: np.ndarray, target: np.ndarray, smoothing: float, scale: float) -> np.ndarray:
    wide = to_float64(x)
    p = np.exp(wide - wide.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    rows = np.flatnonzero(target != -100)
    out = np.zeros_like(p)
    out[rows] = p[rows] - smoothing / x.shape[1]
    out[rows, target[rows]] -= 1 - smoothing
    return scale * out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES, ids=IDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("offset", [0, 3])
def test_streamed_gradient(
    isa_library: Library, dtype: str, classes: int, smoothing: float, offset: int
) -> None:
    x, target = problem(classes, dtype, smoothing)
    x = at_offset(x, offset)
    opts = options(reduction="sum", label_smoothing=smoothing)
    loss, total, lse = outputs(len(x), dtype)
    isa_library.call(
        "CrossEntropyForward", [x, target, PLACEHOLDER, NO_ROW_WEIGHT, opts], [loss, total, lse]
    )
    bound = tolerance("cpu", dtype)
    expected = gradient(x, target, smoothing, 1.0)
    # The last upstream is so small that its product with a probability is no normal float32.
    for upstream in (1.0,) if dtype == "float16" else (1.0, 2.0**-100):
        out = at_offset(empty(x.shape, dtype), offset)
        grad_loss = cast(upstream, dtype)
        inputs = [grad_loss, PLACEHOLDER, x, target, PLACEHOLDER, NO_ROW_WEIGHT, lse, total, opts]
        isa_library.call("CrossEntropyBackward", inputs, [out])
        unit = to_float64(out) / upstream
        check_close(unit, expected, dtype, bound, f"upstream {upstream}")
    inputs = [
        cast(1.0, dtype),
        PLACEHOLDER,
        x,
        target,
        PLACEHOLDER,
        NO_ROW_WEIGHT,
        lse,
        total,
        opts,
    ]
    isa_library.call("CrossEntropyBackward", inputs, [x])
    check_close(to_float64(x), expected, dtype, bound, "in the logits' place")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES, ids=IDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradient_that_waits_for_the_next_row(
    isa_library: Library, dtype: str, classes: int, smoothing: float
) -> None:
    x, target = problem(classes, dtype, smoothing)
    opts = options(label_smoothing=smoothing)
    inputs = [x, target, PLACEHOLDER, NO_ROW_WEIGHT, opts]
    bound = tolerance("cpu", dtype)
    results = []
    for threads in (1, 3):
        isa_library.set_threads(threads)
        loss, total, lse = outputs(len(x), dtype)
        out = empty(x.shape, dtype)
        isa_library.call("CrossEntropyValueAndGrad", inputs, [loss, total, lse, out])
        results.append((loss, total, lse, out))
        counted = np.count_nonzero(target != -100)
        expected = gradient(x, target, smoothing, 1 / counted)
        check_close(to_float64(out), expected, dtype, bound, "gradient")
        forward = outputs(len(x), dtype)
        isa_library.call("CrossEntropyForward", inputs, forward)
        for ours, theirs in zip((loss, total, lse), forward, strict=True):
            assert ours.tobytes() == theirs.tobytes()
    for one, three in zip(*results, strict=True):
        assert one.tobytes() == three.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", ["Backward", "ValueAndGrad"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_bits_do_not_depend_on_where_the_gradient_lies(
    isa_library: Library, smoothing: float, operation: str, dtype: str
) -> None:
    """Which classes fill lines does."""
    x, target = problem(CLASSES[0], dtype, smoothing)
    given = [target, PLACEHOLDER, NO_ROW_WEIGHT]
    opts, results = options(label_smoothing=smoothing), outputs(len(x), dtype)
    isa_library.call("CrossEntropyForward", [x, *given, opts], results)
    backward = [cast(1.0, dtype), PLACEHOLDER, x, *given, results[2], results[1], opts]
    made = []
    for offset in (0, 3, 17):
        out = at_offset(empty(x.shape, dtype), offset)
        if operation == "Backward":
            isa_library.call("CrossEntropyBackward", backward, [out])
        else:
            every = [*outputs(len(x), dtype), out]
            isa_library.call("CrossEntropyValueAndGrad", [x, *given, opts], every)
        made.append(out.tobytes())
    assert all(each == made[0] for each in made)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_spoils_its_row_only(isa_library: Library, dtype: str) -> None:
    x, target = problem(CLASSES[1], dtype)
    gradients = []
    for value in (x[9, 1000].copy(), cast(np.nan, dtype)):
        x[9, 1000] = value
        gradients.append(empty(x.shape, dtype))
        inputs = [x, target, PLACEHOLDER, NO_ROW_WEIGHT, options()]
        every = [*outputs(len(x), dtype), gradients[-1]]
        isa_library.call("CrossEntropyValueAndGrad", inputs, every)
    sound, spoilt = gradients
    assert np.isnan(to_float64(spoilt[9])).all()
    others = np.arange(len(x)) != 9
    assert np.isfinite(to_float64(sound)).all()
    assert sound[others].tobytes() == spoilt[others].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES, ids=IDS)
@pytest.mark.parametrize("offset", [0, 3])
def test_streamed_gradient_of_probabilities(
    isa_library: Library, dtype: str, classes: int, offset: int
) -> None:
    rows = max(5, int(BYTES / classes / cast(0, dtype).itemsize))
    rng = np.random.default_rng(9)
    x, target = rng.normal(size=(rows, classes)), rng.random((rows, classes))
    # A class without a share and with a logit of -inf is left out; one with a share has an infinite loss.
    x[1, ::7] = x[2, ::5] = -np.inf
    target[1, ::7] = target[2, ::10] = 0.0
    x, target = (at_offset(cast(each, dtype), offset) for each in (x, target))
    out, grad_target = (at_offset(empty(x.shape, dtype), offset) for _ in range(2))
    inputs = [x, target, PLACEHOLDER, NO_ROW_WEIGHT, options(reduction="sum")]
    results = [*outputs(rows, dtype), out, grad_target]
    isa_library.call("CrossEntropyValueAndGrads", inputs, results)
    wide, shares = to_float64(x), to_float64(target)
    lse = np.log(np.exp(wide).sum(-1, keepdims=True))
    expected = np.where((shares == 0) & np.isneginf(wide), 0.0, lse - wide)
    bound = tolerance("cpu", dtype)
    check_close(to_float64(grad_target), expected, dtype, bound, "grad_target")
