"""linear_cross_entropy and its Cell against the float64 reference, in every mode and dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

import ms_ce
from ms_ce import reference
from ms_ce.ops import linear_cpu
from tests.cases import round_to
from tests.integration.conftest import DTYPES, MODES, to_numpy, to_tensor

ROW_BYTES = 4  # of one float32 logit: chunk_bytes below are so many rows of so many classes


class Case(NamedTuple):
    """One call; `chunk_rows` cuts it into several chunks, the last one shorter."""

    name: str
    lead: tuple[int, ...]
    features: int = 7
    classes: int = 65
    bias: bool = True
    probabilities: bool = False
    weight: bool = False
    ignored: float = 0.0
    label_dtype: str = "int32"
    chunk_rows: int = 4
    shift: bool = False
    options: dict[str, Any] = {}

    def inputs(self, dtype: str) -> dict[str, np.ndarray | None]:
        random = np.random.default_rng(7)
        if self.probabilities:
            target = random.random((*self.lead, self.classes))
            target = round_to(target / target.sum(-1, keepdims=True), dtype)
        else:
            target = np.array(random.integers(0, self.classes, self.lead))
            ignore_index = self.options.get("ignore_index", -100)
            target = np.where(random.random(self.lead) < self.ignored, ignore_index, target)
            target = target.astype(self.label_dtype)
        none = self.options.get("reduction") == "none"
        rows = (*self.lead[:-1], self.lead[-1] - 1) if self.shift else self.lead
        shape = (self.classes, self.features)
        return {
            "input": round_to(random.normal(size=(*self.lead, self.features)), dtype),
            "linear_weight": round_to(random.normal(size=shape), dtype),
            "target": target,
            "linear_bias": round_to(random.normal(size=self.classes), dtype) if self.bias else None,
            "weight": round_to(random.random(self.classes) + 0.25, dtype) if self.weight else None,
            "grad_loss": round_to(random.normal(size=rows if none else ()), dtype),
        }

    def extras(self) -> dict[str, Any]:
        return {
            "chunk_bytes": self.chunk_rows * self.classes * ROW_BYTES,
            "shift": self.shift,
            **self.options,
        }


NONE, SUM = {"reduction": "none"}, {"reduction": "sum"}
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 4.0, "logit_scale": 1.5}

CASES = (
    Case("plain", (13,), bias=False),
    Case("one chunk", (13,), chunk_rows=100),
    Case("one row", (), chunk_rows=1),
    Case("leading shape", (2, 3, 5), options=SUM),
    Case("none", (4, 5), options=NONE),
    Case("few classes", (70,), classes=5),
    Case("many classes", (9,), classes=1300, features=33),
    Case("many features", (9,), features=700),
    Case("ignored", (4, 8), ignored=0.5, label_dtype="int64"),
    Case("ignored none", (4, 8), ignored=0.5, options=NONE),
    Case(
        "ignored sum", (33,), ignored=0.9, label_dtype="uint8", options={"ignore_index": 255, **SUM}
    ),
    Case("weight", (21,), weight=True, ignored=0.3),
    Case("smoothing", (21,), weight=True, ignored=0.3, options={"label_smoothing": 0.2}),
    Case("z-loss", (21,), options={"z_loss": 0.05}),
    Case("softcap", (21,), options={"softcap": 3.0}),
    Case("logit scale", (21,), options={"logit_scale": 0.3, **NONE}),
    Case("probabilities", (4, 5), probabilities=True, weight=True),
    Case("probabilities none", (11,), probabilities=True, options={"label_smoothing": 0.1, **NONE}),
    Case("shift", (3, 6), shift=True, ignored=0.2),
    Case("shift none", (2, 2, 5), shift=True, ignored=0.2, options=NONE),
    Case("shift probabilities", (3, 6), shift=True, probabilities=True),
    Case("everything", (3, 9), weight=True, ignored=0.3, shift=True, options=EVERYTHING),
    Case("everything probabilities", (17,), weight=True, probabilities=True, options=EVERYTHING),
)
COMPILED = ("plain", "none", "ignored", "everything", "everything probabilities", "shift none")


def _tensors(data, dtype):
    names = ("input", "linear_weight", "target", "linear_bias", "weight", "grad_loss")
    return [to_tensor(data[name], dtype) for name in names]


def _reference(case, data):
    arguments = [
        data[name] for name in ("input", "linear_weight", "target", "linear_bias", "weight")
    ]
    loss = reference.linear_cross_entropy(*arguments, shift=case.shift, **case.options).loss
    gradients = reference.linear_cross_entropy_grad(
        *arguments, shift=case.shift, **case.options, grad_loss=data["grad_loss"]
    )
    return [loss, *gradients]


# float32: sums of up to 1300 products of unit size, so 1e-5 of the largest result. The 16-bit dtypes add the one
# rounding of the result, and bfloat16 that of the logits' gradient (2^-8 of each of its terms).
RELATIVE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
# MindSpore's CPU exp and tanh: see tests/tolerances.py.
PRIMITIVES = 1e-4


def _check(actual, expected, case, backend, dtype, what):
    actual = to_numpy(actual).astype(np.float64)
    assert actual.shape == np.shape(expected), f"{what}: shape {actual.shape}"
    bound = RELATIVE[dtype] + (PRIMITIVES if backend != "cpu" else 0.0)
    allowed = bound * max(np.abs(expected).max(initial=0.0), 1e-3)
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= allowed, f"{case.name}, {what}: off by {error:.3g}, {allowed:.3g} allowed"


def _function(case, backend, present, gradient_in_forward):
    options = {**case.extras(), "backend": backend, "gradient_in_forward": gradient_in_forward}

    if present == (True, True):

        def loss(input, linear_weight, target, linear_bias, weight):
            return ms_ce.linear_cross_entropy(
                input, linear_weight, target, linear_bias, weight, **options
            )

    elif present == (True, False):

        def loss(input, linear_weight, target, linear_bias):
            return ms_ce.linear_cross_entropy(input, linear_weight, target, linear_bias, **options)

    else:

        def loss(input, linear_weight, target):
            return ms_ce.linear_cross_entropy(input, linear_weight, target, **options)

    return loss


def _run_case(case, dtype, backend, run, gradient_in_forward="auto"):
    data = case.inputs(dtype)
    *tensors, upstream = _tensors(data, dtype)
    present = (case.bias, case.weight)
    arguments = [tensor for tensor in tensors if tensor is not None]
    function = _function(case, backend, present, gradient_in_forward)

    def scaled(upstream, *arguments):
        return function(*arguments) * upstream

    expected = _reference(case, data)
    actual = run(function, *arguments)
    assert actual.dtype == getattr(ms, dtype)
    _check(actual, expected[0], case, backend, dtype, "loss")
    positions = (1, 2, 4) if case.bias else (1, 2)
    gradients = run(ms.grad(scaled, positions), upstream, *arguments)
    names = ("gradient of input", "gradient of linear_weight", "gradient of linear_bias")
    for name, gradient, value in zip(names, gradients, expected[1:], strict=False):
        _check(gradient, value, case, backend, dtype, name)


def _combinations():
    for case in CASES:
        for dtype in DTYPES:
            for backend in ("cpu", "composed"):
                for mode in MODES:
                    if backend == "composed" and case.name in ("many classes", "many features"):
                        continue
                    compiled = case.name in COMPILED and dtype in ("float32", "bfloat16")
                    if mode == "pynative" or (compiled and (mode == "jit" or dtype == "float32")):
                        name = f"{case.name}-{dtype}-{backend}-{mode}".replace(" ", "-")
                        yield pytest.param(case, dtype, backend, mode, id=name)


@pytest.mark.parametrize(
    ("case", "dtype", "backend", "run"), list(_combinations()), indirect=["run"]
)
def test_loss_and_gradients(case, dtype, backend, run):
    _run_case(case, dtype, backend, run)


@pytest.mark.parametrize("gradient_in_forward", (True, False))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ("plain", "weight", "everything"))
def test_gradient_in_forward(name, dtype, gradient_in_forward, run):
    case = next(case for case in CASES if case.name == name)
    _run_case(case, dtype, "cpu", run, gradient_in_forward)


STATS_CASES = ("ignored", "none", "shift none", "everything", "everything probabilities")


@pytest.mark.parametrize("name", STATS_CASES)
def test_stats(name, backend, run):
    case = next(case for case in CASES if case.name == name)
    data = case.inputs("float32")
    *tensors, _upstream = _tensors(data, "float32")
    options = {**case.extras(), "backend": backend}

    def stats(input, linear_weight, target, linear_bias):
        return tuple(
            ms_ce.linear_cross_entropy_with_stats(
                input, linear_weight, target, linear_bias, tensors[4], **options
            )
        )

    arguments = [
        data[name] for name in ("input", "linear_weight", "target", "linear_bias", "weight")
    ]
    expected = reference.linear_cross_entropy(*arguments, shift=case.shift, **case.options)
    for field, actual in zip(expected._fields, run(stats, *tensors[:4]), strict=True):
        _check(actual, getattr(expected, field), case, backend, "float32", field)


def test_gradients_of_stats_flow_through_loss_and_z_loss(backend, run):
    case = next(case for case in CASES if case.name == "z-loss")
    data = case.inputs("float32")
    *tensors, _ = _tensors(data, "float32")
    options = {**case.extras(), "backend": backend}

    def combined(input, linear_weight, target, linear_bias):
        stats = ms_ce.linear_cross_entropy_with_stats(
            input, linear_weight, target, linear_bias, **options
        )
        return 2 * stats[0] + 3 * stats[3] + 5 * stats[5] + 7 * stats[2].sum()

    arguments = [data[name] for name in ("input", "linear_weight", "target", "linear_bias")]
    plain = reference.linear_cross_entropy_grad(*arguments)
    both = reference.linear_cross_entropy_grad(*arguments, **case.options)
    computed = run(ms.grad(combined, (0, 1, 3)), *tensors[:4])
    for actual, of_loss, of_both in zip(computed, plain, both, strict=True):
        _check(actual, 5 * of_both - 3 * of_loss, case, backend, "float32", "gradient")


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
        for actual, wanted in zip(gradients, expected, strict=False):
            np.testing.assert_allclose(actual.asnumpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient_in_forward", ("auto", True))
def test_jacobian(gradient_in_forward):
    """Every upstream gets its own gradient; the forward pass's own can follow only one, and says so."""
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

    if gradient_in_forward is True:
        with pytest.raises(ValueError, match="OneHot"):
            ms.jacrev(losses)(hidden).asnumpy()
        return
    once = reference.linear_cross_entropy_grad(hidden.asnumpy(), linear_weight, target).input
    actual = ms.jacrev(losses)(hidden).asnumpy()
    np.testing.assert_allclose(actual, np.stack([3 * once, 5 * once]), rtol=1e-5)


def test_gradients_are_scaled_once():
    """They lie in the forward pass's memory: the first upstream scales them, another one raises."""
    grads = [Tensor(np.ones(shape, np.float32)) for shape in ((2, 3), (4, 3), ())]
    applied = Tensor(np.ones((), np.float64))
    for _ in range(2):
        linear_cpu._rescale(Tensor(np.float32(3.0)), *grads, applied).asnumpy()
        assert [float(grad.asnumpy().max()) for grad in grads] == [3.0, 3.0, 3.0]
    with pytest.raises(RuntimeError, match="gradient_in_forward must be False"):
        linear_cpu._rescale(Tensor(np.float32(5.0)), *grads, applied).asnumpy()


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
    *tensors, _ = _tensors(case.inputs("float32"), "float32")
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
    expected = reference.linear_cross_entropy_grad(hidden, linear_weight[kept], place[target])
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
    if rows == 0 and reduction == "none":
        return  # MindSpore sums no empty tensor
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
