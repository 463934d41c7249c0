"""Gradients of the linear loss by probability targets and class weight: of rows without a loss, who makes them, and
what follows the first derivative. tests/integration/test_linear.py has their values."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import ms_ce
from ms_ce import reference
from ms_ce.ops.linear import gradients as sweep_gradients
from ms_ce.ops.linear import sweep as linear_sweep
from tests.integration.frozen_networks import nodes_of
from tests.integration.linear_cases import loop_in_a_bprop
from tests.support.linear_tolerances import check_linear

ROWS, FEATURES, CLASSES, CHUNK_ROWS = 11, 4, 19, 4
CHUNKS = {"chunk_bytes": CHUNK_ROWS * CLASSES * 4}
PLAIN = {"chunk_bytes": ROWS * CLASSES * 4}
NAMES = ("input", "linear_weight", "target", "linear_bias", "weight")


def draw(probabilities: bool = True) -> list[np.ndarray]:
    """Tensors of NAMES."""
    random = np.random.default_rng(4)
    shapes = ((ROWS, FEATURES), (CLASSES, FEATURES), (ROWS, CLASSES), (CLASSES,), (CLASSES,))
    tensors = [random.random(shape).astype(np.float32) for shape in shapes]
    if not probabilities:
        tensors[2] = random.integers(0, CLASSES, ROWS).astype(np.int32)
    return tensors


def check(actual, expected, backend, what):
    check_linear(actual.asnumpy(), expected, backend, "float32", what)


@pytest.mark.parametrize("gradient_in_forward", (True, False))
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("probabilities", (True, False))
def test_rows_of_weight_0_have_none(probabilities, reduction, gradient_in_forward, backend):
    """Whatever they hold; the others' gradients are multiplied by their weights, of either sign."""
    data = draw(probabilities)
    row_weight = np.linspace(-0.5, 2.0, ROWS).astype(np.float32)
    row_weight[[0, 5, 6, ROWS - 1]] = 0.0
    upstream = np.full(ROWS, 3.0) if reduction == "none" else np.array(3.0)
    settings = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.02}
    expected = reference.linear_cross_entropy_grad(
        *data, row_weight=row_weight, grad_loss=upstream, **settings
    )
    data[0][row_weight == 0] = np.nan
    if probabilities:
        data[2][row_weight == 0] = np.nan
    else:
        data[2][row_weight == 0] = CLASSES + 7

    def loss(*tensors):
        return 3 * ms_ce.linear_cross_entropy(
            *tensors,
            row_weight=Tensor(row_weight),
            backend=backend,
            gradient_in_forward=gradient_in_forward,
            **settings,
            **CHUNKS,
        )

    wanted = NAMES if probabilities else tuple(name for name in NAMES if name != "target")
    positions = tuple(NAMES.index(name) for name in wanted)
    gradients = ms.grad(loss, positions)(*map(Tensor, data))
    for name, gradient in zip(wanted, gradients, strict=True):
        check(gradient, getattr(expected, name), backend, name)


@pytest.mark.parametrize("vanishing", ("weight", "rows"))
def test_a_mean_that_divides_by_0_has_none(vanishing, backend):
    """As its other gradients (ops/mean.py)."""
    probabilities = vanishing == "rows"
    data, row_weight = draw(probabilities), np.zeros(ROWS, np.float32)
    if not probabilities:
        data[4][:], row_weight[:] = 0.0, 1.0

    def loss(*tensors):
        return ms_ce.linear_cross_entropy(
            *tensors, row_weight=Tensor(row_weight), backend=backend, **CHUNKS
        )

    positions = (2, 4) if probabilities else (4,)
    for gradient in ms.grad(loss, positions)(*map(Tensor, data)):
        assert not gradient.asnumpy().any()


@loop_in_a_bprop(run="jit")
@loop_in_a_bprop(run="graph")
def test_a_weight_that_is_a_parameter_is_trained(backend, run):
    hidden, table, target, _, weight = draw(probabilities=False)
    loss = ms_ce.LinearCrossEntropyLoss(
        FEATURES,
        CLASSES,
        weight=Parameter(Tensor(weight), name="weight"),
        backend=backend,
        **CHUNKS,
    )
    loss.linear_weight.set_data(Tensor(table))
    compute = ms.value_and_grad(loss, None, weights=[loss.weight])
    expected = reference.linear_cross_entropy_grad(hidden, table, target, None, weight)
    _, (gradient,) = run(compute, Tensor(hidden), Tensor(target), composed_loop=backend != "cpu")
    check(gradient, expected.weight, backend, "weight")


class Called:
    """Operators of the kernel, by name, since it was made."""

    def __init__(self, monkeypatch):
        self.names: list[str] = []
        call = ops.Custom.__call__

        def recorded(operator, *arguments):
            self.names.append(operator.func_name.split(":")[-1])
            return call(operator, *arguments)

        monkeypatch.setattr(ops.Custom, "__call__", recorded)

    def backward(self) -> list[str]:
        names = [name for name in self.names if "Grad" in name or "Backward" in name]
        self.names.clear()
        return names


