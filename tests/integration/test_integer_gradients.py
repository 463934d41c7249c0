"""Integers have no gradient. MindSpore 2.11 refuses, in PyNative, to differentiate them (its release notes: "Fix
PyNative grad metadata"), so nothing of ours hands one to it there; in a graph the gradient of an integer is 0."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

import ms_ce
from ms_ce.ops import custom, eager
from tests.integration.programs import PROGRAMS, Gradient, numpy_of

DIFFERENTIABLE = [name for name, program in PROGRAMS.items() if program.differentiable]
# A graph of composed takes seconds: with and without the loop over chunks, and every Cell that takes a class index.
COMPOSED_IN_GRAPHS = ["cross_entropy", "linear_cross_entropy chunks", "nll_loss"]
IN_GRAPHS = [("cpu", name) for name in DIFFERENTIABLE]
IN_GRAPHS += [("composed", name) for name in COMPOSED_IN_GRAPHS]


def _integers(values) -> list[Tensor]:
    return [each for each in values if isinstance(each, Tensor) and not each.is_floating_point()]


@pytest.fixture
def handed_over(monkeypatch):
    """What PyNative is told of integer inputs: (by whom, the gradient); and how often it was told anything."""
    told, calls = [], []
    backward, run = eager._Recorded.backward, custom._CpuOperator.run
    through_cell = nn.Cell._call_custom_bprop

    def gradients(ctx, *upstreams):
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if other is None else other[0] for other in ctx.others]
        grads = backward(ctx, *upstreams)
        calls.append("autograd function")
        for value, grad in zip(inputs, grads[3:], strict=True):
            if _integers([value]):
                told.append(("autograd function", grad))
        return grads

    def operator(self, *inputs):
        calls.append("operator")
        if self.derivative is not None and eager.recording() and _integers(inputs):
            told.append((self.name, "by the operator's bprop"))
        return run(self, *inputs)

    def cell(self, *inputs, **named):
        calls.append("Cell")
        if _integers(inputs):
            told.append((type(self).__name__, "by the Cell's bprop"))
        return through_cell(self, *inputs, **named)

    monkeypatch.setattr(eager._Recorded, "backward", staticmethod(gradients))
    monkeypatch.setattr(custom._CpuOperator, "run", operator)
    monkeypatch.setattr(nn.Cell, "_call_custom_bprop", cell)
    return told, calls


def _scalar(network):
    """The sum of a network's first result."""

    def function(*tensors):
        out = network(*tensors)
        return ops.sum(out[0] if isinstance(out, tuple) else out)

    return function


def _floats(tensors) -> tuple[int, ...]:
    return tuple(place for place, each in enumerate(tensors) if each.is_floating_point())


@pytest.mark.parametrize("backend", ["cpu", "composed"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_pynative_is_told_none(name, backend, handed_over):
    program = PROGRAMS[name]
    tensors = program.tensors()
    ms.grad(_scalar(program.make(backend)), _floats(tensors))(*tensors)
    told, calls = handed_over
    assert calls
    assert [each for each in told if each[1] is not None] == []


@pytest.mark.parametrize("backend", ["cpu", "composed"])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "CrossEntropyLoss"])
def test_pynative_is_told_none_by_second_derivatives(name, backend, handed_over):
    program = PROGRAMS[name]
    function = _scalar(program.make(backend))

    def slope(logits, *others):
        return ops.sum(ms.grad(function)(logits, *others) * logits)

    ms.grad(slope)(*program.tensors())
    told, calls = handed_over
    assert calls
    assert [each for each in told if each[1] is not None] == []


@pytest.mark.parametrize(("backend", "name"), IN_GRAPHS)
def test_in_a_graph_it_is_zero(backend, name):
    program = PROGRAMS[name]
    tensors = program.tensors()
    compiled = ms.jit(Gradient(program.make(backend)))
    gradients = numpy_of(compiled(*tensors))
    zeros = 0
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if not tensor.is_floating_point():
            np.testing.assert_array_equal(gradient, 0)
            zeros += 1
    assert zeros == len(_integers(tensors))


@pytest.mark.parametrize("backend", ["cpu", "composed"])
def test_stored_classes_of_a_teacher_have_none(backend, handed_over):
    """In a graph 0, and PyNative is told none."""
    classes = Tensor(np.array([[0, 3], [1, 4], [2, 0]], np.int32))
    log_probs = ops.log(ops.full((3, 2), 0.4, dtype=ms.float32))
    tensors = ops.ones((3, 4), ms.float32), ops.ones((5, 4), ms.float32), log_probs, classes

    def loss(hidden, table, log_probs, classes):
        return ms_ce.linear_top_k_distillation_loss(
            hidden, table, log_probs, classes, backend=backend
        )

    ms.grad(loss, (0, 1))(*tensors)
    told, calls = handed_over
    assert calls
    assert [each for each in told if each[1] is not None] == []
    gradient = ms.jit(ms.grad(loss, (0, 1, 3)))(*tensors)[2]
    np.testing.assert_array_equal(gradient.asnumpy(), 0)
