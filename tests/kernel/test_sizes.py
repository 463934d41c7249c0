"""Accuracy to hundreds of thousands of classes, and indices beyond 2^31."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernel.library import NO_ROW_WEIGHT, Brain, Library, options, to_bfloat16, to_float64
from tests.support.tolerances import check_close, tolerance

PLACEHOLDER = np.zeros(1, np.float32)
ONE = np.ones((), np.float32)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64. The reference holds a one-hot row per class: too large here."""
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def draw(kind: str, classes: int) -> np.ndarray:
    x = np.random.default_rng(6).normal(size=(3, classes))
    # Each is the worst for something: rounding of many like terms, a moving maximum, a far target.
    return {
        "normal": x,
        "wide": 10 * x,
        "equal": np.zeros_like(x),
        "rising": np.sort(30 * x, axis=-1),
        "falling": np.sort(30 * x, axis=-1)[:, ::-1],
    }[kind]


@pytest.mark.parametrize("classes", [1000, 32000, 128256, 200000])
@pytest.mark.parametrize("kind", ["normal", "wide", "equal", "rising", "falling"])
@pytest.mark.parametrize("inner", [1, 2])
def test_accuracy_with_many_classes(
    isa_library: Library, kind: str, classes: int, inner: int
) -> None:
    """Forward within 2e-6 relative, gradient within 2e-6 per unit of upstream: the project's promise."""
    x = np.ascontiguousarray(draw(kind, classes), np.float32)
    target = np.array([0, classes - 1, classes // 2])
    expected = log_softmax(x.astype(np.float64))
    exact = -expected[np.arange(3), target]
    gradient = np.exp(expected)
    gradient[np.arange(3), target] -= 1
    if inner == 2:  # the same rows as columns, twice
        x, gradient = (np.repeat(a[:, :, None], 2, axis=2) for a in (x, gradient))
        target, exact = (np.repeat(a[:, None], 2, axis=1) for a in (target, exact))
    rows = target.shape
    loss, total, lse = np.full(rows, np.nan, np.float32), np.empty(()), np.empty(rows)
    opts = options(reduction="none")
    inputs = [x, target, PLACEHOLDER, NO_ROW_WEIGHT, opts]
    isa_library.call("CrossEntropyForwardRows", inputs, [loss, total, lse])
    check_close(loss, exact, "float32", tolerance("cpu", "float32"), "loss")
    grad, upstream = np.full_like(x, np.nan), np.ones(rows, np.float32)
    inputs = [upstream, PLACEHOLDER, x, target, PLACEHOLDER, NO_ROW_WEIGHT, lse, total, opts]
    isa_library.call("CrossEntropyBackward", inputs, [grad])
    check_close(grad, gradient, "float32", tolerance("cpu", "float32"), "gradient")


# bfloat16 of 4.3 GB each for logits and gradient. Untouched pages of the logits cost nothing: rows that
# are ignored must not be read, but their gradient is written.
ROWS, CLASSES = 65600, 32771
KEPT = (0, 2**31 // CLASSES, ROWS - 1)  # one of them lies across element 2^31


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_more_than_two_to_the_31_elements(library: Library, columns: bool) -> None:
    assert ROWS * CLASSES > 2**31
    shape = (2, CLASSES, ROWS // 2) if columns else (ROWS, CLASSES)
    logits = np.zeros(shape, np.uint16).view(Brain)
    nan = to_bfloat16(np.full(1, np.nan))[0]
    grad = np.full(shape, nan, np.uint16).view(Brain)
    target = np.full(ROWS, -100)
    x = to_bfloat16(np.random.default_rng(7).normal(size=(3, CLASSES)))

    def row_of(array: np.ndarray, row: int) -> np.ndarray:
        return array[row // (ROWS // 2), :, row % (ROWS // 2)] if columns else array[row]

    for i, row in enumerate(KEPT):
        row_of(logits, row)[:] = x[i]
        target[row] = 10 * i
    target = target.reshape(2, -1) if columns else target
    loss, total, lse = np.zeros((), np.uint16).view(Brain), np.empty(()), np.empty(target.shape)
    placeholder = np.zeros(1, np.float32)
    library.call(
        "CrossEntropyForward",
        [logits, target, placeholder, NO_ROW_WEIGHT, options()],
        [loss, total, lse],
    )
    expected = log_softmax(to_float64(x))
    bound = tolerance("cpu", "bfloat16")
    mean = -np.mean([expected[i, 10 * i] for i in range(3)])
    check_close(to_float64(loss), mean, "bfloat16", bound, "loss")
    one = to_bfloat16(np.ones(()))
    inputs = [one, placeholder, logits, target, placeholder, NO_ROW_WEIGHT, lse, total, options()]
    library.call("CrossEntropyBackward", inputs, [grad])
    gradient = np.exp(expected)
    for i, row in enumerate(KEPT):
        gradient[i, 10 * i] -= 1
        actual = to_float64(row_of(grad, row).copy())
        check_close(actual, gradient[i] / 3, "bfloat16", bound, f"row {row}")
        row_of(grad, row)[:] = np.zeros(CLASSES, np.uint16)
    assert not np.any(np.asarray(grad).reshape(-1).view(np.uint64))
