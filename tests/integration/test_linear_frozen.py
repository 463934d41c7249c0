"""Gradients of the linear loss that nobody wants: no other one changes by leaving them out."""

from __future__ import annotations

import copy

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

import ms_ce
from tests.integration.frozen_networks import (
    CHUNKS,
    CLASSES,
    FEATURES,
    FROZEN,
    NAMES,
    PLAIN,
    ROWS,
    Network,
    check,
    check_step,
    draw,
    expected_gradients,
    training_step,
)


def _forms():
    """Every form where Python runs; a loop takes seconds to compile, so of those the ones that differ."""
    for form in ("one sweep", "two sweeps", "none", "stats", "plain"):
        for names in FROZEN:
            for backend in ("cpu", "composed"):
                yield form, names, backend, "pynative"
            if form != "plain":
                yield form, names, "cpu", "jit"
    yield "one sweep", ("linear_weight",), "cpu", "graph"
    for form in ("one sweep", "two sweeps"):
        for names in (("input",), ("linear_weight", "linear_bias")):
            yield form, names, "composed", "jit"


@pytest.mark.parametrize(
    ("form", "frozen", "backend", "run"),
    [pytest.param(*each, id="-".join(map(str, each)).replace(" ", "-")) for each in _forms()],
    indirect=["run"],
)
def test_frozen_inputs_are_constants(form, frozen, backend, run):
    """Their gradient is 0, and that of the others is what it was."""
    options = {"backend": backend, "frozen": frozen, **(PLAIN if form == "plain" else CHUNKS)}
    if form == "none":
        options["reduction"] = "none"

    def loss(input, linear_weight, target, linear_bias):
        if form == "stats":
            return (
                3
                * ms_ce.linear_cross_entropy_with_stats(
                    input, linear_weight, target, linear_bias, **options
                )[0]
            )
        in_forward = form == "one sweep"
        return 3 * ms_ce.linear_cross_entropy(
            input, linear_weight, target, linear_bias, gradient_in_forward=in_forward, **options
        )

    data = draw()
    reduction = {"reduction": "none"} if form == "none" else {}
    upstream = np.full(ROWS, 3.0) if form == "none" else 3.0
    expected = expected_gradients(data, upstream, **reduction)
    gradients = run(ms.grad(loss, (0, 1, 3)), *map(Tensor, data))
    for name, gradient in zip(NAMES, gradients, strict=True):
        check(gradient, expected[name] * (name not in frozen), backend, name)


@pytest.fixture(params=("pynative", "jit", "graph"))
def mode(request):
    if request.param == "graph":
        ms.set_context(mode=ms.GRAPH_MODE)
    yield request.param
    ms.set_context(mode=ms.PYNATIVE_MODE)


# What is frozen, as users do it.
PRACTICE = {
    "adapters below a frozen head": ("linear_weight", "linear_bias"),
    "frozen table, trained bias": ("linear_weight",),
    "bias alone": ("adapter", "linear_weight"),
    "head alone": ("adapter",),
    "everything": (),
}


def _practices():
    for practice in PRACTICE:
        for gradient_in_forward in (True, False):
            for mode in ("pynative", "jit", "graph"):
                yield practice, gradient_in_forward, "cpu", mode
            yield practice, gradient_in_forward, "composed", "pynative"
    yield "adapters below a frozen head", True, "composed", "jit"
    yield "head alone", False, "composed", "graph"


@pytest.mark.parametrize(
    ("practice", "gradient_in_forward", "backend", "mode"), list(_practices()), indirect=["mode"]
)
def test_training_with_frozen_parameters(practice, gradient_in_forward, backend, mode):
    network = Network(backend, gradient_in_forward)
    for name in PRACTICE[practice]:
        network.parts()[name].requires_grad = False
    step, names = training_step(network, mode)
    check_step(step, names, backend)


@pytest.mark.parametrize(
    ("backend", "mode"),
    [("cpu", "pynative"), ("cpu", "jit"), ("cpu", "graph"), ("composed", "pynative")],
    indirect=["mode"],
)
def test_tied_table_that_is_frozen(backend, mode):
    embedding = Parameter(Tensor(draw()[1]), name="embedding", requires_grad=False)
    step, names = training_step(Network(backend, tied=embedding), mode)
    assert names == ["adapter", "linear_bias"]
    check_step(step, names, backend)


@pytest.mark.parametrize(
    ("backend", "mode"),
    [("cpu", "pynative"), ("cpu", "jit"), ("cpu", "graph"), ("composed", "pynative")],
    indirect=["mode"],
)
def test_requires_grad_changes_between_steps(backend, mode):
    """A new step is made for what is trained now, as optimisers are."""
    network = Network(backend)
    for wanted in (True, False, True):
        network.loss.linear_weight.requires_grad = wanted
        step, names = training_step(network, mode)
        assert ("linear_weight" in names) == wanted
        check_step(step, names, backend)


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_a_graph_gives_the_gradient_of_a_frozen_parameter_to_who_asks(gradient_in_forward, backend):
    """As MindSpore's graphs do for every other operator. PyNative gives 0 for all of them."""
    network = Network(backend, gradient_in_forward)
    for part in network.parts().values():
        part.requires_grad = False
    parts = network.parts()
    compute = ms.value_and_grad(network, None, weights=list(parts.values()))

    @ms.jit
    def step(x, target):
        return compute(x, target)

    check_step(step, list(parts), backend)
    for part in parts.values():
        part.requires_grad = True
    check_step(step, list(parts), backend)


def test_a_copied_cell_reads_its_own_parameters(mode):
    network = Network("cpu")
    other = copy.deepcopy(network)
    network.loss.linear_weight.requires_grad = False
    for each, trained in ((network, 2), (other, 3)):
        step, names = training_step(each, mode)
        assert len(names) == trained
        check_step(step, names, "cpu")


def test_wrong_names():
    loss = ms_ce.linear_cross_entropy
    hidden, linear_weight, target, _ = map(Tensor, draw())
    with pytest.raises(TypeError, match="frozen must be a tuple of names"):
        loss(hidden, linear_weight, target, frozen="input")
    with pytest.raises(ValueError, match="'weight'"):
        ms_ce.LinearCrossEntropyLoss(FEATURES, CLASSES, frozen=("weight",))
