"""Gradients that nobody wants: neither computed nor given memory."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

import ms_ce
from ms_ce.ops.linear import gradients as sweep_gradients
from tests.integration.frozen_networks import (
    CHUNK_ROWS,
    CLASSES,
    FEATURES,
    Network,
    check_step,
    draw,
    nodes_of,
    training_step,
)


def compiled_nodes(backend, gradient_in_forward, *frozen, **options):
    network = Network(backend, gradient_in_forward, **options)
    for name in frozen:
        network.parts()[name].requires_grad = False
    hidden, _, target, _ = draw()
    return nodes_of(training_step(network, "graph")[0], Tensor(hidden), Tensor(target))


def count(nodes, kind: str) -> int:
    return sum(kind == each for each, _ in nodes)


def operator(gradient_in_forward, suffix) -> str:
    form = "ValueAndGrad" if gradient_in_forward else "Backward"
    return f"LinearCrossEntropy{form}{suffix}"


ALL_IN_FORWARD = pytest.mark.mindspore(
    ">=2.8",
    reason="no loop in a bprop of a graph: all gradients are made in the forward pass",
    only={"backend": "composed"},
)
NOT_TOLD = pytest.mark.mindspore(
    ">=2.8", reason="PyNative does not tell which tensors need a gradient"
)


@ALL_IN_FORWARD
@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_graph_of_a_frozen_head_makes_no_gradient_of_the_table(
    gradient_in_forward, backend, graph_mode
):
    """One product less, and nothing of V×H: neither the gradient nor what adds to it.

    A loop takes a copy of the table, whoever is trained.
    """
    whole = compiled_nodes(backend, gradient_in_forward)
    frozen = compiled_nodes(backend, gradient_in_forward, "linear_weight")
    made = [kind for kind, shapes in frozen if [CLASSES, FEATURES] in shapes]
    assert set(made) <= {"Load", "Maximum" if backend == "composed" else "Load"}, made
    if backend == "composed":
        assert count(frozen, "MatMul") == count(whole, "MatMul") - 1
        return
    assert count(whole, operator(gradient_in_forward, "")) == 1
    assert count(frozen, operator(gradient_in_forward, "Input")) == 1
    operators = 1 if gradient_in_forward else 2  # the backward operator, where there is one
    assert sum(kind.startswith("Linear") for kind, _ in frozen) == operators, frozen


@ALL_IN_FORWARD
@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_graph_of_a_frozen_input_makes_no_gradient_of_it(gradient_in_forward, backend, graph_mode):
    """That nobody wants it cannot be seen there: `frozen` says so."""
    whole = compiled_nodes(backend, gradient_in_forward, "adapter", stop=True)
    frozen = compiled_nodes(backend, gradient_in_forward, "adapter", stop=True, frozen=("input",))
    if backend == "composed":
        assert count(frozen, "MatMul") == count(whole, "MatMul") - 1
        return
    assert count(whole, operator(gradient_in_forward, "")) == 1
    assert count(frozen, operator(gradient_in_forward, "Weight")) == 1
    operators = 1 if gradient_in_forward else 2  # the backward operator, where there is one
    assert sum(kind.startswith("Linear") for kind, _ in frozen) == operators, frozen


class CountedProducts:
    """The sweep's products for the gradients, counted."""

    def __init__(self, monkeypatch):
        self.counts = {"input": 0, "linear_weight": 0}
        for name, attribute in (("input", "_product"), ("linear_weight", "_product_of_transpose")):
            monkeypatch.setattr(sweep_gradients, attribute, self.counted(name, attribute))

    def counted(self, name, attribute):
        product = getattr(sweep_gradients, attribute)

        def count(*arguments):
            self.counts[name] += 1
            return product(*arguments)

        return count


@NOT_TOLD
@pytest.mark.parametrize("gradient_in_forward", ("auto", True, False))
def test_pynative_makes_no_product_for_what_needs_no_gradient(gradient_in_forward, monkeypatch):
    hidden, _, target, _ = draw()
    chunks = -(-20 // CHUNK_ROWS)  # of 20 rows that count
    for frozen, stop, expected in (
        (("linear_weight",), False, {"input": chunks, "linear_weight": 0}),
        (("adapter",), True, {"input": 0, "linear_weight": chunks}),
        (("adapter", "linear_weight"), True, {"input": 0, "linear_weight": 0}),
        ((), False, {"input": chunks, "linear_weight": chunks}),
    ):
        network = Network("composed", gradient_in_forward, stop=stop)
        for name in frozen:
            network.parts()[name].requires_grad = False
        products = CountedProducts(monkeypatch)
        trained = network.trainable_params()
        gradients = ms.value_and_grad(network, None, weights=trained)(
            Tensor(hidden), Tensor(target)
        )[1]
        for gradient in gradients:
            gradient.asnumpy()
        assert products.counts == expected, (frozen, stop)
        monkeypatch.undo()


@NOT_TOLD
@pytest.mark.parametrize("gradient_in_forward", ("auto", True, False))
def test_pynative_calls_the_operator_that_makes_what_is_wanted(gradient_in_forward, monkeypatch):
    called = []
    call = ops.Custom.__call__

    def recorded(self, *arguments):
        called.append(self.func_name.split(":")[-1])
        return call(self, *arguments)

    monkeypatch.setattr(ops.Custom, "__call__", recorded)
    for frozen, stop, suffix in (
        (("linear_weight",), False, "Input"),
        (("adapter",), True, "Weight"),
        (("adapter", "linear_weight"), True, "Bias"),
        ((), False, ""),
    ):
        network = Network("cpu", gradient_in_forward, stop=stop)
        for name in frozen:
            network.parts()[name].requires_grad = False
        step, names = training_step(network, "pynative")
        called.clear()
        check_step(step, names, "cpu")
        made = [name for name in called if "Backward" in name or "Value" in name]
        assert made == [operator(gradient_in_forward, suffix)], (frozen, called)


class Gradient(nn.Cell):
    """Of the loss with respect to some of its tensors."""

    def __init__(self, loss, positions):
        super().__init__()
        self.gradient = ms.grad(loss, positions)

    def construct(self, logits, target, weight):
        return self.gradient(logits, target, weight)


@pytest.mark.parametrize("positions", (0, 1, 2, (0, 1, 2)))
@pytest.mark.parametrize("form", ("cross_entropy", "stats", "nll_loss"))
def test_graph_of_a_plain_loss_holds_the_gradients_that_are_asked_for(form, positions, graph_mode):
    """Each is an operator of its own there; the target of nll_loss has no gradient."""
    random = np.random.default_rng(0)
    logits, target = (random.random((3, 5)).astype(np.float32) for _ in range(2))
    if form == "nll_loss":
        target = np.array([0, 4, 2], np.int32)
    function = {
        "cross_entropy": ms_ce.cross_entropy,
        "stats": ms_ce.cross_entropy_with_stats,
        "nll_loss": ms_ce.nll_loss,
    }[form]

    def loss(logits, target, weight):
        value = function(logits, target, weight, backend="cpu")
        return value[0] if form == "stats" else value

    weight = Tensor(np.ones(5, np.float32))
    nodes = nodes_of(Gradient(loss, positions), Tensor(logits), Tensor(target), weight)
    asked = positions if isinstance(positions, tuple) else (positions,)
    prefix = "NLL" if form == "nll_loss" else "CrossEntropy"
    assert count(nodes, prefix + "Backward") == (0 in asked)
    assert count(nodes, "CrossEntropyTargetGrad") == (1 in asked and form != "nll_loss")
    assert count(nodes, "CrossEntropyWeightGrad") == (2 in asked)