def _loss(backend, names, **options):
    """The loss as a function of these tensors; the others are constants."""
    constants = dict(zip(NAMES, map(Tensor, draw()), strict=True))

    def loss(*tensors):
        given = {**constants, **dict(zip(names, tensors, strict=True))}
        return ms_ce.linear_cross_entropy(**given, backend=backend, **options, **CHUNKS)

    return loss, [constants[name] for name in names]


@pytest.mark.mindspore(">=2.8", reason="PyNative does not tell which tensors need a gradient")
def test_pynative_makes_what_is_wanted_and_nothing_else(monkeypatch):
    called = Called(monkeypatch)
    operators = {"target": "TargetGrad", "weight": "WeightGrad"}
    for names in (("target",), ("weight",), ("target", "weight")):
        loss, tensors = _loss("cpu", names)
        ms.grad(loss, tuple(range(len(names))))(*tensors)
        assert called.backward() == [f"LinearCrossEntropy{operators[name]}" for name in names]
    for gradient_in_forward, made in ((True, "ValueAndGrad"), (False, "Backward")):
        loss, tensors = _loss("cpu", ("input",), gradient_in_forward=gradient_in_forward)
        ms.grad(loss)(*tensors)
        assert called.backward() == [f"LinearCrossEntropy{made}Input"]


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_stop_gradient_spares_a_target_that_is_an_argument(gradient_in_forward, monkeypatch):
    called = Called(monkeypatch)
    loss, tensors = _loss("cpu", ("input", "target"), gradient_in_forward=gradient_in_forward)
    ms.grad(loss)(*tensors)
    assert "LinearCrossEntropyTargetGrad" in called.backward()
    ms.grad(lambda input, target: loss(input, ops.stop_gradient(target)))(*tensors)
    assert "LinearCrossEntropyTargetGrad" not in called.backward()


@pytest.mark.parametrize(
    ("name", "expected"), (("target", (2, 0)), ("weight", (2, 0)), ("input", (2, 1)))
)
def test_products_of_a_sweep_that_are_made(name, expected, monkeypatch):
    """(of logits, for the gradient of input) for each chunk."""
    counts = {"_product_with_transpose": 0, "_product": 0}
    for module, attribute in (
        (linear_sweep, "_product_with_transpose"),
        (sweep_gradients, "_product"),
    ):
        product = getattr(module, attribute)

        def count(*arguments, product=product, attribute=attribute):
            counts[attribute] += 1
            return product(*arguments)

        monkeypatch.setattr(module, attribute, count)
    loss, tensors = _loss("composed", (name,), gradient_in_forward=False)
    ms.grad(loss)(*tensors).asnumpy()
    chunks = -(-ROWS // CHUNK_ROWS)
    assert tuple(counts.values()) == tuple(chunks * times for times in expected)


class Gradient(nn.Cell):
    def __init__(self, loss, positions):
        super().__init__()
        self.gradient = ms.grad(loss, positions)

    def construct(self, input, target, weight):
        return self.gradient(input, target, weight)


@pytest.mark.parametrize("positions", (0, 1, 2, (0, 1, 2)))
@pytest.mark.parametrize("form", ("one sweep", "two sweeps", "stats"))
def test_a_graph_holds_the_gradients_that_are_asked_for(form, positions, graph_mode):
    hidden, table, target, _, weight = map(Tensor, draw())

    def loss(input, target, weight):
        tensors = (input, table, target, None, weight)
        if form == "stats":
            return ms_ce.linear_cross_entropy_with_stats(*tensors, backend="cpu")[0]
        in_forward = form == "one sweep"
        return ms_ce.linear_cross_entropy(*tensors, gradient_in_forward=in_forward, backend="cpu")

    nodes = [kind for kind, _ in nodes_of(Gradient(loss, positions), hidden, target, weight)]
    asked = positions if isinstance(positions, tuple) else (positions,)
    assert nodes.count("LinearCrossEntropyTargetGrad") == (1 in asked)
    assert nodes.count("LinearCrossEntropyWeightGrad") == (2 in asked)
    assert nodes.count("LinearCrossEntropyBackward") == (0 in asked and form != "one sweep")


@pytest.mark.parametrize("name", ("target", "weight"))
@pytest.mark.parametrize("by", NAMES)
def test_second_derivatives_are_refused(name, by, backend):
    names = (name,) if name == by else (name, by)
    loss, tensors = _loss(backend, names)

    def first(*tensors):
        return ms.grad(loss)(*tensors).sum()

    with pytest.raises(NotImplementedError, match="differentiated once"):
        ms.grad(first, len(names) - 1)(*tensors).asnumpy()


def test_second_derivatives_where_one_chunk_holds_all_logits():
    """The loss is affine in the target: along a direction, its gradient by the target has the derivative of the loss of
    that direction."""
    hidden, table, target, bias, weight = draw()
    direction = np.random.default_rng(1).random((ROWS, CLASSES)).astype(np.float32)

    def along(hidden, target):
        def loss(target):
            return ms_ce.linear_cross_entropy(
                hidden,
                Tensor(table),
                target,
                Tensor(bias),
                Tensor(weight),
                backend="composed",
                **PLAIN,
            )

        return (ms.grad(loss)(target) * Tensor(direction)).sum()

    second = ms.grad(along)(Tensor(hidden), Tensor(target))
    expected = reference.linear_cross_entropy_grad(hidden, table, direction, bias, weight)
    check(second, expected.input, "composed", "second derivative")
