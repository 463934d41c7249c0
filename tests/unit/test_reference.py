"""The reference itself: constants worked out by hand, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ms_ce import reference
from tests.support.cases import CASES, NLL_CASES

LN2, LN3 = math.log(2.0), math.log(3.0)
# Two rows whose softmax is (1/2, 1/4, 1/4) and (1/3, 1/3, 1/3): lse ln 4 and ln 3 with logits (ln 2, 0, 0), zeros.
LOGITS = np.array([[LN2, 0.0, 0.0], [0.0, 0.0, 0.0]])
WEIGHT = np.array([1.0, 2.0, 4.0])

BY_HAND = [
    ("none", {"reduction": "none"}, [0, 2], None, [LN2, LN3]),
    ("mean", {}, [0, 2], None, (LN2 + LN3) / 2),
    ("sum", {"reduction": "sum"}, [0, 2], None, LN2 + LN3),
    ("ignored", {}, [-100, 1], None, LN3),
    ("weighted", {}, [0, 2], WEIGHT, (LN2 + 4 * LN3) / 5),
    ("nan weight of another class", {}, [0, 2], np.array([1.0, np.nan, 4.0]), (LN2 + 4 * LN3) / 5),
    # row 1: 0.7·ln 2 + 0.1·(ln 2 + 2 ln 2 + 2 ln 2), the distances lse - x being (ln 2, ln 4, ln 4)
    ("smoothed", {"label_smoothing": 0.3, "reduction": "none"}, [0, 2], None, [1.2 * LN2, LN3]),
    # smooth term Σ w·(lse - x)/3: (1 + 2·2 + 4·2)·ln 2/3 and 7·ln 3/3
    (
        "smoothed and weighted",
        {"label_smoothing": 0.3, "reduction": "none"},
        [0, 2],
        WEIGHT,
        [0.7 * LN2 + 0.1 * 13 * LN2, 0.7 * 4 * LN3 + 0.1 * 7 * LN3],
    ),
    ("z-loss", {"z_loss": 0.5, "reduction": "none"}, [0, 2], None, [LN2 + 2 * LN2**2, LN3 + LN3**2 / 2]),
    ("scale", {"logit_scale": 0.0, "reduction": "none"}, [0, 2], None, [LN3, LN3]),
    ("probabilities", {"reduction": "none"}, [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], None, [1.5 * LN2, LN3]),
    ("probabilities mean", {}, [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], WEIGHT, (0.5 * LN2 + 2 * LN2 + 4 * LN3) / 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "target", "weight", "expected"),
    [row[1:] for row in BY_HAND],
    ids=[row[0] for row in BY_HAND],
)
def test_loss_by_hand(options, target, weight, expected):
    result = reference.cross_entropy(LOGITS, np.array(target), weight, **options)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-14)


def test_statistics_by_hand():
    result = reference.cross_entropy(LOGITS, np.array([0, 2]), WEIGHT, reduction="none")
    np.testing.assert_allclose(result.lse, [2 * LN2, LN3], rtol=1e-14)
    np.testing.assert_allclose(result.entropy, [1.5 * LN2, LN3], rtol=1e-14)
    assert result.total_weight == 5.0
    assert result.num_correct == 1
    np.testing.assert_array_equal(result.predicted, [0, 0])  # of three equal logits the first


def test_predicted_by_hand():
    """None in a row that is ignored, weighs 0, or has no softmax."""
    inf, nan = np.inf, np.nan
    logits = [[0, 2, 1], [3, 0, 3], [1, nan, 0], [1, inf, 0], [-inf, -inf, -inf], [-inf, 0, -inf]]
    row_weight, target = [1, 1, 1, 1, 1, 0], np.array([1, -100, 0, 1, 0, 1])
    result = reference.cross_entropy(logits, target, row_weight=row_weight)
    np.testing.assert_array_equal(result.predicted, [1, -1, -1, -1, -1, -1])
    assert result.predicted.dtype == np.int32
    assert result.num_correct == 1
    result = reference.cross_entropy(logits, np.ones((6, 3)), logit_scale=-1.0)
    np.testing.assert_array_equal(result.predicted, [0, 1, -1, 2, -1, -1])


def test_gradient_by_hand():
    gradient = reference.cross_entropy_grad(LOGITS, np.array([0, 2]), reduction="sum").logits
    expected = [[-1 / 2, 1 / 4, 1 / 4], [1 / 3, 1 / 3, -2 / 3]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-14)


def test_row_weight_by_hand():
    """Losses log 4 and log 3 of weights 2 and -1; the third row, of weight 0, holds nothing that could be read."""
    logits = np.concatenate([LOGITS, [[np.nan, np.inf, 0.0]]])
    target, row_weight = np.array([1, 2, 9]), np.array([2.0, -1.0, 0.0])
    result = reference.cross_entropy(logits, target, row_weight=row_weight, reduction="none")
    np.testing.assert_allclose(result.loss, [2 * np.log(4), -np.log(3), 0], rtol=1e-14)
    mean = reference.cross_entropy(logits, target, np.array([1, 3, 1]), row_weight=row_weight)
    assert mean.total_weight == 2 * 3 - 1
    np.testing.assert_allclose(mean.loss, (6 * np.log(4) - np.log(3)) / 5, rtol=1e-14)
    assert mean.num_correct == 0
    q = np.eye(3)[[1, 2, 0]]
    mean = reference.cross_entropy(logits, q, row_weight=row_weight)
    np.testing.assert_allclose(mean.loss, 2 * np.log(4) - np.log(3), rtol=1e-14)


def test_documented_value_of_the_primitive():
    """The example in mindspore.ops.NLLLoss's documentation."""
    logits = np.array([[0.5488135, 0.71518934], [0.60276335, 0.5448832], [0.4236548, 0.6458941]])
    weight = np.array([0.3834415, 0.79172504])
    loss, total_weight = reference.nll_loss(logits, np.zeros(3, int), weight)
    np.testing.assert_allclose(loss, -0.52507716, rtol=1e-6)
    np.testing.assert_allclose(total_weight, 1.1503246, rtol=1e-6)


