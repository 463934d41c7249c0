"""MindSpore's own lines, computed by ms_ce while they are patched: against the float64 reference, in both modes."""

from __future__ import annotations

import inspect
from importlib import metadata

import mindspore as ms
import numpy as np
import pytest
from mindspore import mint, nn, ops
from mindspore.ops.function import nn_func

import ms_ce
from ms_ce import reference
from tests.integration.conftest import to_numpy

RANDOM = np.random.default_rng(16)
LOGITS = RANDOM.normal(size=(6, 9)).astype(np.float32)
LABELS = np.array([3, 5, 0, 8, 8, 1], np.int32)
PROBABILITIES = RANDOM.dirichlet(np.ones(9), 6).astype(np.float32)
WEIGHT = RANDOM.uniform(0.5, 2.0, 9).astype(np.float32)
MODES = {"pynative": ms.PYNATIVE_MODE, "graph": ms.GRAPH_MODE}
OPTIONS = {"ignore_index": 8, "reduction": "sum"}
SMOOTHED = OPTIONS | {"label_smoothing": 0.25}


@pytest.fixture(params=MODES)
def mode(request):
    before = ms.get_context("mode")
    ms.set_context(mode=MODES[request.param])
    yield request.param
    ms.set_context(mode=before)


@pytest.fixture
def patched():
    with ms_ce.patch.mindspore() as handle:
        yield handle


def _ops_cross_entropy(x, y, w):
    return ops.cross_entropy(x, y, w, 8, "sum", 0.25)


def _mint_cross_entropy(x, y, w):
    return mint.nn.functional.cross_entropy(x, y, w, 8, "sum", 0.25)


def _ops_nll_loss(x, y, w):
    return ops.nll_loss(x, y, w, 8, "sum")


def _mint_nll_loss(x, y, w):
    return mint.nn.functional.nll_loss(x, y, w, 8, "sum")


FUNCTIONS = [
    (_ops_cross_entropy, SMOOTHED),
    (_mint_cross_entropy, SMOOTHED),
    (_ops_nll_loss, OPTIONS),
    (_mint_nll_loss, OPTIONS),
]
CELLS = [
    (nn.CrossEntropyLoss, SMOOTHED),
    (mint.nn.CrossEntropyLoss, SMOOTHED),
    (nn.NLLLoss, OPTIONS),
    (mint.nn.NLLLoss, OPTIONS),
]


def _expected(options):
    """(loss, gradient of the logits) of the float64 reference."""
    arguments = LOGITS.astype(np.float64), LABELS, WEIGHT
    if "label_smoothing" in options:
        loss = reference.cross_entropy(*arguments, **options).loss
        return loss, reference.cross_entropy_grad(*arguments, **options).logits
    gradient = reference.nll_loss_grad(*arguments, **options).logits
    return reference.nll_loss(*arguments, **options)[0], gradient


@pytest.mark.parametrize(("function", "options"), FUNCTIONS)
def test_functions(patched, mode, function, options):
    tensors = ms.Tensor(LOGITS), ms.Tensor(LABELS), ms.Tensor(WEIGHT)
    loss, gradient = ms.value_and_grad(function)(*tensors)
    expected = _expected(options)
    np.testing.assert_allclose(to_numpy(loss), expected[0], rtol=2e-6)
    np.testing.assert_allclose(to_numpy(gradient), expected[1], atol=2e-6)


@pytest.mark.parametrize("made", ["before", "while patched"])
@pytest.mark.parametrize(("cell", "options"), CELLS)
def test_cells(mode, cell, options, made):
    """Those made before too, by the names of their inputs too, and in training."""
    weight = ms.Tensor(WEIGHT)
    loss = cell(weight, **options) if made == "before" else None
    with ms_ce.patch.mindspore():
        loss = loss or cell(weight, **options)
        loss.set_train()
        value, gradient = ms.value_and_grad(loss)(ms.Tensor(LOGITS), ms.Tensor(LABELS))
        assert isinstance(loss, cell)
    expected = _expected(options)
    np.testing.assert_allclose(to_numpy(value), expected[0], rtol=2e-6)
    np.testing.assert_allclose(to_numpy(gradient), expected[1], atol=2e-6)


