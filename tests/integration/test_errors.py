"""Every wrong argument: the error's type and its text, which names argument, expectation, arrival and remedy."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import ms_ce
import ms_ce.parallel
from ms_ce import reference
from tests.integration.conftest import to_numpy

LOGITS = ms.Tensor(np.zeros((2, 3), np.float32))
LABELS = ms.Tensor(np.array([0, 2], np.int32))


def tensor(shape, dtype="float32"):
    return ms.Tensor(np.zeros(shape, dtype))


# name, positional arguments, keyword arguments, error, text
ERRORS = [
    ("input", (np.zeros((2, 3)), LABELS), {}, TypeError, r"input must be a mindspore.Tensor, got .*ndarray"),
    ("target", (LOGITS, [0, 2]), {}, TypeError, r"target must be a mindspore.Tensor, got .*list"),
    ("weight", (LOGITS, LABELS, [1.0] * 3), {}, TypeError, r"weight must be a mindspore.Tensor"),
    ("several outputs", ((LOGITS, LOGITS), LABELS), {}, TypeError, r"input must be a mindspore.Tensor, got tuple; of a network's several outputs pass input alone, for instance outputs\[0\]"),
    ("input missing", (None, LABELS), {}, TypeError, r"input must be a mindspore.Tensor, got NoneType; it is missing"),
    ("input dtype", (tensor((2, 3), "int32"), LABELS), {}, TypeError, r"input must have dtype float16, bfloat16, float32, float64, got int32"),
    ("target dtype", (LOGITS, tensor(2, "int16")), {}, TypeError, r"target must have dtype int32, int64, uint8 for class indices or float32 for probabilities, got int16; class indices are integers: cast them with target.astype\(mindspore.int32\)"),
    ("target float64 beside float32", (LOGITS, tensor((2, 3), "float64")), {}, TypeError, r".*or float32 for probabilities, got float64"),
    ("weight dtype", (LOGITS, LABELS, tensor(3, "float16")), {}, TypeError, r"weight must have dtype float32 beside input of float32, got float16"),
    ("scalar input", (tensor(()), LABELS), {}, ValueError, r"input must have shape \(C\), \(N, C\) or \(N, C, d1…dK\)"),
    ("six spatial dimensions", (tensor((1,) * 8), tensor((1,) * 7, "int32")), {}, ValueError, r".*with K up to 5, got 8 dimensions"),
    ("column of labels", (LOGITS, tensor((2, 1), "int32")), {}, ValueError, r"target of dtype int32 must have 1 dimensions to match input of 2, got 2; .*target.squeeze\(-1\)"),
    ("integer target of input's shape", (LOGITS, tensor((2, 3), "int32")), {}, ValueError, r".*for probabilities pass a float target"),
    ("float labels", (LOGITS, tensor(2)), {}, ValueError, r"target of dtype float32 must have 2 dimensions to match input of 2, got 1; class indices are integers: cast them with target.astype\(mindspore.int32\)"),
    ("float label of one row", (tensor(3), tensor(())), {}, ValueError, r"target of dtype float32 must have 1 dimensions .*target.astype\(mindspore.int32\)"),
    ("bool labels", (LOGITS, tensor(2, "bool")), {}, TypeError, r"target must have dtype .* got bool; .*target.astype\(mindspore.int32\)"),
    ("classes last", (tensor((2, 4, 3)), tensor((2, 4), "int32")), {}, ValueError, r"target must have shape \(2, 3\) to match input \(2, 4, 3\), got \(2, 4\); classes are axis 1: where they are the last axis of input use input.reshape\(-1, input.shape\[-1\]\) and target.reshape\(-1\)"),
    ("classes last, flat labels", (tensor((2, 4, 3)), tensor(8, "int32")), {}, ValueError, r"target of dtype int32 must have 2 dimensions .* got 1; classes are axis 1: .*input.reshape\(-1, input.shape\[-1\]\)"),
    ("rows differ", (LOGITS, tensor(3, "int32")), {}, ValueError, r"target must have shape \(2,\) to match input \(2, 3\), got \(3,\)"),
    ("spatial sizes differ", (tensor((2, 3, 4)), tensor((2, 5), "int32")), {}, ValueError, r"target must have shape \(2, 4\)"),
    ("probabilities differ", (LOGITS, tensor((2, 4))), {}, ValueError, r"target must have shape \(2, 3\) to match input \(2, 3\), got \(2, 4\)"),
    ("weight length", (LOGITS, LABELS, tensor(2)), {}, ValueError, r"weight must have shape \(3,\), one value a class of input \(2, 3\), got \(2,\)"),
    ("weight rank", (LOGITS, LABELS, tensor((1, 3))), {}, ValueError, r"weight must have shape \(C,\), got 2 dimensions"),
    ("no classes", (tensor((2, 0)), LABELS), {}, ValueError, r"input must have at least one class, got shape \(2, 0\)"),
    ("reduction", (LOGITS, LABELS), {"reduction": "avg"}, ValueError, r"reduction must be 'none', 'mean' or 'sum', got 'avg'"),
    ("reduction None", (LOGITS, LABELS), {"reduction": None}, ValueError, r"reduction must be 'none', 'mean' or 'sum', got None"),
    ("smoothing above 1", (LOGITS, LABELS), {"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
    ("smoothing below 0", (LOGITS, LABELS), {"label_smoothing": -0.1}, ValueError, r"label_smoothing must be in \[0, 1\], got -0.1"),
    ("smoothing nan", (LOGITS, LABELS), {"label_smoothing": float("nan")}, ValueError, r"label_smoothing must be finite, got nan"),
    ("smoothing text", (LOGITS, LABELS), {"label_smoothing": "0.1"}, TypeError, r"label_smoothing must be a float, got '0.1' of type str"),
    ("ignore_index float", (LOGITS, LABELS), {"ignore_index": -1.0}, TypeError, r"ignore_index must be an int, got -1.0 of type float"),
    ("ignore_index bool", (LOGITS, LABELS), {"ignore_index": True}, TypeError, r"ignore_index must be an int, got True"),
    ("ignore_index beyond 64 bits", (LOGITS, LABELS), {"ignore_index": 2**63}, ValueError, r"ignore_index must fit 64 bits"),
    ("ignore_index and probabilities", (LOGITS, tensor((2, 3))), {"ignore_index": 0}, ValueError, r"ignore_index must stay negative with a probability target, got 0"),
    ("z_loss", (LOGITS, LABELS), {"z_loss": -1.0}, ValueError, r"z_loss must be at least 0, got -1.0"),
    ("softcap", (LOGITS, LABELS), {"softcap": 0.0}, ValueError, r"softcap must be above 0, got 0.0; use None"),
    ("logit_scale", (LOGITS, LABELS), {"logit_scale": float("inf")}, ValueError, r"logit_scale must be finite, got inf"),
    ("backend", (LOGITS, LABELS), {"backend": "cuda"}, ValueError, r"backend must be 'auto' or one of .*, got 'cuda'"),
    ("backend of another device", (LOGITS, LABELS), {"backend": "ascend"}, ValueError, r"backend 'ascend' cannot be used here: needs device target Ascend"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error[0].replace(" ", "-"))
def test_message(error):
    _, arguments, keywords, kind, text = error
    with pytest.raises(kind, match="cross_entropy: " + text):
        ms_ce.cross_entropy(*arguments, **keywords)


# MindSpore takes no ndarray into a graph, and itself refuses the last.
NOT_COMPILED = {"input", "ignore_index beyond 64 bits"}


@pytest.mark.parametrize(
    "error",
    [error for error in ERRORS if error[0] not in NOT_COMPILED],
    ids=lambda error: error[0].replace(" ", "-"),
)
def test_message_while_compiling(error):
    _, arguments, keywords, kind, text = error

    @ms.jit
    def compiled(*tensors):
        return ms_ce.cross_entropy(*tensors, **keywords)

    with pytest.raises(kind, match="cross_entropy: " + text):
        compiled(*arguments)


CELL_ERRORS = [
    ({"reduction": "avg"}, ValueError, "reduction must be"),
    ({"label_smoothing": 2}, ValueError, r"label_smoothing must be in \[0, 1\], got 2"),
    ({"size_average": -100}, TypeError, "size_average must be True, False or None, got -100"),
    ({"reduce": "mean"}, TypeError, "reduce must be True, False or None, got 'mean'"),
    ({"backend": "gpu"}, ValueError, "backend must be 'auto' or one of"),
]  # fmt: skip


@pytest.mark.parametrize(("keywords", "kind", "text"), CELL_ERRORS)
def test_cells_check_their_options_when_made(keywords, kind, text):
    with pytest.raises(kind, match="CrossEntropyLoss: " + text):
        ms_ce.CrossEntropyLoss(**keywords)


@pytest.mark.parametrize(
    ("weight", "kind", "text"),
    [
        ([1.0, 2.0, 3.0], TypeError, "got list; make it one with mindspore.Tensor"),
        ((1.0, 2.0, 3.0), TypeError, "got tuple"),
        (np.ones(3), TypeError, "got ndarray; make it one with mindspore.Tensor"),
        (tensor(3, "int32"), TypeError, "must have dtype float16, bfloat16, float32, float64, got int32"),
        (tensor((1, 3)), ValueError, r"must have shape \(C,\), got \(1, 3\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss", "LinearCrossEntropyLoss"])
def test_cells_check_their_weight_when_made(name, weight, kind, text):
    sizes = (4, 3) if name == "LinearCrossEntropyLoss" else ()
    with pytest.raises(kind, match=f"{name}: weight .*{text}"):
        getattr(ms_ce, name)(*sizes, weight=weight)


WITH_IGNORE_INDEX = {
    "cross_entropy": ms_ce.cross_entropy,
    "nll_loss": ms_ce.nll_loss,
    "with_stats": lambda *a, **k: ms_ce.cross_entropy_with_stats(*a, **k).loss,
    "value_and_grad": lambda *a, **k: ms_ce.cross_entropy_value_and_grad(*a, **k)[0],
    "CrossEntropyLoss": lambda *a, **k: ms_ce.CrossEntropyLoss(**k)(*a),
    "NLLLoss": lambda *a, **k: ms_ce.NLLLoss(**k)(*a),
    "ops.NLLLoss": lambda *a, **k: ms_ce.ops.NLLLoss(**k)(*a)[0],
    "linear": lambda x, y, **k: ms_ce.linear_cross_entropy(x, tensor((5, 3)), y, **k),
    "linear_with_stats": lambda x, y, **k: (
        ms_ce.linear_cross_entropy_with_stats(x, tensor((5, 3)), y, **k).loss
    ),
    "parallel": lambda x, y, **k: ms_ce.parallel.CrossEntropyLoss(**k)(x, y, ms.ops.ones(2)),
    "reference": lambda x, y, **k: reference.cross_entropy(x.asnumpy(), y.asnumpy(), **k).loss,
    "reference.nll": lambda x, y, **k: reference.nll_loss(x.asnumpy(), y.asnumpy(), **k)[0],
}


@pytest.mark.parametrize("name", WITH_IGNORE_INDEX)
def test_ignore_index_none_is_the_default_everywhere(name):
    target = ms.Tensor(np.array([-100, 2], np.int32))
    given = WITH_IGNORE_INDEX[name](LOGITS, target, ignore_index=None)
    left_out = WITH_IGNORE_INDEX[name](LOGITS, target)
    assert np.isfinite(float(given))
    assert float(given) == float(left_out)


BAD_TARGETS = [
    ("label C", np.array([0, 3], np.int32), {}, r"target 3 at position \(1,\) is outside \[0, 3\)"),
    ("label -1", np.array([-1, 2], np.int64), {}, r"target -1 at position \(0,\) is outside \[0, 3\)"),
    ("uint8 label 255", np.array([0, 255], np.uint8), {}, r"target 255 at position \(1,\)"),
    ("label beyond 32 bits", np.array([0, 2**32]), {}, r"target 4294967296 at position \(1,\)"),
    ("label -100, another ignore_index", np.array([-100, 0]), {"ignore_index": 1}, r"target -100 at"),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_TARGETS, ids=lambda bad: bad[0].replace(" ", "-"))
@pytest.mark.parametrize("loss", [ms_ce.cross_entropy, ms_ce.nll_loss], ids=["ce", "nll"])
def test_bad_target(bad, loss, backend):
    _, target, keywords, text = bad
    with pytest.raises((RuntimeError, ValueError), match=text):
        to_numpy(loss(LOGITS, ms.Tensor(target), backend=backend, **keywords))
    after = to_numpy(ms_ce.cross_entropy(LOGITS, LABELS, backend=backend))
    np.testing.assert_allclose(after, np.log(3), rtol=1e-5)


@pytest.mark.parametrize("bad", BAD_TARGETS, ids=lambda bad: bad[0].replace(" ", "-"))
def test_bad_target_in_a_graph(bad, backend):
    """The kernel raises there too; the composed backend, which cannot, gives nan for that row."""
    _, target, keywords, text = bad

    @ms.jit
    def compiled(logits, target):
        return ms_ce.cross_entropy(logits, target, backend=backend, reduction="none", **keywords)

    if backend == "cpu":
        with pytest.raises(RuntimeError, match=text):
            to_numpy(compiled(LOGITS, ms.Tensor(target)))
        return
    rows = to_numpy(compiled(LOGITS, ms.Tensor(target)))
    bad_row = int(np.argmax((target < 0) | (target > 2)))
    assert np.isnan(rows[bad_row])
    other = slice(1 - bad_row, 2 - bad_row)
    expected = reference.cross_entropy(LOGITS.asnumpy()[other], target[other], **keywords).loss
    np.testing.assert_allclose(rows[1 - bad_row], expected, rtol=1e-5)


def test_position_in_an_image(backend):
    target = np.zeros((2, 4, 5), np.int32)
    target[1, 2, 3] = 7
    with pytest.raises((RuntimeError, ValueError), match=r"target 7 at position \(1, 2, 3\)"):
        to_numpy(ms_ce.cross_entropy(tensor((2, 3, 4, 5)), ms.Tensor(target), backend=backend))


def test_bad_target_in_the_gradient(backend):
    def loss(logits, target):
        return ms_ce.cross_entropy(logits, target, backend=backend)

    with pytest.raises((RuntimeError, ValueError), match="target 9 at"):
        to_numpy(ms.grad(loss)(LOGITS, ms.Tensor(np.array([0, 9], np.int32))))


def test_float_labels_of_the_sharded_loss():
    with pytest.raises(
        ValueError, match=r"label of dtype float32 .*target.astype\(mindspore.int32\)"
    ):
        ms_ce.parallel.CrossEntropyLoss()(LOGITS, tensor(2), ms.ops.ones(2))