def _central_differences(function, point, step=1e-6):
    out = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        moved = point.copy()
        moved[index] += step
        upper = function(moved)
        moved[index] -= 2 * step
        out[index] = (upper - function(moved)) / (2 * step)
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases_ask_for_numbers(case):
    """A comparison with nan would accept a backend that gives nothing else; gradients of 0 one that gives none."""
    for dtype in ("float16", "float32"):
        data = case.inputs(dtype)
        upstream = data.pop("grad_loss")
        assert np.isfinite(reference.cross_entropy(**data, **case.options).loss).all()
        gradients = reference.cross_entropy_grad(**data, **case.options, grad_loss=upstream)
        for gradient in gradients:
            assert gradient is None or np.isfinite(gradient).all()
        assert case.shape[-1] == 1 or gradients.logits.any()


def test_names_of_cases_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


SMALL = [case for case in CASES if np.prod(case.shape) < 500]


@pytest.mark.parametrize("weighted_rows", [False, True])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_gradients_by_finite_differences(case, weighted_rows):
    data, options = case.inputs("float64"), case.options
    if weighted_rows:
        rows = reference.rows_shape(case.shape)
        options = {**options, "row_weight": np.resize([0.5, 2.0, 0.0, 1.5, -0.25], rows)}
    points = {name: data[name] for name in ("logits", "target", "weight")}
    gradients = reference.cross_entropy_grad(**points, **options, grad_loss=data["grad_loss"])
    for name, gradient in gradients._asdict().items():
        if gradient is None:
            continue

        def loss(value, name=name):
            result = reference.cross_entropy(**{**points, name: value}, **options)
            return float((result.loss * data["grad_loss"]).sum())

        expected = _central_differences(loss, points[name])
        np.testing.assert_allclose(gradient, expected, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_hessian_vector_product_by_finite_differences(case):
    data = case.inputs("float64")
    direction = np.random.default_rng(1).normal(size=case.shape)
    rest = (data["target"], data["weight"])
    keywords = {**case.options, "grad_loss": data["grad_loss"]}

    def gradient(logits):
        return reference.cross_entropy_grad(logits, *rest, **keywords).logits

    step = 1e-6
    upper, lower = (gradient(data["logits"] + sign * step * direction) for sign in (1, -1))
    actual = reference.cross_entropy_hvp(direction, data["logits"], *rest, **keywords)
    np.testing.assert_allclose(actual, (upper - lower) / (2 * step), atol=1e-7)


@pytest.mark.parametrize(
    "options", [{}, {"logit_scale": 0.3}, {"softcap": 3.0, "logit_scale": 1.5}]
)
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2)])
def test_gradient_of_lse_by_finite_differences(shape, options):
    logits = np.random.default_rng(0).normal(size=shape)
    target = np.zeros(reference.rows_shape(shape), int)

    def total(point):
        return reference.cross_entropy(point, target, **options).lse.sum()

    actual = reference.lse_grad(logits, **options)
    np.testing.assert_allclose(actual, _central_differences(total, logits), atol=1e-8)


@pytest.mark.parametrize("case", NLL_CASES[:8], ids=lambda case: case.name)
def test_nll_gradients_by_finite_differences(case):
    data = case.inputs("float64")
    keywords = {**case.options, "grad_loss": data["grad_loss"]}
    arguments = (data["logits"], data["target"], data["weight"])
    gradients = reference.nll_loss_grad(*arguments, **keywords)

    def loss(log_prob):
        value, _ = reference.nll_loss(log_prob, *arguments[1:], **case.options)
        return float((value * data["grad_loss"]).sum())

    expected = _central_differences(loss, data["logits"])
    np.testing.assert_allclose(gradients.logits, expected, atol=1e-7)


def test_bad_class_index_is_refused():
    with pytest.raises(ValueError, match="outside"):
        reference.cross_entropy(LOGITS, np.array([0, 3]))
