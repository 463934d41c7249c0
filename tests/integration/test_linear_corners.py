"""The linear loss's Cell, its limits and its errors."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

import ms_ce
from ms_ce import reference
from ms_ce.ops.cpu import linear_operators
from tests.integration.linear_cases import CASES, ROW_BYTES, loop_in_a_bprop, tensors_of


class _Head(nn.Cell):
    """A linear loss below one more layer, as a model has it."""

    def __init__(self, **options):
        super().__init__()
        self.scale = Parameter(Tensor(np.full(6, 0.5, np.float32)), name="scale")
        self.loss = ms_ce.LinearCrossEntropyLoss(
            6, 40, bias=True, chunk_bytes=40 * 4 * 3, **options
        )

    def construct(self, hidden, target):
        return self.loss(hidden * self.scale, target)


@pytest.mark.parametrize("training", (False, True))
def test_cell_trains_its_parameters(training, run):
    random = np.random.default_rng(3)
    hidden = random.normal(size=(4, 5, 6)).astype(np.float32)
    target = random.integers(0, 40, (4, 5)).astype(np.int32)
    head = _Head(label_smoothing=0.1)
    head.set_train(training)
    parameters = head.trainable_params()
    assert sorted(parameter.name for parameter in parameters) == [
        "loss.linear_bias",
        "loss.linear_weight",
        "scale",
    ]
    by_name = {parameter.name: parameter.asnumpy() for parameter in parameters}
    loss, gradients = run(ms.value_and_grad(head, None, parameters), Tensor(hidden), Tensor(target))
    arguments = (hidden * 0.5, by_name["loss.linear_weight"], target, by_name["loss.linear_bias"])
    expected = reference.linear_cross_entropy_grad(*arguments, label_smoothing=0.1)
    value = reference.linear_cross_entropy(*arguments, label_smoothing=0.1).loss
    np.testing.assert_allclose(float(loss), value, rtol=1e-5)
    wanted = {
        "scale": (expected.input * hidden).sum((0, 1)),
        "loss.linear_weight": expected.linear_weight,
        "loss.linear_bias": expected.linear_bias,
    }
    for parameter, gradient in zip(parameters, gradients, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), wanted[parameter.name], rtol=1e-5, atol=1e-6)


def test_tied_weights(run):
    """One table is embedding and output layer: both gradients arrive in it."""
    random = np.random.default_rng(4)
    table = random.normal(size=(30, 5)).astype(np.float32)
    tokens = random.integers(0, 30, (3, 7)).astype(np.int32)

    class Tied(nn.Cell):
        def __init__(self):
            super().__init__()
            self.embedding = Parameter(Tensor(table), name="embedding")
            self.loss = ms_ce.LinearCrossEntropyLoss(5, self.embedding, shift=True)

        def construct(self, tokens):
            return self.loss(ms.ops.gather(self.embedding, tokens, 0), tokens)

    network = Tied()
    network.set_train()
    assert [parameter.name for parameter in network.trainable_params()] == ["embedding"]
    gradient = run(ms.grad(network, None, network.trainable_params()), Tensor(tokens))
    if isinstance(gradient, tuple):
        (gradient,) = gradient
    hidden = table[tokens]
    expected = reference.linear_cross_entropy_grad(hidden, table, tokens, shift=True)
    whole = expected.linear_weight.copy()
    np.add.at(whole, tokens.reshape(-1), expected.input.reshape(-1, 5))
    np.testing.assert_allclose(gradient.asnumpy(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_dynamic_number_of_rows(gradient_in_forward):
    """One compilation serves every number of rows."""
    random = np.random.default_rng(5)
    linear_weight = random.normal(size=(20, 4)).astype(np.float32)

    @ms.jit
    def compute(hidden, linear_weight, target):
        def loss(hidden, linear_weight):
            return ms_ce.linear_cross_entropy(
                hidden,
                linear_weight,
                target,
                chunk_bytes=20 * 4 * 3,
                gradient_in_forward=gradient_in_forward,
            )

        return ms.value_and_grad(loss, (0, 1))(hidden, linear_weight)

    for rows in (3, 8):
        hidden = random.normal(size=(rows, 4)).astype(np.float32)
        target = random.integers(0, 20, rows).astype(np.int32)
        loss, gradients = compute(Tensor(hidden), Tensor(linear_weight), Tensor(target))
        expected = reference.linear_cross_entropy_grad(hidden, linear_weight, target)
        value = reference.linear_cross_entropy(hidden, linear_weight, target).loss
        np.testing.assert_allclose(float(loss), value, rtol=1e-5)
        for actual, wanted in zip(gradients, expected[:2], strict=True):
            np.testing.assert_allclose(actual.asnumpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient_in_forward", ("auto", True))
def test_jacobian(gradient_in_forward):
    """Every upstream gets its own gradient, whichever pass makes it."""
    linear_weight, target = np.eye(2, dtype=np.float32), np.zeros(3, np.int32)
    hidden = Tensor(np.ones((3, 2), np.float32))

    def losses(hidden):
        loss = ms_ce.linear_cross_entropy(
            hidden,
            Tensor(linear_weight),
            Tensor(target),
            gradient_in_forward=gradient_in_forward,
        )
        return loss * Tensor([3.0, 5.0])

    once = reference.linear_cross_entropy_grad(hidden.asnumpy(), linear_weight, target).input
    actual = ms.jacrev(losses)(hidden).asnumpy()
    np.testing.assert_allclose(actual, np.stack([3 * once, 5 * once]), rtol=1e-5)


def test_gradients_are_scaled_once():
    """In PyNative they lie in the forward pass's memory: the first upstream scales them, another one raises."""
    grads = [Tensor(np.ones(shape, np.float32)) for shape in ((2, 3), (4, 3), ())]
    applied = Tensor(np.full((), np.nan))
    for _ in range(2):
        linear_operators.rescale(Tensor(np.float32(3.0)), *grads, applied).asnumpy()
        assert [float(grad.asnumpy().max()) for grad in grads] == [3.0, 3.0, 3.0]
    with pytest.raises(RuntimeError, match="gradient_in_forward must be False"):
        linear_operators.rescale(Tensor(np.float32(5.0)), *grads, applied).asnumpy()


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_second_derivative_raises(gradient_in_forward):
    hidden, linear_weight = Tensor(np.ones((3, 2), np.float32)), Tensor(np.eye(2, dtype=np.float32))
    target = Tensor(np.zeros(3, np.int32))

    def loss(hidden):
        return ms_ce.linear_cross_entropy(
            hidden, linear_weight, target, gradient_in_forward=gradient_in_forward
        )

    def slope(hidden):
        return (ms.grad(loss)(hidden) ** 2).sum()

    with pytest.raises(NotImplementedError, match="composed"):
        ms.grad(slope)(hidden).asnumpy()


