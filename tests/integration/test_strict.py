"""Strict syntax: a graph of ours needs nothing that MindSpore runs outside of the graph."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from tests.integration.linear_cases import loop_in_a_bprop
from tests.integration.programs import PROGRAMS, Function, Gradient, numpy_of
from tests.support.tolerances import MODES_AGREE


def agree(got, want):
    for value, expected in zip(numpy_of(got), numpy_of(want), strict=True):
        np.testing.assert_allclose(value, expected, **MODES_AGREE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_fullgraph(name, backend):
    program = PROGRAMS[name]
    network, tensors = program.make(backend), program.tensors()
    agree(ms.jit(network, fullgraph=True)(*tensors), network(*tensors))


@loop_in_a_bprop(name="linear_token_log_probs chunks")
@loop_in_a_bprop(name="linear_cross_entropy_with_stats chunks")
@pytest.mark.parametrize("name", [name for name in PROGRAMS if PROGRAMS[name].differentiable])
def test_fullgraph_gradient(name, backend):
    program = PROGRAMS[name]
    network, tensors = Gradient(program.make(backend)), program.tensors()
    agree(ms.jit(network, fullgraph=True)(*tensors), network(*tensors))


@pytest.fixture
def strict():
    ms.set_context(mode=ms.GRAPH_MODE, jit_syntax_level=ms.STRICT)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE, jit_syntax_level=ms.LAX)


@pytest.mark.parametrize("name", PROGRAMS)
def test_strict_context(name, backend, strict):
    program = PROGRAMS[name]
    network, tensors = program.make(backend), program.tensors()
    got = network(*tensors)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    agree(got, network(*tensors))


REFUSED = {
    "number": (3, "int"),
    "array": (np.zeros((2, 3)), "ndarray"),
    "none": (None, "NoneType"),
    "tuple": ((Tensor([[1.0, 2.0]]), Tensor([1.0])), "tuple"),
    "list": ([Tensor([[1.0, 2.0]])], "list"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("fullgraph", (False, True))
def test_refused(kind, fullgraph):
    """What is no tensor is refused by name of its type, in the words of PyNative."""
    value, name = REFUSED[kind]

    def loss(input, target):
        return ms_ce.cross_entropy(input, target)

    message = f"cross_entropy: input must be a mindspore.Tensor, got {name}"
    with pytest.raises(TypeError, match=message):
        loss(value, Tensor([0]))
    with pytest.raises(TypeError, match=message):
        ms.jit(loss, fullgraph=fullgraph)(value, Tensor([0]))


@pytest.mark.parametrize("name", PROGRAMS)
def test_unknown_rank_is_refused_by_name(name, backend):
    """The loss's own sentence, while the graph is compiled."""
    program = PROGRAMS[name]
    tensors = program.tensors()
    network = Function(program.make(backend), {})
    network.set_inputs(*(Tensor(shape=None, dtype=tensor.dtype) for tensor in tensors))
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with pytest.raises(ValueError, match="must have a known number of dimensions"):
            network(*tensors)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_tensor_of_unknown_rank(name, graph_mode):
    """Each in its turn: refused by its name, or as good as one of known rank."""
    program = PROGRAMS[name]
    tensors = program.tensors()
    expected = numpy_of(Function(program.make("cpu"), {})(*tensors))
    for place in range(len(tensors)):
        network = Function(program.make("cpu"), {})
        shapes = [None if k == place else each.shape for k, each in enumerate(tensors)]
        pairs = zip(shapes, tensors, strict=True)
        network.set_inputs(*(Tensor(shape=shape, dtype=each.dtype) for shape, each in pairs))
        try:
            actual = numpy_of(network(*tensors))
        except ValueError as error:
            refused = str(error)
        else:
            refused = None
        if refused is None:
            for found, wanted in zip(actual, expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
        else:
            assert "must have a known number of dimensions" in refused


def test_unknown_number_of_classes_of_a_composed_linear_loss_is_asked_for(graph_mode):
    program = PROGRAMS["linear_cross_entropy"]
    tensors = program.tensors()
    network = Function(program.make("composed"), {})
    network.set_inputs(*(Tensor(shape=[None] * t.ndim, dtype=t.dtype) for t in tensors))
    with pytest.raises(ValueError, match="needs the number of classes, linear_weight's first"):
        network(*tensors)