def test_inputs_by_name(patched):
    tensors = ms.Tensor(LOGITS), ms.Tensor(LABELS)
    expected = reference.cross_entropy(LOGITS.astype(np.float64), LABELS).loss
    named = nn.CrossEntropyLoss()(logits=tensors[0], labels=tensors[1])
    minted = mint.nn.CrossEntropyLoss()(input=tensors[0], target=tensors[1])
    np.testing.assert_allclose([float(named), float(minted)], expected, rtol=2e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_ext", "nll_loss", "nll_loss_ext"])
def test_signatures_stay(name):
    before = inspect.signature(getattr(nn_func, name))
    with ms_ce.patch.mindspore():
        assert inspect.signature(getattr(nn_func, name)) == before


@pytest.mark.parametrize("cell", [cell for cell, _ in CELLS])
def test_signatures_of_cells_stay(cell):
    before = inspect.signature(cell.construct)
    with ms_ce.patch.mindspore():
        assert inspect.signature(cell.construct) == before


@pytest.mark.parametrize("logits", [ms.float16, ms.float32])
@pytest.mark.parametrize("target", [ms.float16, ms.float32])
def test_probabilities_of_another_dtype(patched, logits, target):
    """The result's dtype is the wider one, or with float32 logits theirs."""
    x, y = ms.Tensor(LOGITS).astype(logits), ms.Tensor(PROBABILITIES).astype(target)
    loss = ops.cross_entropy(x, y)
    expected = reference.cross_entropy(
        x.asnumpy().astype(np.float64), y.asnumpy().astype(np.float64)
    ).loss
    both_half = logits == target == ms.float16
    assert loss.dtype == (ms.float16 if both_half else ms.float32)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-3 if both_half else 2e-6)


def test_a_weight_of_16_bits(patched):
    weight = ms.Tensor(WEIGHT).astype(ms.float16)
    loss = nn.CrossEntropyLoss(weight)(ms.Tensor(LOGITS), ms.Tensor(LABELS))
    expected = reference.cross_entropy(
        LOGITS.astype(np.float64), LABELS, weight.asnumpy().astype(np.float64)
    ).loss
    np.testing.assert_allclose(float(loss), expected, rtol=2e-6)


def test_what_only_mindspore_computes(mode):
    """Smoothed log-probabilities; class indices of the input's rank."""
    x, y = ms.Tensor(LOGITS), ms.Tensor(LABELS)

    def smoothed(x):
        return ops.nll_loss(x, y, label_smoothing=0.5)

    def expanded(x):
        return ops.cross_entropy(x, y.reshape(6, 1))

    for function in (smoothed, expanded):
        before = to_numpy(function(x))
        with ms_ce.patch.mindspore():
            np.testing.assert_array_equal(to_numpy(function(x)), before)


def test_a_label_out_of_range_raises_while_patched(patched):
    with pytest.raises(RuntimeError, match="target 9 at position"):
        ops.cross_entropy(ms.Tensor(LOGITS), ms.Tensor(np.full(6, 9, np.int32))).asnumpy()


def test_parts():
    theirs = ops.cross_entropy, ops.nll_loss
    with ms_ce.patch.mindspore(cross_entropy=False) as handle:
        assert ops.cross_entropy is theirs[0]
        assert ops.nll_loss is not theirs[1]
        assert not any("cross_entropy" in name.lower() for name in handle.replaced)
    with ms_ce.patch.mindspore(nll_loss=False):
        assert ops.cross_entropy is not theirs[0]
        assert ops.nll_loss is theirs[1]
    assert (ops.cross_entropy, ops.nll_loss) == theirs


def test_everything_is_put_back():
    places = [
        (nn_func, "cross_entropy"), (ops, "cross_entropy"), (ops.functional, "cross_entropy"),
        (ops, "nll_loss"), (mint.nn.functional, "cross_entropy"), (mint.nn.functional, "nll_loss"),
        *((cell, "construct") for cell, _ in CELLS),
    ]  # fmt: skip
    before = [getattr(*place) for place in places]
    with ms_ce.patch.mindspore(), ms_ce.patch.mindspore():
        changed = [getattr(*place) for place in places]
        assert all(new is not old for new, old in zip(changed, before, strict=True))
    assert [getattr(*place) for place in places] == before


def test_an_unknown_mindspore(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9")
    with pytest.raises(RuntimeError, match=r"mindspore 9\.9\.9 is unknown.*2\.10\.0.*force=True"):
        ms_ce.patch.mindspore()
    with ms_ce.patch.mindspore(force=True) as handle:
        assert "9.9.9" in repr(handle)


def test_a_compiled_graph_keeps_what_it_was_compiled_with():
    """A label out of range tells whose loss it is: MindSpore's gathers what lies there, ours raises."""

    @ms.jit
    def loss(logits, labels):
        return ops.cross_entropy(logits, labels)

    logits, wrong = ms.Tensor(LOGITS), ms.Tensor(np.full(6, -1, np.int32))
    before = float(loss(logits, wrong))
    with ms_ce.patch.mindspore():
        assert float(loss(logits, wrong)) == before
        with pytest.raises(RuntimeError, match="target -1 at position"):
            ms.jit(_compiled_while_patched)(logits, wrong).asnumpy()


def _compiled_while_patched(logits, labels):
    return ops.cross_entropy(logits, labels)