def test_k_dimensional_weight(backend):
    """torch's form (C, d1, in_features), computed through the logits."""
    random = np.random.default_rng(6)
    hidden = random.normal(size=(4, 3)).astype(np.float32)
    linear_weight = random.normal(size=(5, 2, 3)).astype(np.float32)
    bias = random.normal(size=(5, 2)).astype(np.float32)
    target = random.integers(0, 5, (4, 2)).astype(np.int32)
    actual = ms_ce.linear_cross_entropy(
        *map(Tensor, (hidden, linear_weight, target, bias)), backend=backend, reduction="none"
    )
    logits = np.einsum("nh,cdh->ncd", hidden.astype(np.float64), linear_weight) + bias
    expected = reference.cross_entropy(logits, target, reduction="none").loss
    np.testing.assert_allclose(actual.asnumpy(), expected, rtol=2e-5, atol=1e-6)


def test_chunks_do_not_change_rows():
    """A row's loss does not depend on the chunk it is in."""
    case = next(case for case in CASES if case.name == "none")
    *tensors, _ = tensors_of(case.inputs("float32"), "float32")
    whole = ms_ce.linear_cross_entropy(*tensors[:4], reduction="none").asnumpy()
    for rows in (1, 3, 20):
        chunked = ms_ce.linear_cross_entropy(
            *tensors[:4], reduction="none", chunk_bytes=rows * case.classes * ROW_BYTES
        )
        np.testing.assert_allclose(chunked.asnumpy(), whole, rtol=1e-6)


