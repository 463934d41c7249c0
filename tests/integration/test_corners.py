"""The corner semantics that torch users rely on, row by row of the table in docs/semantics.md, forward and gradient."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import ms_ce
from ms_ce import reference
from tests.integration.conftest import to_numpy, to_tensor
from tests.support.tolerances import check_close, tolerance

NAN, INF = np.nan, np.inf
LOGITS = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32)
MASKED = np.array([[0.5, -INF, 2.0], [1.5, 0.25, -0.75]], np.float32)
ZERO = np.zeros((2, 3), np.float32)
CANCELLING = np.array(
    [[1.0, 0.0], [0.0, 2.0]], np.float32
)  # with targets 0 and 1, weights -1 and 1
SAME = "as the reference"


def evaluate(run, backend, logits, target, weight=None, **options):
    """Loss and gradient with respect to the logits, as numpy arrays."""
    tensors = [to_tensor(np.asarray(logits)), to_tensor(np.asarray(target))]
    weights = to_tensor(weight)

    def loss(logits, target):
        return ms_ce.cross_entropy(logits, target, weights, backend=backend, **options)

    def total(logits, target):
        return loss(logits, target).sum()

    return to_numpy(run(loss, *tensors)), to_numpy(run(ms.grad(total), *tensors))


# name, logits, target, keyword arguments, expected loss, expected gradient
CORNERS = [
    ("nan as another class's weight", LOGITS, [2, 0], {"weight": [1.0, NAN, 2.0]}, SAME, SAME),
    ("inf as another class's weight", LOGITS, [2, 0], {"weight": [1.0, INF, 2.0]}, SAME, SAME),
    (
        "nan as the weight of one row's class",
        LOGITS,
        [2, 1],
        {"weight": [1.0, NAN, 2.0], "reduction": "none"},
        SAME,
        SAME,
    ),
    ("every target ignored", LOGITS, [-100, -100], {}, NAN, ZERO),
    ("every target ignored, sum", LOGITS, [-100, -100], {"reduction": "sum"}, 0.0, ZERO),
    ("total weight 0", LOGITS, [1, 1], {"weight": [1.0, 0.0, 1.0]}, NAN, ZERO),
    ("weights that cancel", CANCELLING, [0, 1], {"weight": [-1.0, 1.0]}, -INF, ZERO[:, :2]),
    ("empty batch, mean", LOGITS[:0], [], {}, NAN, ZERO[:0]),
    ("empty batch, sum", LOGITS[:0], [], {"reduction": "sum"}, 0.0, ZERO[:0]),
    ("empty batch, none", LOGITS[:0], [], {"reduction": "none"}, np.zeros(0), ZERO[:0]),
    ("-inf beside the target", MASKED, [2, 0], {}, SAME, SAME),
    ("-inf at the target", MASKED, [1, 0], {}, INF, SAME),
    ("-inf at the target, none", MASKED, [1, 0], {"reduction": "none"}, SAME, SAME),
    ("-inf and smoothing", MASKED, [2, 0], {"label_smoothing": 0.1}, INF, SAME),
    (
        "-inf at a class of weight 0, smoothing",
        MASKED,
        [2, 0],
        {"label_smoothing": 0.1, "weight": [1.0, 0.0, 2.0]},
        SAME,
        SAME,
    ),
    (
        "-inf where the probability is 0",
        MASKED,
        np.array([[0.25, 0.0, 0.75], [1.0, 0.0, 0.0]], np.float32),
        {},
        SAME,
        SAME,
    ),
    (
        "-inf where the probability is not 0",
        MASKED,
        np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]], np.float32),
        {},
        INF,
        SAME,
    ),
    ("ignore_index inside [0, C)", LOGITS, [1, 2], {"ignore_index": 1}, SAME, SAME),
    ("ignore_index 2^31", LOGITS, np.array([2**31, 2]), {"ignore_index": 2**31}, SAME, SAME),
    ("ignore_index -2^31", LOGITS, np.array([-(2**31), 2]), {"ignore_index": -(2**31)}, SAME, SAME),
    ("uint8 labels, 255", LOGITS, np.array([255, 2], np.uint8), {"ignore_index": 255}, SAME, SAME),
    ("uint8 labels, -100", LOGITS, np.array([0, 2], np.uint8), {}, SAME, SAME),
    ("int32 labels", LOGITS, np.array([0, 2], np.int32), {}, SAME, SAME),
    ("label smoothing 1", LOGITS, [0, 2], {"label_smoothing": 1.0}, SAME, SAME),
    ("large logits", LOGITS * 1e4, [0, 2], {}, SAME, SAME),
    ("a common offset", LOGITS + 1e4, [2, 0], {}, SAME, SAME),
    ("one class", LOGITS[:, :1], [0, 0], {}, 0.0, ZERO[:, :1]),
]


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: corner[0].replace(" ", "-"))
def test_corner(corner, backend, run):
    name, logits, target, keywords, expected, expected_gradient = corner
    keywords = dict(keywords)
    weight = keywords.pop("weight", None)
    weight = None if weight is None else np.array(weight, np.float32)
    target = np.asarray(target)
    if target.dtype == np.float64:  # an empty list
        target = target.astype(np.int64)
    loss, gradient = evaluate(run, backend, logits, target, weight, **keywords)
    upstream = np.ones(loss.shape)
    if expected is SAME:
        expected = reference.cross_entropy(logits, target, weight, **keywords).loss
    if expected_gradient is SAME:
        expected_gradient = reference.cross_entropy_grad(
            logits, target, weight, **keywords, grad_loss=upstream
        ).logits
    bound = tolerance(backend, "float32")
    if name == "a common offset" and backend == "composed":
        bound = bound._replace(
            absolute=1e-3
        )  # MindSpore's LogSoftmax at 1e4: float32's own spacing
    check_close(loss, expected, "float32", bound, name)
    check_close(gradient, expected_gradient, "float32", bound, f"{name}: gradient")


@pytest.mark.parametrize("value", [NAN, INF])
def test_nan_and_infinity_arrive_as_nan(value, backend, run):
    """In their row; the others are as if alone."""
    logits = LOGITS.copy()
    logits[0, 1] = value
    first_row_is_nan(backend, run, logits)


def test_a_row_of_minus_infinity_is_nan(backend, run):
    logits = LOGITS.copy()
    logits[0] = -INF
    first_row_is_nan(backend, run, logits)


# A row without a softmax, its logits
WITHOUT_SOFTMAX = {"nan": [NAN, -INF, 1.0], "inf": [INF, -INF, 1.0], "-inf alone": [-INF] * 3}


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("shares", [(0, 0, 0), (0, 1, -1), (1, -1, 0)], ids=str)
@pytest.mark.parametrize("row", WITHOUT_SOFTMAX.values(), ids=WITHOUT_SOFTMAX)
def test_no_probabilities_make_a_number_of_a_row_without_a_softmax(backend, run, row, shares):
    """Neither that are all 0, nor that cancel: torch has nan as well."""
    logits, target = LOGITS.copy(), np.zeros((2, 3), np.float32)
    logits[0], target[0], target[1, 2] = row, shares, 1.0

    def loss(logits, target):
        return ms_ce.cross_entropy(logits, target, reduction="none", backend=backend)

    def total(logits, target):
        return loss(logits, target).sum()

    tensors = (to_tensor(logits), to_tensor(target))
    found = (run(loss, *tensors), *run(ms.grad(total, (0, 1)), *tensors))
    gradients = reference.cross_entropy_grad(logits, target, reduction="none", grad_loss=np.ones(2))
    bound = tolerance(backend, "float32")
    expected = reference.cross_entropy(logits, target, reduction="none").loss
    for made, right in zip(found, (expected, gradients.logits, gradients.target), strict=True):
        assert np.isnan(right[0]).all()
        check_close(to_numpy(made), right, "float32", bound)


@pytest.mark.parametrize("row", WITHOUT_SOFTMAX.values(), ids=WITHOUT_SOFTMAX)
def test_no_weight_makes_a_number_of_a_row_without_a_softmax(backend, run, row):
    logits, weight = LOGITS.copy(), np.array([0.0, 0.0, 2.0], np.float32)
    logits[0] = row
    for target, total_weight in (([1, 2], None), ([1, 0], None), ([1, 2], 0.0)):
        given = (logits, np.array(target), weight)
        loss, _ = evaluate(run, backend, *given, total_weight=total_weight)
        assert np.isnan(reference.cross_entropy(*given).loss)
        assert np.isnan(loss)


def first_row_is_nan(backend, run, logits):
    target = np.array([0, 2])
    loss, gradient = evaluate(run, backend, logits, target, reduction="none")
    assert np.isnan(loss[0])
    assert np.isnan(gradient[0]).all()
    alone = (logits[1:], target[1:])
    bound = tolerance(backend, "float32")
    expected = reference.cross_entropy(*alone, reduction="none").loss
    check_close(loss[1:], expected, "float32", bound)
    expected = reference.cross_entropy_grad(*alone, reduction="none").logits
    check_close(gradient[1:], expected, "float32", bound)


def test_ignored_rows_are_not_looked_at(backend, run):
    """Whatever stands in an ignored row, the others and the gradient stay right."""
    logits = np.concatenate([LOGITS, np.full((1, 3), NAN, np.float32)])
    loss, gradient = evaluate(run, backend, logits, np.array([0, 2, -100]))
    expected = reference.cross_entropy(LOGITS, np.array([0, 2])).loss
    check_close(loss, expected, "float32", tolerance(backend, "float32"))
    np.testing.assert_array_equal(gradient[2], np.zeros(3))


HALF = [
    # rows, classes, logits' scale: a sum or mean that overflows or loses its digits in 16-bit accumulation
    ("mean over 70000 rows", 70000, 5, 1.0),
    ("loss of 4e4", 4, 5, 4.0e4),
]


@pytest.mark.parametrize(("name", "rows", "classes", "scale"), HALF, ids=[row[0] for row in HALF])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_accumulated_in_float32(name, rows, classes, scale, dtype, backend):
    random = np.random.default_rng(0)
    logits = to_tensor(random.uniform(-1, 1, (rows, classes)) * scale, dtype)
    target = random.integers(0, classes, rows)
    loss = ms_ce.cross_entropy(logits, to_tensor(target), backend=backend)
    expected = reference.cross_entropy(to_numpy(logits), target).loss
    assert np.isfinite(expected)
    check_close(to_numpy(loss), expected, dtype, tolerance(backend, dtype), name)


def test_nonfinite_weight_of_an_unused_class(backend, run):
    """Without smoothing only the target's weight is read."""
    weight = np.array([1.0, NAN, 2.0], np.float32)
    loss, gradient = evaluate(run, backend, LOGITS, np.array([0, 2]), weight)
    arguments = (LOGITS, np.array([0, 2]), np.array([1.0, 1.0, 2.0]))
    bound = tolerance(backend, "float32")
    check_close(loss, reference.cross_entropy(*arguments).loss, "float32", bound)
    check_close(gradient, reference.cross_entropy_grad(*arguments).logits, "float32", bound)


