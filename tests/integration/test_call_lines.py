"""The lines of torch and MindSpore work unchanged: orders of positional arguments, names of the inputs."""

from __future__ import annotations

import inspect
import warnings

import mindspore as ms
import numpy as np
import pytest
from mindspore import mint, nn, ops

import ms_ce
from ms_ce import reference
from ms_ce.ops.options import Options
from tests.integration.conftest import to_numpy

LOGITS = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75], [0.0, 1.0, -2.0]], np.float32)
LABELS = np.array([2, 1, 0], np.int32)
WEIGHT = np.array([0.5, 2.0, 1.5], np.float32)
TENSORS = ("input", "inputs", "target", "weight")
# A value that is no default, for each name but torch's deprecated pair.
VALUES = {"ignore_index": 1, "reduction": "sum", "label_smoothing": 0.25}
# torch.nn's documentation, and torch.nn.functional's behind input, target.
TORCH = "weight=None, size_average=None, ignore_index=-100, reduce=None, reduction='mean'"
TORCH_SMOOTHED = f"{TORCH}, label_smoothing=0.0"


def documented(parameters: str) -> inspect.Signature:
    scope: dict = {}
    exec(f"def line({parameters}): ...", scope)
    return inspect.signature(scope["line"])


def with_inputs(parameters: str) -> inspect.Signature:
    return documented(f"input, target, {parameters}")


# ours, the line that it replaces, the line's signature
LINES = [
    (ms_ce.CrossEntropyLoss, "nn", inspect.signature(nn.CrossEntropyLoss)),
    (ms_ce.CrossEntropyLoss, "mint.nn", inspect.signature(mint.nn.CrossEntropyLoss)),
    (ms_ce.CrossEntropyLoss, "torch", documented(TORCH_SMOOTHED)),
    (ms_ce.NLLLoss, "nn", inspect.signature(nn.NLLLoss)),
    (ms_ce.NLLLoss, "mint.nn", inspect.signature(mint.nn.NLLLoss)),
    (ms_ce.NLLLoss, "torch", documented(TORCH)),
    (ms_ce.ops.NLLLoss, "ops", inspect.signature(ops.NLLLoss.__init__)),
    (ms_ce.cross_entropy, "ops", inspect.signature(ops.cross_entropy)),
    (ms_ce.cross_entropy, "mint", inspect.signature(mint.nn.functional.cross_entropy)),
    (ms_ce.cross_entropy, "torch", with_inputs(TORCH_SMOOTHED)),
    (ms_ce.cross_entropy_with_stats, "ops", inspect.signature(ops.cross_entropy)),
    (ms_ce.cross_entropy_with_stats, "torch", with_inputs(TORCH_SMOOTHED)),
    (ms_ce.cross_entropy_value_and_grad, "ops", inspect.signature(ops.cross_entropy)),
    (ms_ce.cross_entropy_value_and_grad, "torch", with_inputs(TORCH_SMOOTHED)),
    (ms_ce.nll_loss, "ops", inspect.signature(ops.nll_loss)),
    (ms_ce.nll_loss, "mint", inspect.signature(mint.nn.functional.nll_loss)),
    (ms_ce.nll_loss, "torch", with_inputs(TORCH)),
]
OPTION_LINES = [
    (ours, theirs, [p for p in signature.parameters.values() if p.name not in (*TENSORS, "self")])
    for ours, theirs, signature in LINES
]


def ids(value):
    return getattr(value, "__name__", value if isinstance(value, str) else "")


