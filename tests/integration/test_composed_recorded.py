"""PyNative on backend composed: the gradients that are written out are right, at corners too, and one that nobody
wants is not made."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from ms_ce import reference
from ms_ce.ops.composed import recorded

INF = np.inf
LOGITS = np.array(
    [
        [0.5, -1.0, 2.0, 0.0],
        [1e8, 1e8 + 16, -1e8, 0.0],
        [-INF, 1.0, 2.0, -INF],
        [-INF, -INF, -INF, -INF],
        [INF, 0.0, 1.0, 2.0],
        [np.nan, 0.0, 1.0, 2.0],
        [-INF, 3.0, -INF, 1.0],
        [3.0, -4.0, 0.25, 1.0],
        [1.0, 2.5, -3.0, 0.5],
    ],
    np.float32,
)
INDICES = np.array([2, 1, 0, 1, 3, 3, 1, -100, 1], np.int32)
PROBABILITIES = np.eye(4, dtype=np.float32)[np.maximum(INDICES, 0)] * 0.75 + 0.0625
WEIGHTS = {
    "no weight": None,
    "weight": np.array([0.5, 1.5, 2.0, 0.25], np.float32),
    "both signs": np.array([-1.0, 1.0, 0.0, 2.0], np.float32),
    "cancelling": np.array([-1.0, 0.5, 0.5, 0.0], np.float32),
}
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.3},
    "z-loss": {"z_loss": 0.01, "logit_scale": 0.5},
    "softcap": {"softcap": 3.0, "logit_scale": 2.0},
    "everything": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "logit_scale": 1.5},
}
UPSTREAM = np.array([1.0, -2.0, 0.0, 1.0, 0.0, 0.0, 0.5, 3.0, -1.5], np.float32)
ROW_WEIGHTS = {
    "every row 1": None,
    "row weights": np.array([1.0, 2.0, -0.5, 0.0, 0.0, 1.0, 0.25, 1.0, 0.75], np.float32),
}
FINITE = [0, 7, 8]  # at 1e8 float32 has no digits left for a sum of losses


def _agree(function, of_reference, target, weight, reduction, row_weight=None, **options):
    """Gradients with an upstream other than 1: of every row of logits, nan where the row's loss is; of probabilities
    and weight from rows whose loss is finite."""
    loss_of, gradient_of = of_reference
    for rows in (range(len(LOGITS)), FINITE):
        given = [LOGITS[rows], target[rows]] + ([] if weight is None else [weight])
        factors = None if row_weight is None else row_weight[rows]
        losses = loss_of(*given, reduction="none", row_weight=factors, **options)
        upstream = UPSTREAM[rows] if reduction == "none" else UPSTREAM[1]
        keywords = {"reduction": reduction, **options}
        expected = gradient_of(*given, row_weight=factors, grad_loss=upstream, **keywords)
        expected[0][np.isnan(losses[0])] = np.nan
        if factors is not None:
            keywords["row_weight"] = Tensor(factors)

        def loss(*tensors, upstream=upstream, keywords=keywords):
            value = function(*tensors, backend="composed", **keywords)
            return (value * Tensor(upstream)).sum()

        tensors = [Tensor(each) for each in given]
        places = [place for place, each in enumerate(tensors) if each.is_floating_point()]
        for place in places if rows is FINITE and np.isfinite(losses[0]).all() else [0]:
            actual = ms.grad(loss, place)(*tensors).asnumpy()
            np.testing.assert_allclose(actual, expected[place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", ROW_WEIGHTS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("target", [INDICES, PROBABILITIES], ids=["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_cross_entropy(reduction, target, weight, options, rows):
    given = (target, WEIGHTS[weight], reduction, ROW_WEIGHTS[rows])
    of_reference = (reference.cross_entropy, reference.cross_entropy_grad)
    _agree(ms_ce.cross_entropy, of_reference, *given, **OPTIONS[options])


@pytest.mark.parametrize("options", ["z-loss", "everything"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_statistics_hand_on_what_arrives_at_the_z_loss(reduction, options):
    def loss(*tensors, **keywords):
        stats = ms_ce.cross_entropy_with_stats(*tensors, **keywords)
        return stats.loss + 2.0 * stats.z_loss

    def expected(*tensors, **keywords):
        """The z-loss's gradient is the difference that z_loss makes."""
        whole = reference.cross_entropy_grad(*tensors, **keywords)
        rest = reference.cross_entropy_grad(*tensors, **keywords | {"z_loss": 0.0})
        pairs = zip(whole, rest, strict=True)
        return [None if one is None else 3.0 * one - 2.0 * other for one, other in pairs]

    of_reference = (reference.cross_entropy, expected)
    _agree(loss, of_reference, INDICES, WEIGHTS["weight"], reduction, **OPTIONS[options])


@pytest.mark.parametrize("rows", ROW_WEIGHTS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nll(reduction, weight, rows):
    given = (INDICES, WEIGHTS[weight], reduction, ROW_WEIGHTS[rows])
    _agree(ms_ce.nll_loss, (reference.nll_loss, reference.nll_loss_grad), *given)


def test_what_nobody_wants_is_not_made(monkeypatch):
    """Logits that need no gradient: neither the probabilities nor the place of the target are computed."""

    def not_wanted(*inputs):
        raise AssertionError("the gradient of the logits was made")

    monkeypatch.setattr(recorded, "_of_raw_logits", not_wanted)
    logits, weight = Tensor(LOGITS[:1]), Tensor(WEIGHTS["weight"])

    def loss(weight):
        return ms_ce.cross_entropy(logits, Tensor([2]), weight, 255, "sum", backend="composed")

    log_p = LOGITS[0, 2] - np.log(np.exp(LOGITS[0].astype(np.float64)).sum())
    actual = ms.grad(loss)(weight).asnumpy()
    np.testing.assert_allclose(actual, [0.0, 0.0, -log_p, 0.0], rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", (0.1, 1.0))
def test_a_weight_that_is_nan_stays_out_of_ignored_rows(label_smoothing):
    random = np.random.default_rng(0)
    logits, target = random.normal(size=(5, 4)), np.array([0, -100, 1, -100, 0], np.int32)
    weight = np.array([1.0, 2.0, np.nan, 0.5])
    options = {"label_smoothing": label_smoothing, "reduction": "sum", "z_loss": 0.1}

    def loss(logits, target, weight):
        return ms_ce.cross_entropy(logits, target, weight, backend="composed", **options)

    tensors = (Tensor(logits), Tensor(target), Tensor(weight))
    by_logits, by_weight = ms.grad(loss, (0, 2))(*tensors)
    expected = reference.cross_entropy_grad(logits, target, weight, **options)
    assert np.isnan(expected.logits[0]).all()
    np.testing.assert_array_equal(by_logits.asnumpy()[[1, 3]], 0.0)
    np.testing.assert_allclose(by_logits.asnumpy(), expected.logits, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(by_weight.asnumpy(), expected.weight, rtol=1e-12, atol=1e-12)