def test_bias_of_minus_infinity_leaves_a_class_out(run):
    random = np.random.default_rng(8)
    hidden = random.normal(size=(6, 4)).astype(np.float32)
    linear_weight = random.normal(size=(70, 4)).astype(np.float32)
    bias = np.where(np.arange(70) % 3 == 0, -np.inf, 0.0).astype(np.float32)
    target = (1 + 3 * random.integers(0, 20, 6)).astype(np.int32)

    def loss(hidden, linear_weight, target, bias):
        return ms_ce.linear_cross_entropy(hidden, linear_weight, target, bias)

    computed = run(
        ms.value_and_grad(loss, (0, 1)), *map(Tensor, (hidden, linear_weight, target, bias))
    )
    kept = np.isfinite(bias)
    place = np.cumsum(kept) - 1
    without = (hidden, linear_weight[kept], place[target])
    loss = reference.linear_cross_entropy(*without).loss
    np.testing.assert_allclose(computed[0].asnumpy(), loss, rtol=1e-5)
    expected = reference.linear_cross_entropy_grad(*without)
    np.testing.assert_allclose(computed[1][0].asnumpy(), expected.input, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        computed[1][1].asnumpy()[kept], expected.linear_weight, rtol=1e-5, atol=1e-6
    )
    assert not computed[1][1].asnumpy()[~kept].any()


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("rows", (0, 4))
def test_nothing_counts(rows, reduction, run):
    """As the plain loss: nan for a mean over nothing, gradients of 0."""
    hidden = Tensor(np.ones((rows, 3), np.float32))
    linear_weight = Tensor(np.ones((5, 3), np.float32))
    target = Tensor(np.full(rows, -100, np.int32))

    def loss(hidden, linear_weight, target):
        return ms_ce.linear_cross_entropy(hidden, linear_weight, target, reduction=reduction)

    def total(hidden, linear_weight, target):
        return loss(hidden, linear_weight, target).sum()

    value = run(loss, hidden, linear_weight, target).asnumpy()
    if reduction == "mean":
        assert np.isnan(value)
    else:
        assert value.shape == ((rows,) if reduction == "none" else ())
        assert not value.any()
    for gradient in run(ms.grad(total, (0, 1)), hidden, linear_weight, target):
        assert not gradient.asnumpy().any()


HIDDEN, TABLE, LABELS = (
    np.ones((2, 3), np.float32),
    np.ones((5, 3), np.float32),
    np.zeros(2, np.int32),
)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    (
        (
            (HIDDEN, TABLE[:, :2], LABELS),
            {},
            ValueError,
            r"linear_weight must have shape \(num_classes, 3\)",
        ),
        ((HIDDEN, TABLE[0], LABELS), {}, ValueError, "linear_weight must have shape"),
        (
            (HIDDEN, TABLE.astype(np.float64), LABELS),
            {},
            TypeError,
            "linear_weight must have input's dtype",
        ),
        ((HIDDEN, TABLE, LABELS[:1]), {}, ValueError, r"target must have shape \(2,\)"),
        (
            (HIDDEN, TABLE, LABELS[:, None]),
            {},
            ValueError,
            "target of class indices must have 1 dim",
        ),
        (
            (HIDDEN, TABLE, LABELS, np.ones(4, np.float32)),
            {},
            ValueError,
            r"linear_bias must have shape \(5,\)",
        ),
        (
            (HIDDEN, TABLE, LABELS, None, np.ones(4, np.float32)),
            {},
            ValueError,
            r"weight must have shape \(5,\)",
        ),
        ((HIDDEN, TABLE, LABELS), {"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1"),
        ((HIDDEN, TABLE, LABELS), {"chunk_bytes": 1.5}, TypeError, "chunk_bytes must be an int"),
        ((HIDDEN, TABLE, LABELS), {"shift": 1}, TypeError, "shift must be True or False"),
        ((HIDDEN[0], TABLE, LABELS[0]), {"shift": True}, ValueError, "input must have shape"),
        (
            (HIDDEN, TABLE, LABELS),
            {"gradient_in_forward": "no"},
            ValueError,
            "gradient_in_forward must be",
        ),
        (
            (HIDDEN, TABLE, LABELS),
            {"label_smoothing": 2.0},
            ValueError,
            "label_smoothing must be in",
        ),
        ((HIDDEN, TABLE, LABELS), {"backend": "gpu"}, ValueError, "backend must be 'auto'"),
        ((HIDDEN, "table", LABELS), {}, TypeError, "linear_weight must be a mindspore.Tensor"),
        (
            (HIDDEN, TABLE, LABELS.astype(np.float32)),
            {},
            ValueError,
            r"got 1; class indices are integers: cast them with target.astype\(mindspore.int32\)",
        ),
    ),
)
def test_errors(arguments, options, error, message):
    tensors = [Tensor(x) if isinstance(x, (np.ndarray, np.generic)) else x for x in arguments]
    with pytest.raises(error, match=message):
        ms_ce.linear_cross_entropy(*tensors, **options)