def options_of(function, *options, **keywords) -> Options:
    """What a Cell or function makes of its options."""
    if isinstance(function, type):
        weight = () if function is ms_ce.ops.NLLLoss else (None,)
        return function(*weight, *options, **keywords).plan.options
    seen = []

    def record(logits, target, weight, row_weight, options, *more):
        seen.append(options)
        raise LookupError

    tensors = (ms.Tensor(LOGITS), ms.Tensor(LABELS), None)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cross_entropy", "cross_entropy_with_stats", "cross_entropy_value_and_grad"):
            patch.setattr(f"ms_ce.ops.composed.{name}", record)
        patch.setattr("ms_ce.ops.composed.nll_loss", record)
        with pytest.raises(LookupError):
            function(*tensors, *options, backend="composed", **keywords)
    return seen[0]


@pytest.mark.filterwarnings("ignore:.*are deprecated")
@pytest.mark.parametrize(("ours", "theirs", "parameters"), OPTION_LINES, ids=ids)
def test_every_prefix_of_the_line_means_the_same(ours, theirs, parameters):
    """1, 2, … all of the line's arguments by position, and the rest by keyword."""
    names = [parameter.name for parameter in parameters]
    no_smoothing = ours in (ms_ce.nll_loss, ms_ce.NLLLoss)
    values = [VALUES.get(name) for name in names]
    if no_smoothing and names[-1] == "label_smoothing":
        values[-1] = 0.0
    for count in range(len(names) + 1):
        rest = dict(zip(names[count:], values[count:], strict=True))
        got = options_of(ours, *values[:count], **rest)
        smoothing = 0.25 if "label_smoothing" in names and not no_smoothing else 0.0
        assert got == Options(1, "sum", smoothing)


@pytest.mark.parametrize(("ours", "theirs", "parameters"), OPTION_LINES, ids=ids)
def test_defaults_are_those_of_the_line(ours, theirs, parameters):
    if ours is ms_ce.cross_entropy_value_and_grad:
        expected = Options()
    else:
        known = {p.name: p.default for p in parameters if p.name in VALUES}
        expected = Options(**known)
    assert options_of(ours) == expected


@pytest.mark.parametrize("loss", [ms_ce.CrossEntropyLoss, ms_ce.cross_entropy], ids=ids)
@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((True, None), "mean"),
        ((False, None), "sum"),
        ((False, True), "sum"),
        ((None, False), "none"),
        ((False, False), "none"),
    ],
)
def test_deprecated_pair_by_position(loss, pair, expected):
    size_average, reduce = pair
    with pytest.warns(DeprecationWarning, match=f"use reduction='{expected}'") as warned:
        got = options_of(loss, size_average, 7, reduce, "mean", 0.5)
    assert got == Options(7, expected, 0.5)
    assert warned[0].filename == __file__


def test_a_line_without_the_deprecated_pair_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options_of(ms_ce.CrossEntropyLoss, None, 7, None, "sum") == Options(7, "sum")
        assert options_of(ms_ce.cross_entropy, None, 7, None, "sum") == Options(7, "sum")


def mindspore_order(x, y, w):
    return ms_ce.cross_entropy(x, y, w, 1, "sum", 0.25)


def torch_order(x, y, w):
    return ms_ce.cross_entropy(x, y, w, None, 1, None, "sum", 0.25)


def names(x, y, w):
    return ms_ce.cross_entropy(
        logits=x, labels=y, weight=w, ignore_index=1, reduction="sum", label_smoothing=0.25
    )


def nll_mindspore_order(x, y, w):
    return ms_ce.nll_loss(x, y, w, 1, "sum", 0.0)


def nll_torch_order(x, y, w):
    return ms_ce.nll_loss(x, y, w, None, 1, None, "sum")


def nll_inputs(x, y, w):
    return ms_ce.nll_loss(inputs=x, target=y, weight=w, ignore_index=1, reduction="sum")


def nll_names(x, y, w):
    return ms_ce.nll_loss(logits=x, labels=y, weight=w, ignore_index=1, reduction="sum")


TENSORS_GIVEN = tuple(map(ms.Tensor, (LOGITS, LABELS, WEIGHT)))
EXPECTED = reference.cross_entropy(LOGITS, LABELS, WEIGHT, 1, "sum", 0.25).loss
NLL_EXPECTED = reference.nll_loss(LOGITS, LABELS, WEIGHT, 1, "sum")[0]


