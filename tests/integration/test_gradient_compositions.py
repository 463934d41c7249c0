"""Gradients that the forward pass makes, in every composition of losses and gradients that a graph can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import ms_ce
from ms_ce import functional, reference

ROWS, CLASSES, FEATURES = 5, 7, 3
_random = np.random.default_rng(0)
TARGET = _random.integers(0, CLASSES, ROWS)
LOGITS = _random.normal(size=(ROWS, CLASSES)).astype(np.float32)
HIDDEN = _random.normal(size=(ROWS, FEATURES)).astype(np.float32)
TABLE = _random.normal(size=(CLASSES, FEATURES)).astype(np.float32)


class Form(NamedTuple):
    """A loss in training as a function of one tensor, where it is looked at, and its gradient there."""

    cell: nn.Cell
    point: np.ndarray
    once: np.ndarray

    def loss(self) -> Callable:
        cell, target = self.cell, Tensor(TARGET)

        def loss(x):
            return cell(x, target)

        return loss


def _plain(choice) -> Form:
    cell = ms_ce.CrossEntropyLoss(backend="cpu", gradient_in_forward=choice).set_train()
    return Form(cell, LOGITS, reference.cross_entropy_grad(LOGITS, TARGET).logits)


def _linear(choice) -> Form:
    options = {"backend": "cpu", "gradient_in_forward": choice}
    cell = ms_ce.LinearCrossEntropyLoss(FEATURES, CLASSES, **options).set_train()
    cell.linear_weight.set_data(Tensor(TABLE))
    return Form(cell, HIDDEN, reference.linear_cross_entropy_grad(HIDDEN, TABLE, TARGET).input)


FORMS = {"plain": _plain, "linear": _linear}


@pytest.fixture(params=FORMS)
def make(request, monkeypatch):
    """A form by its `gradient_in_forward`; 'auto' takes small logits for large ones."""
    monkeypatch.setattr(functional, "_LARGE", 1)
    monkeypatch.setattr(functional, "_LARGE_EAGER", 1)
    return FORMS[request.param]


# Each gives, from a loss, a function of the point; and from the loss's gradient there what it returns.
COMPOSITIONS: dict[str, tuple[Callable, Callable]] = {}


def composition(expected: Callable) -> Callable:
    def add(build):
        COMPOSITIONS[build.__name__] = build, expected
        return build

    return add


@composition(lambda once: once)
def plain_step(loss):
    return ms.grad(loss)


@composition(lambda once: 1024 * once)
def loss_scale(loss):
    def scaled(x):
        return 1024.0 * loss(x)

    return ms.grad(scaled)


@composition(lambda once: once)
def twice(loss):
    def both(x):
        return 0.3 * loss(x) + 0.7 * loss(x)

    return ms.grad(both)


@composition(lambda once: 2 * once)
def one_of_them_without_weight(loss):
    def both(x):
        return 0.0 * loss(x) + 2.0 * loss(x)

    return ms.grad(both)


@composition(lambda once: 0.8 * once)
def used_twice(loss):
    def both(x):
        value = loss(x)
        return 0.3 * value + 0.5 * value

    return ms.grad(both)


@composition(lambda once: 4 * once)
def two_gradients(loss):
    def larger(x):
        return 3.0 * loss(x)

    def both(x):
        return ms.grad(loss)(x) + ms.grad(larger)(x)

    return both


@composition(lambda once: 3 * once)
def gradient_and_loss(loss):
    def larger(x):
        return 3.0 * loss(x)

    def both(x):
        value, gradient = ms.value_and_grad(larger)(x)
        return gradient + 0.0 * (value + loss(x))

    return both


@composition(lambda once: 6 * once)
def unrolled_loop(loss):
    def several(x):
        total = Tensor(0.0)
        for i in range(3):
            total = total + (i + 1.0) * loss(x)
        return total

    return ms.grad(several)


@composition(lambda once: 6 * once)
def tensor_loop(loss):
    def several(x):
        total, i = Tensor(0.0), Tensor(1.0)
        while i < x.shape[0] - 1:
            total = total + i * loss(x)
            i = i + 1.0
        return total

    return ms.grad(several)


@composition(lambda once: 6 * once)
def accumulation_in_a_loop(loss):
    def weighted(x, factor):
        return factor * loss(x)

    def several(x):
        total, i = 0.0 * x, Tensor(1.0)
        while i < x.shape[0] - 1:
            total = total + ms.grad(weighted)(x, i)
            i = i + 1.0
        return total

    return several


@composition(lambda once: 4 * once)
def branch(loss):
    def either(x):
        if x.sum() * 0.0 < 1.0:
            return loss(x) + 3.0 * loss(x)
        return 5.0 * loss(x)

    return ms.grad(either)


@composition(lambda once: 4 * once)
def gradients_in_a_branch(loss):
    def larger(x):
        return 3.0 * loss(x)

    def either(x):
        total = ms.grad(larger)(x)
        if x.sum() * 0.0 < 1.0:
            total = total + ms.grad(loss)(x)
        return total

    return either


@composition(lambda once: 5 * once)
def vjp_twice(loss):
    def both(x):
        value, pull = ms.vjp(loss, x)
        return pull(0.0 * value + 2.0)[0] + pull(0.0 * value + 3.0)[0]

    return both


@composition(lambda once: 3 * once * (once * once).sum())
def scaled_by_its_own_gradient(loss):
    def scaled(x):
        value, gradient = ms.value_and_grad(loss)(x)
        return 3.0 * value * ops.stop_gradient((gradient * gradient).sum())

    return ms.grad(scaled)


@composition(lambda once: 4 * once)
def gradient_beside(loss):
    def both(x):
        value, gradient = ms.value_and_grad(loss)(x)
        return 3.0 * value, gradient

    def added(x):
        outer, inner = ms.grad(both, has_aux=True)(x)
        return outer + inner[0]

    return added


@composition(lambda once: np.stack([3 * once, 5 * once]))
def jacobian(loss):
    def several(x):
        return loss(x) * Tensor([3.0, 5.0])

    return ms.jacrev(several)


@composition(lambda once: np.stack([3 * once, 3 * once]))
def vmap_of_gradient(loss):
    def larger(x):
        return 3.0 * loss(x)

    def gradient(x):
        return ms.grad(larger)(x)

    def each(x):
        return ms.vmap(gradient)(ops.stack((x, x)))

    return each


@composition(lambda once: np.stack([2 * once, 3 * once]))
def vmap_over_upstreams(loss):
    def gradient(factor, x):
        def weighted(x):
            return factor * loss(x)

        return ms.grad(weighted)(x)

    def each(x):
        return ms.vmap(gradient, (0, None))(Tensor([2.0, 3.0]), x)

    return each


def _choices():
    for name in COMPOSITIONS:
        for run, choice in (("jit", "auto"), ("jit", True), ("graph", "auto")):
            yield pytest.param(name, run, choice, id=f"{name}-{run}-{choice}")


@pytest.mark.parametrize(("name", "run", "choice"), list(_choices()), indirect=["run"])
def test_compositions(name, make, run, choice):
    form = make(choice)
    build, expected = COMPOSITIONS[name]
    actual = run(build(form.loss()), Tensor(form.point))
    np.testing.assert_allclose(actual.asnumpy(), expected(form.once), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("run", ("jit", "graph"), indirect=True)
@pytest.mark.parametrize("inner", (1.0, 3.0))
@pytest.mark.parametrize("outer", (1.0, 2.0))
def test_gradient_penalty(run, inner, outer, monkeypatch):
    """outer·loss + ½·|inner·gradient|², the loss once for both and once for each."""
    monkeypatch.setattr(functional, "_LARGE", 1)
    loss = _plain("auto").loss()

    def weighted(x):
        return inner * loss(x)

    def shared(x):
        value, gradient = ms.value_and_grad(weighted)(x)
        return outer * value + 0.5 * (gradient * gradient).sum()

    def separate(x):
        gradient = ms.grad(weighted)(x)
        return outer * loss(x) + 0.5 * (gradient * gradient).sum()

    once = reference.cross_entropy_grad(LOGITS, TARGET).logits
    curvature = reference.cross_entropy_hvp(inner * once, LOGITS, TARGET, None, grad_loss=inner)
    for function, factor in ((shared, inner * outer), (separate, outer)):
        actual = run(ms.grad(function), Tensor(LOGITS)).asnumpy()
        np.testing.assert_allclose(actual, factor * once + curvature, rtol=1e-4, atol=1e-6)


def test_written_beside(make):
    """The gradient that a parameter was given is not changed for the loss's own."""
    form = make("auto")
    loss, kept = form.loss(), Parameter(Tensor(0 * form.point), name="kept")

    def larger(x):
        value, gradient = ms.value_and_grad(loss)(x)
        ops.assign(kept, gradient)
        return 3.0 * value

    actual = ms.jit(ms.grad(larger))(Tensor(form.point))
    np.testing.assert_allclose(actual.asnumpy(), 3 * form.once, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kept.asnumpy(), form.once, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("jit_level", ("O0", "O1"))
def test_called_again(make, jit_level):
    """With other upstreams, and earlier gradients stay what they were."""
    form = make("auto")
    loss = form.loss()

    def weighted(x, factor):
        return factor * loss(x)

    def gradients(x, factor):
        return ms.grad(weighted)(x, factor), ms.grad(loss)(x)

    compiled = ms.jit(gradients, jit_level=jit_level)
    factors = (1.0, 2.0, 1.0, 0.0, 3.0)
    kept = [compiled(Tensor(form.point), Tensor(factor)) for factor in factors]
    for factor, (weighted, alone) in zip(factors, kept, strict=True):
        np.testing.assert_allclose(weighted.asnumpy(), factor * form.once, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(alone.asnumpy(), form.once, rtol=1e-4, atol=1e-6)


def test_recomputed(make, graph_mode):
    form = make("auto")
    form.cell.recompute()
    target = Tensor(TARGET)

    class Network(nn.Cell):
        def __init__(self, loss):
            super().__init__()
            self.loss = loss

        def construct(self, x):
            return 2.0 * self.loss(x, target) + 3.0 * self.loss(x, target)

    class Gradient(nn.Cell):
        def __init__(self, network):
            super().__init__()
            self.gradient = ms.grad(network)

        def construct(self, x):
            return self.gradient(x)

    actual = Gradient(Network(form.cell))(Tensor(form.point))
    np.testing.assert_allclose(actual.asnumpy(), 5 * form.once, rtol=1e-4, atol=1e-6)


def test_gradient_outside_of_the_graph(make):
    """PyNative calls the backward pass as a graph of its own."""
    form = make("auto")
    loss = ms.jit(form.loss())

    def both(x):
        return 2.0 * loss(x) + 3.0 * loss(x)

    for _ in range(2):
        gradient = ms.grad(both)(Tensor(form.point))
        np.testing.assert_allclose(gradient.asnumpy(), 5 * form.once, rtol=1e-4, atol=1e-6)
