"""The gradient that the forward pass makes: the values of the backward pass, whatever upstream arrives."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

import ms_ce
from ms_ce import reference
from ms_ce.ops import cpu
from ms_ce.ops.cpu import losses
from tests.integration.conftest import DTYPES, times, to_numpy, to_tensor
from tests.support.cases import CASES
from tests.support.tolerances import check_close, tolerance

REDUCED = [case for case in CASES if case.options.get("reduction") != "none"]
EVERY_DTYPE = (
    "plain",
    "weight",
    "smoothing weight ignored",
    "everything",
    "everything probabilities",
)
SMALL, LARGE = (5, 7), (40, 30000)


def _combinations():
    for case in REDUCED:
        for dtype in DTYPES:
            for mode in ("jit", "graph"):
                if dtype == "float32" or case.name in EVERY_DTYPE:
                    yield pytest.param(case, dtype, mode, id=f"{case.name}-{dtype}-{mode}")


@pytest.mark.parametrize(("case", "dtype", "run"), list(_combinations()), indirect=["run"])
@pytest.mark.parametrize("upstream", (1.0, 3.0))
def test_gradients(case, dtype, run, upstream):
    data = case.inputs(dtype)
    weight = to_tensor(data["weight"], dtype)
    factor = Tensor(upstream, ms.float32)

    def loss(logits, target):
        value = ms_ce.cross_entropy(
            logits, target, weight, backend="cpu", gradient_in_forward=True, **case.options
        )
        return times(value, factor)

    tensors = [to_tensor(data[name], dtype) for name in ("logits", "target")]
    positions = (0,) if np.issubdtype(data["target"].dtype, np.integer) else (0, 1)
    value, gradients = run(ms.value_and_grad(loss, positions), *tensors)
    arguments = (data["logits"], data["target"], data["weight"])
    expected = reference.cross_entropy(*arguments, **case.options).loss * upstream
    bound = tolerance("cpu", dtype, "softcap" in case.options)
    check_close(to_numpy(value), expected, dtype, bound, "loss")
    references = reference.cross_entropy_grad(*arguments, **case.options, grad_loss=upstream)
    bound = bound._replace(absolute=bound.absolute * upstream)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for gradient, wanted in zip(gradients, references, strict=False):
        check_close(to_numpy(gradient), wanted, dtype, bound, "gradient")


@pytest.mark.parametrize("upstream", (1.0, 3.0))
@pytest.mark.parametrize("name", ("plain", "everything", "probabilities smoothing weight"))
def test_second_derivative(name, run, upstream):
    """To MindSpore the gradient comes from the forward pass, and would be a constant."""
    case = next(case for case in REDUCED if case.name == name)
    data = case.inputs("float32")
    weight = to_tensor(data["weight"], "float32")
    direction = np.random.default_rng(1).normal(size=case.shape).astype(np.float32)

    def loss(logits, target):
        return upstream * ms_ce.cross_entropy(
            logits, target, weight, gradient_in_forward=True, **case.options
        )

    def slope(logits, target, direction):
        return (ms.grad(loss)(logits, target) * direction).sum()

    arrays = (data["logits"], data["target"], direction)
    actual = run(ms.grad(slope), *(to_tensor(array, "float32") for array in arrays))
    arguments = (direction, data["logits"], data["target"], data["weight"])
    expected = reference.cross_entropy_hvp(*arguments, **case.options, grad_loss=upstream)
    bound = tolerance("cpu", "float32", "softcap" in case.options)
    check_close(to_numpy(actual), expected, "float32", bound, name)


def _tensors(shape):
    random = np.random.default_rng(0)
    return Tensor(random.normal(size=shape).astype(np.float32)), Tensor(
        random.integers(0, shape[1], shape[0])
    )


class _Loss(nn.Cell):
    """The gradient of a loss in a compiled graph."""

    def __init__(self, **options):
        super().__init__()
        self.loss = ms_ce.CrossEntropyLoss(backend="cpu", **options)

    def construct(self, logits, target):
        return self.loss(logits, target)


@pytest.mark.parametrize("shape", (SMALL, LARGE))
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("choice", ("auto", True, False))
def test_choice(shape, training, choice, monkeypatch):
    logits, target = _tensors(shape)
    network = _Loss(gradient_in_forward=choice).set_train(training)
    seen, original = [], cpu.cross_entropy

    @constexpr
    def noted(in_forward):
        seen.append(in_forward)
        return in_forward

    def cross_entropy(logits, target, weight, row_weight, options, in_forward):
        return original(logits, target, weight, row_weight, options, noted(in_forward))

    monkeypatch.setattr(cpu, "cross_entropy", cross_entropy)
    ms.jit(ms.grad(network))(logits, target)
    assert set(seen) == {choice if choice != "auto" else training and shape == LARGE}


def _alone(loss):
    return loss


def _beside_another(loss):
    def total(logits, target):
        return loss(logits, target) + 2.0

    return total


def _in_float32(loss):
    def widened(logits, target):
        return loss(logits.astype(ms.float16), target).astype(ms.float32)

    return widened


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", (_alone, _beside_another, _in_float32))
def test_made_once(dtype, place, monkeypatch):
    """A loss that is minimised as it is needs no backward operation."""
    monkeypatch.setattr(losses, "_backward", None)
    logits, target = _tensors(SMALL)
    loss = place(ms_ce.CrossEntropyLoss(backend="cpu", gradient_in_forward=True))
    gradient = ms.jit(ms.value_and_grad(loss))(to_tensor(logits.asnumpy(), dtype), target)[1]
    rounded = to_numpy(to_tensor(logits.asnumpy(), dtype))
    wanted = reference.cross_entropy_grad(rounded, target.asnumpy()).logits
    narrow = dtype if place is not _in_float32 or dtype == "bfloat16" else "float16"
    check_close(to_numpy(gradient), wanted, narrow, tolerance("cpu", narrow, False), "gradient")


@pytest.mark.parametrize("scale", (1.0, 1024.0))
def test_training_step(scale, graph_mode):
    """A network in training, with and without a loss scale, takes the step that it takes without this option."""
    logits, target = _tensors(LARGE)
    steps = []
    for choice in ("auto", False):
        table = ms.Parameter(logits.copy(), name="logits")

        class Network(nn.Cell):
            def __init__(self, table, choice):
                super().__init__()
                self.table = table
                self.loss = ms_ce.CrossEntropyLoss(gradient_in_forward=choice)

            def construct(self, target):
                return self.loss(self.table, target)

        network = Network(table, choice)
        optimizer = nn.SGD([table], learning_rate=4.0 / scale)
        step = nn.TrainOneStepCell(network, optimizer, sens=scale).set_train()
        for _ in range(2):
            loss = step(target)
        steps.append((float(loss), table.asnumpy()))
    (loss, table), (expected_loss, expected_table) = steps
    assert abs(loss - expected_loss) < 1e-6
    np.testing.assert_allclose(table, expected_table, rtol=1e-6, atol=1e-7)
    assert ops.abs(Tensor(table) - logits).max() > 0.01


def test_not_shared():
    """`cross_entropy_value_and_grad` is the same operation on the same logits, and is not differentiated."""
    logits, target = _tensors(SMALL)

    @ms.jit
    def both(logits):
        def loss(logits):
            return 3.0 * ms_ce.cross_entropy(logits, target, gradient_in_forward=True)

        return ms_ce.cross_entropy_value_and_grad(logits, target)[1], ms.grad(loss)(logits)

    once = reference.cross_entropy_grad(logits.asnumpy(), target.asnumpy()).logits
    for gradient, upstream in zip(both(logits), (1.0, 3.0), strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), upstream * once, rtol=1e-5, atol=1e-7)


class _Gradient(nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.gradient = ms.grad(network)

    def construct(self, logits, target):
        return self.gradient(logits, target)


@pytest.mark.parametrize("choice", ("auto", True))
def test_dynamic_shape(choice, graph_mode):
    """A graph that does not know the number of logits goes by what it was told."""
    network = _Gradient(_Loss(gradient_in_forward=choice).set_train())
    network.set_inputs(
        Tensor(shape=(None, 6), dtype=ms.float32), Tensor(shape=(None,), dtype=ms.int64)
    )
    for rows in (3, 8):
        logits, target = _tensors((rows, 6))
        gradient = network(logits, target)
        wanted = reference.cross_entropy_grad(logits.asnumpy(), target.asnumpy()).logits
        np.testing.assert_allclose(gradient.asnumpy(), wanted, rtol=1e-5, atol=1e-7)


def test_error():
    with pytest.raises(ValueError, match="gradient_in_forward must be 'auto', True or False"):
        ms_ce.CrossEntropyLoss(gradient_in_forward="yes")
    with pytest.raises(ValueError, match="gradient_in_forward must be 'auto', True or False"):
        ms_ce.cross_entropy(*_tensors(SMALL), gradient_in_forward=2)
