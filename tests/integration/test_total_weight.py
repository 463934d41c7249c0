"""A mean whose total weight is 0: the value is what the division gives, the gradient 0, in every form of the loss."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from ms_ce import reference
from ms_ce.ops.mean import total_weight
from ms_ce.parallel.mean import Divide
from tests.integration.conftest import to_numpy, to_tensor

LOGITS = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
TARGET, WEIGHT = np.array([0, 1], np.int32), np.array([-1.0, 1.0], np.float32)
IGNORED = np.array([-100, -100], np.int32)
PROBLEMS = [(TARGET, WEIGHT), (TARGET, -WEIGHT), (TARGET, 0 * WEIGHT), (IGNORED, None)]
NAMES = ["cancelling", "cancelling the other way", "zero", "ignored"]
problems = pytest.mark.parametrize(("target", "weight"), PROBLEMS, ids=NAMES)
one_graph = pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)


def check(run, loss, arguments, expected):
    """The value of `loss`, and gradients of 0 with respect to all real arguments."""
    tensors = [to_tensor(value) for value in arguments]
    np.testing.assert_array_equal(to_numpy(run(loss, *tensors)), expected)
    gradients = run(ms.grad(loss, tuple(range(len(arguments)))), *tensors)
    for gradient in gradients:
        np.testing.assert_array_equal(to_numpy(gradient), np.zeros(gradient.shape))


@one_graph
@problems
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_loss(name, target, weight, backend, run):
    function, labels = getattr(ms_ce, name), to_tensor(target)
    expected = getattr(reference, name)(LOGITS, target, weight)[0]

    def unweighted(logits):
        return function(logits, labels, backend=backend)

    def weighted(logits, weight):
        return function(logits, labels, weight, backend=backend)

    if weight is None:
        check(run, unweighted, [LOGITS], expected)
    else:
        check(run, weighted, [LOGITS, weight], expected)


@one_graph
@problems
def test_statistics(target, weight, backend, run):
    options = {"z_loss": 0.01}
    labels, weights = to_tensor(target), to_tensor(weight)
    expected = reference.cross_entropy(LOGITS, target, weight, **options)

    def stats(logits):
        found = ms_ce.cross_entropy_with_stats(logits, labels, weights, backend=backend, **options)
        return found[0], found[3], found[5]

    def total(logits):
        found = ms_ce.cross_entropy_with_stats(logits, labels, weights, backend=backend, **options)
        return found[0] + found[3]

    for got, wanted in zip(
        run(stats, to_tensor(LOGITS)),
        (expected.loss, expected.z_loss, expected.entropy),
        strict=True,
    ):
        np.testing.assert_allclose(to_numpy(got), wanted, rtol=1e-5)
    gradient = run(ms.grad(total), to_tensor(LOGITS))
    np.testing.assert_array_equal(to_numpy(gradient), np.zeros((2, 2)))


@one_graph
@problems
def test_value_and_grad(target, weight, backend, run):
    labels, weights = to_tensor(target), to_tensor(weight)

    def both(logits):
        return ms_ce.cross_entropy_value_and_grad(logits, labels, weights, backend=backend)

    loss, gradient = run(both, to_tensor(LOGITS))
    expected = reference.cross_entropy(LOGITS, target, weight).loss
    np.testing.assert_array_equal(to_numpy(loss), expected)
    np.testing.assert_array_equal(to_numpy(gradient), np.zeros((2, 2)))


@one_graph
@problems
@pytest.mark.parametrize("chunk_bytes", [8, 1 << 20], ids=["chunks", "one chunk"])
@pytest.mark.parametrize("in_forward", [False, True])
def test_linear(target, weight, chunk_bytes, in_forward, backend, run):
    labels, weights = to_tensor(target), to_tensor(weight)

    def loss(hidden, matrix):
        return ms_ce.linear_cross_entropy(
            hidden,
            matrix,
            labels,
            weight=weights,
            backend=backend,
            chunk_bytes=chunk_bytes,
            gradient_in_forward=in_forward,
        )

    expected = reference.linear_cross_entropy(LOGITS, np.eye(2), target, None, weight).loss
    check(run, loss, [LOGITS, np.eye(2, dtype=np.float32)], expected)


@one_graph
@problems
def test_over_ranks(target, weight, run):
    """The division that ms_ce.parallel makes after its collectives."""
    expected = reference.cross_entropy(LOGITS, target, weight).loss
    rows = reference.cross_entropy(LOGITS, target, weight, reduction="sum").loss
    divide = Divide(2)

    def mean(loss_sum, total_weight):
        return divide(loss_sum, total_weight, loss_sum, total_weight)

    check(run, mean, [np.float32(rows), np.float32(0.0)], expected)


def test_second_derivative_is_zero(backend):
    """Not nan: what is 0 has derivative 0."""

    def loss(logits):
        return ms_ce.cross_entropy(logits, Tensor(TARGET), Tensor(WEIGHT), backend=backend)

    def slope(logits):
        return (ms.grad(loss)(logits) * Tensor(LOGITS + 1.0)).sum()

    second = ms.jit(ms.grad(slope))(Tensor(LOGITS))
    np.testing.assert_array_equal(to_numpy(second), np.zeros((2, 2)))


def test_total_weight_under_vmap_where_nothing_of_it_is_mapped():
    target, weight = Tensor(np.array([1, -100, 0, 1], np.int32)), Tensor([2.0, 3.0])

    def scaled(x, target, weight):
        return x * total_weight(target, 4, weight, None, -100, ms.float32)

    actual = ms.vmap(scaled, (0, None, None))(Tensor([1.0, 2.0]), target, weight)
    np.testing.assert_array_equal(to_numpy(actual), [8.0, 16.0])