def test_target_out_of_range_names_its_position(run):
    hidden = Tensor(np.ones((2, 3, 4), np.float32))
    target = Tensor(np.array([[0, 1, 2], [3, 9, 1]], np.int32))

    def loss(hidden, target):
        return ms_ce.linear_cross_entropy(hidden, Tensor(np.ones((5, 4), np.float32)), target)

    with pytest.raises(RuntimeError, match=r"target 9 at position \(1, 1\) is outside \[0, 5\)"):
        run(loss, hidden, target).asnumpy()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ((0, 5), ValueError, "in_features must be at least 1"),
        ((4, "5"), TypeError, "num_classes must be an int or a Parameter"),
        ((4, 5, None), TypeError, "bias must be True or False"),
        (
            (4, Parameter(Tensor(TABLE), name="t")),
            ValueError,
            r"must have shape \(num_classes, 4\)",
        ),
    ),
)
def test_cell_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        ms_ce.LinearCrossEntropyLoss(*arguments)


@loop_in_a_bprop(run="jit", reduction="none", chunk_bytes=2 * 4 * 4)
@loop_in_a_bprop(run="graph", reduction="none", chunk_bytes=2 * 4 * 4)
@pytest.mark.parametrize("reduction", ("none", "sum"))
@pytest.mark.parametrize("chunk_bytes", (None, 2 * 4 * 4))
@pytest.mark.parametrize("bias", ((np.nan, 0, 0, 0), (np.inf, 0, 0, 0), (-np.inf,) * 4), ids=str)
def test_no_probabilities_make_a_number_of_rows_without_a_softmax(
    bias, chunk_bytes, reduction, backend, run
):
    """Neither that are all 0, nor that cancel."""
    random = np.random.default_rng(0)
    hidden, table = (random.normal(size=(n, 3)).astype(np.float32) for n in (5, 4))
    target = np.zeros((5, 4), np.float32)
    target[1:, 1], target[1:, 2] = 1.0, -1.0

    def loss(hidden, table, target, bias):
        options = {"reduction": reduction, "backend": backend, "chunk_bytes": chunk_bytes}
        return ms_ce.linear_cross_entropy(hidden, table, target, bias, **options)

    def total(*tensors):
        return loss(*tensors).sum()

    tensors = [Tensor(each) for each in (hidden, table, target, np.array(bias, np.float32))]
    loop = {"composed_loop": backend == "composed"}
    assert np.isnan(run(loss, *tensors, **loop).asnumpy()).all()
    for gradient in run(ms.grad(total, (0, 1, 3)), *tensors, **loop):
        assert np.isnan(gradient.asnumpy()).all()


@pytest.mark.parametrize("gradient_in_forward", (False, True))
@pytest.mark.parametrize("reduction", ("none", "mean"))
@pytest.mark.parametrize("chunk_bytes", (None, 2 * 4 * 8))
def test_what_hidden_states_of_ignored_rows_hold_reaches_no_gradient(
    chunk_bytes, reduction, gradient_in_forward, backend
):
    random = np.random.default_rng(0)
    hidden, table = random.normal(size=(5, 3)), random.normal(size=(4, 3))
    target = np.array([0, -100, 1, -100, 0], np.int32)
    spoilt = hidden.copy()
    spoilt[1], spoilt[3] = np.nan, np.inf
    options = {"reduction": reduction}

    def loss(hidden, table, target):
        value = ms_ce.linear_cross_entropy(
            hidden,
            table,
            target,
            backend=backend,
            chunk_bytes=chunk_bytes,
            gradient_in_forward=gradient_in_forward,
            **options,
        )
        return value.sum()

    of_hidden, of_table = ms.grad(loss, (0, 1))(Tensor(spoilt), Tensor(table), Tensor(target))
    upstream = np.ones(5) if reduction == "none" else 1.0
    expected = reference.linear_cross_entropy_grad(
        hidden, table, target, grad_loss=upstream, **options
    )
    np.testing.assert_allclose(of_hidden.asnumpy(), expected.input, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(of_table.asnumpy(), expected.linear_weight, rtol=1e-12, atol=1e-12)