def test_non_contiguous_inputs(backend):
    """A transposed view gives the result of its copy."""
    base = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    target = np.arange(7) % 5
    view = ms.Tensor(base).T
    loss = ms_ce.cross_entropy(view, to_tensor(target), backend=backend)
    expected = reference.cross_entropy(base.T, target).loss
    check_close(to_numpy(loss), expected, "float32", tolerance(backend, "float32"))


def test_weight_and_target_gradients_of_an_excluded_class(backend, run):
    """A class with logit -inf and probability 0 has no influence: every derivative is finite."""
    target = np.array([[0.25, 0.0, 0.75], [1.0, 0.0, 0.0]], np.float32)
    weight = np.array([1.0, 2.0, 0.5], np.float32)

    def loss(logits, target, weight):
        return ms_ce.cross_entropy(logits, target, weight, backend=backend)

    gradients = run(
        ms.grad(loss, (0, 1, 2)), *(to_tensor(array) for array in (MASKED, target, weight))
    )
    expected = reference.cross_entropy_grad(MASKED, target, weight)
    for name, actual, wanted in zip(
        ["logits", "target", "weight"], gradients, expected, strict=True
    ):
        assert np.all(np.isfinite(wanted))
        check_close(to_numpy(actual), wanted, "float32", tolerance(backend, "float32"), name)
