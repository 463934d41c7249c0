"""A compiled graph differentiates a function that holds tensors of its caller."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from ms_ce import reference

_random = np.random.default_rng(3)
LOGITS = _random.normal(size=(4, 5)).astype(np.float32)
TABLE = _random.normal(size=(5, 5)).astype(np.float32)
LABELS = np.array([0, 4, -100, 2], np.int32)
PROBABILITIES = _random.dirichlet(np.ones(5), 4).astype(np.float32)
WEIGHT = (_random.random(5) + 0.5).astype(np.float32)


def _agree(actual, expected):
    np.testing.assert_allclose(actual.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient_in_forward", (False, True))
@pytest.mark.parametrize("target", (LABELS, PROBABILITIES), ids=("labels", "probabilities"))
def test_cross_entropy(target, gradient_in_forward, backend):
    @ms.jit
    def step(logits, target, weight):
        def loss(logits):
            return ms_ce.cross_entropy(
                logits, target, weight, gradient_in_forward=gradient_in_forward, backend=backend
            )

        return ms.grad(loss)(logits)

    expected = reference.cross_entropy_grad(LOGITS, target, WEIGHT).logits
    _agree(step(Tensor(LOGITS), Tensor(target), Tensor(WEIGHT)), expected)


def test_nll_loss(backend):
    @ms.jit
    def step(logits, target, weight):
        return ms.grad(lambda logits: ms_ce.nll_loss(logits, target, weight, backend=backend))(
            logits
        )

    expected = reference.nll_loss_grad(LOGITS, LABELS, WEIGHT).logits
    _agree(step(Tensor(LOGITS), Tensor(LABELS), Tensor(WEIGHT)), expected)


@pytest.mark.parametrize("gradient_in_forward", (False, True))
@pytest.mark.parametrize("target", (LABELS, PROBABILITIES), ids=("labels", "probabilities"))
def test_linear_cross_entropy(target, gradient_in_forward):
    @ms.jit
    def step(hidden, table, target, weight):
        def loss(hidden):
            return ms_ce.linear_cross_entropy(
                hidden,
                table,
                target,
                weight=weight,
                gradient_in_forward=gradient_in_forward,
                backend="cpu",
            )

        return ms.grad(loss)(hidden)

    arrays = (LOGITS, TABLE, target, WEIGHT)
    expected = reference.linear_cross_entropy_grad(LOGITS, TABLE, target, weight=WEIGHT).input
    _agree(step(*map(Tensor, arrays)), expected)


def test_second_derivatives(backend):
    @ms.jit
    def step(logits, target, direction):
        def slope(logits):
            def loss(logits):
                return ms_ce.cross_entropy(logits, target, label_smoothing=0.1, backend=backend)

            return (ms.grad(loss)(logits) * direction).sum()

        return ms.grad(slope)(logits)

    expected = reference.cross_entropy_hvp(TABLE[:4], LOGITS, LABELS, label_smoothing=0.1)
    _agree(step(Tensor(LOGITS), Tensor(LABELS), Tensor(TABLE[:4])), expected)


def test_chunks_of_composed_take_their_tensors_as_arguments():
    """A loop is what MindSpore does not differentiate there (test_mindspore_limits.py)."""

    @ms.jit
    def step(hidden, table, target):
        def loss(hidden, table, target):
            return ms_ce.linear_cross_entropy(
                hidden, table, target, chunk_bytes=40, backend="composed"
            )

        return ms.grad(loss)(hidden, table, target)

    expected = reference.linear_cross_entropy_grad(LOGITS, TABLE, LABELS).input
    _agree(step(Tensor(LOGITS), Tensor(TABLE), Tensor(LABELS)), expected)