@pytest.mark.parametrize("line", [mindspore_order, torch_order, names], ids=ids)
def test_lines_of_cross_entropy(line, run):
    np.testing.assert_allclose(to_numpy(run(line, *TENSORS_GIVEN)), EXPECTED, rtol=1e-6)


@pytest.mark.parametrize(
    "line", [nll_mindspore_order, nll_torch_order, nll_inputs, nll_names], ids=ids
)
def test_lines_of_nll_loss(line, run):
    np.testing.assert_allclose(to_numpy(run(line, *TENSORS_GIVEN)), NLL_EXPECTED, rtol=1e-6)


class _Named(nn.Cell):
    """A loss called by MindSpore's names."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def construct(self, x, y):
        return self.loss(logits=x, labels=y)


CELLS = [
    (ms_ce.CrossEntropyLoss, (1, "sum", 0.25), EXPECTED),
    (ms_ce.CrossEntropyLoss, (None, 1, None, "sum", 0.25), EXPECTED),
    (ms_ce.NLLLoss, (1, "sum"), NLL_EXPECTED),
    (ms_ce.NLLLoss, (None, 1, None, "sum"), NLL_EXPECTED),
]


@pytest.mark.parametrize(("cell", "options", "expected"), CELLS)
def test_cells_by_both_names(cell, options, expected, run):
    loss = cell(ms.Tensor(WEIGHT), *options)
    x, y, _ = TENSORS_GIVEN
    by_name = _Named(loss)
    actual = [run(loss, x, y), run(by_name, x, y), loss(logits=x, labels=y), loss(x, labels=y)]
    for result in actual:
        np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-6)


@pytest.mark.parametrize("cell", [ms_ce.CrossEntropyLoss, ms_ce.NLLLoss], ids=ids)
def test_gradient_of_a_cell_by_both_names(cell, run):
    """Taken outside of the compiled graph and inside, of the Cell itself and through names."""
    loss = cell(ms.Tensor(WEIGHT), 1, "sum")
    by_name = _Named(loss)

    def inside(x, y):
        return ms.grad(loss)(x, y)

    def inside_by_name(x, y):
        return ms.grad(by_name)(x, y)

    function = (
        reference.cross_entropy_grad if cell is ms_ce.CrossEntropyLoss else reference.nll_loss_grad
    )
    expected = function(LOGITS, LABELS, WEIGHT, ignore_index=1, reduction="sum").logits
    for gradient in (ms.grad(loss), ms.grad(by_name), inside, inside_by_name):
        actual = to_numpy(run(gradient, *TENSORS_GIVEN[:2]))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


# options by position and by keyword, what the error names
TWICE = [
    ((255,), {"ignore_index": 3}, "ignore_index is given twice: 255 by position and ignore_index=3"),
    ((255,), {"ignore_index": -100}, "ignore_index is given twice: 255 by position and ignore_index=-100"),
    ((-100, "sum"), {"reduction": "mean"}, "reduction is given twice: 'sum' by position and reduction='mean'"),
    ((True,), {"size_average": False}, "size_average is given twice: True by position and size_average=False"),
    ((None, 3), {"ignore_index": 3}, "ignore_index is given twice"),
    ((None, 3, None), {"reduce": True}, "reduce is given twice: None by position and reduce=True"),
    ((None, 3, None, "sum"), {"reduction": "sum"}, "reduction is given twice"),
]  # fmt: skip
MISPLACED = [
    (("sum",), {}, TypeError, "behind weight stands ignore_index, an int, or torch's size_average, .* got 'sum'"),
    ((1.0,), {}, TypeError, "behind weight stands ignore_index, .* got 1.0: pass it by keyword"),
    ((255, None), {}, ValueError, "reduction must be 'none', 'mean' or 'sum', got None"),
    ((255, True), {}, ValueError, "reduction must be 'none', 'mean' or 'sum', got True"),
    ((255, "sum", 0.0, 0.0), {}, TypeError, "at most 3 positional arguments, ignore_index, .*; got 4"),
    ((None, 255, None, "sum", 0.0, 0.0), {}, TypeError, "at most 5 positional arguments, size_average, .*; got 6"),
    ((True, "sum"), {}, TypeError, "ignore_index must be an int, got 'sum'"),
    ((None, 255, "sum"), {}, TypeError, "reduce must be True, False or None, got 'sum'"),
    ((), {"size_average": 255}, TypeError, "size_average must be True, False or None, got 255"),
]  # fmt: skip
ALL_WRONG = [
    *[(options, keywords, TypeError, text) for options, keywords, text in TWICE],
    *MISPLACED,
]


@pytest.mark.filterwarnings("ignore:.*are deprecated")
@pytest.mark.parametrize(("options", "keywords", "kind", "text"), ALL_WRONG)
@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss", "cross_entropy", "nll_loss"])
def test_wrong_lines(name, options, keywords, kind, text):
    loss = getattr(ms_ce, name)
    with pytest.raises(kind, match=f"^{name}: .*{text}"):
        options_of(loss, *options, **keywords)


@pytest.mark.filterwarnings("ignore:.*are deprecated")
@pytest.mark.parametrize(("options", "keywords", "kind", "text"), ALL_WRONG)
def test_wrong_lines_while_compiling(options, keywords, kind, text):
    @ms.jit
    def compiled(x, y, w):
        return ms_ce.cross_entropy(x, y, w, *options, **keywords)

    with pytest.raises(kind, match=f"cross_entropy: .*{text}"):
        compiled(*TENSORS_GIVEN)


def input_twice(x, y, w):
    return ms_ce.cross_entropy(x, y, logits=x)


def target_twice(x, y, w):
    return ms_ce.nll_loss(x, y, labels=y)


def inputs_twice(x, y, w):
    return ms_ce.nll_loss(x, y, inputs=x)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (input_twice, "cross_entropy: input and logits are the same argument"),
        (target_twice, "nll_loss: target and labels are the same argument"),
        (inputs_twice, "nll_loss: input and inputs are the same argument"),
    ],
)
def test_a_tensor_given_by_two_names(line, text, run):
    with pytest.raises(TypeError, match=text):
        run(line, *TENSORS_GIVEN)


# what a Cell is called with, what the error says
CELL_INPUTS = [
    (lambda loss, x, y: loss(x, y, logits=x), "input is given twice: the one by position and logits"),
    (lambda loss, x, y: loss(input=x, logits=x, labels=y), "input is given twice: input and logits"),
    (lambda loss, x, y: loss(x, y, labels=y), "target is given twice: the one by position and labels"),
    (lambda loss, x, y: loss(x), "target is missing; it is also called labels"),
    (lambda loss, x, y: loss(labels=y), "input is missing; it is also called logits"),
    (lambda loss, x, y: loss(x, label=y), "the inputs are .*, target, labels, row_weight, total_weight, got label"),
    (lambda loss, x, y: loss(x, y, x, x, x), "the inputs are input, target, .*, total_weight, got 5 by position"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), CELL_INPUTS)
@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_inputs_of_a_cell_that_do_not_fit(call, text, mode):
    ms.set_context(mode=mode)
    try:
        with pytest.raises(TypeError, match=f"CrossEntropyLoss: {text}"):
            call(ms_ce.CrossEntropyLoss(), *TENSORS_GIVEN[:2])
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_nll_loss_smooths_nothing():
    with pytest.raises(
        ValueError, match=r"nll_loss: label_smoothing must be 0, got 0.1; cross_entropy"
    ):
        ms_ce.nll_loss(*TENSORS_GIVEN, -100, "mean", 0.1)
