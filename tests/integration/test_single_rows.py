"""Logits of shape (C): the loss of the one row is a scalar under every reduction, and so is its upstream gradient."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import ms_ce
from ms_ce import reference
from tests.integration.conftest import to_numpy, to_tensor
from tests.support.tolerances import check_close, tolerance

LOGITS, WEIGHT = np.array([-1.0, -2.0, -0.5]), np.array([1.0, 2.0, 3.0])
UPSTREAM = np.array(-1.5)
INDEX, PROBABILITIES = np.array(1, np.int32), np.array([0.2, 0.5, 0.3])
LOSSES = {
    "cross entropy": (ms_ce.cross_entropy, reference.cross_entropy_grad, INDEX, {}),
    "smoothing": (
        ms_ce.cross_entropy,
        reference.cross_entropy_grad,
        INDEX,
        {"label_smoothing": 0.2},
    ),
    "probabilities": (ms_ce.cross_entropy, reference.cross_entropy_grad, PROBABILITIES, {}),
    "nll": (ms_ce.nll_loss, reference.nll_loss_grad, INDEX, {}),
}


def _problem(name, reduction, backend):
    """(the loss times an upstream gradient, its arguments, positions of the real ones, the reference's gradients)."""
    function, gradient, target, options = LOSSES[name]
    options = {"reduction": reduction, **options}

    def weighed(logits, weight, target, upstream):
        return function(logits, target, weight, backend=backend, **options) * upstream

    def gradients(logits, weight, target, upstream):
        made = gradient(logits, target, weight, **options, grad_loss=upstream)
        return [made.logits, made.weight] + ([] if made.target is None else [made.target])

    positions = (0, 1, 2) if target.dtype.kind == "f" else (0, 1)
    return weighed, [LOGITS, WEIGHT, target, UPSTREAM], positions, gradients


def _direction(position):
    return np.array([[1.0, -0.5, 2.0], [0.25, 1.5, -1.0], [-2.0, 0.5, 1.0]][position])


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_first_derivatives(name, reduction, backend, run):
    weighed, points, positions, gradients = _problem(name, reduction, backend)
    actual = run(ms.grad(weighed, positions), *(to_tensor(point, "float64") for point in points))
    for got, wanted in zip(actual, gradients(*points), strict=True):
        check_close(to_numpy(got), wanted, "float64", tolerance(backend, "float64"), name)


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("first", [0, 1, 2], ids=["logits", "weight", "target"])
def test_second_derivatives(first, name, reduction, backend, run):
    """Of Σ direction·(gradient by argument `first`), by every argument: the Hessian is symmetric, so that it is the
    derivative of each gradient along the direction; by the upstream gradient it is linear."""
    weighed, points, positions, gradients = _problem(name, reduction, backend)
    if first not in positions:
        pytest.skip("class indices have no gradient")
    direction = _direction(first)

    def slope(logits, weight, target, upstream, direction):
        return (ms.grad(weighed, first)(logits, weight, target, upstream) * direction).sum()

    tensors = [to_tensor(array, "float64") for array in (*points, direction)]
    actual = run(ms.grad(slope, (*positions, 3)), *tensors)
    step = 1e-6
    sides = []
    for sign in (1.0, -1.0):
        moved = list(points)
        moved[first] = points[first] + sign * step * direction
        sides.append(gradients(*moved))
    expected = [(after - before) / (2 * step) for after, before in zip(*sides, strict=True)]
    place = positions.index(first)
    expected.append((gradients(*points[:3], np.array(1.0))[place] * direction).sum())
    bound = tolerance(backend, "float64")._replace(absolute=1e-5)
    for got, wanted in zip(actual, expected, strict=True):
        check_close(to_numpy(got), wanted, "float64", bound, name)


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["index", "probabilities"])
def test_statistics(target, backend, run):
    """Loss and z-loss of the statistics differentiate alike."""

    def total(logits):
        stats = ms_ce.cross_entropy_with_stats(
            logits, to_tensor(target), reduction="none", z_loss=0.1, backend=backend
        )
        return stats[0] + 2.0 * stats[3]

    def slope(logits, direction):
        return (ms.grad(total)(logits) * direction).sum()

    logits, direction = to_tensor(LOGITS, "float64"), np.array([1.0, -0.5, 2.0])
    first = run(ms.grad(total), logits)
    second = run(ms.grad(slope), logits, to_tensor(direction))
    plain = reference.cross_entropy_grad(LOGITS, target, z_loss=0.3).logits
    bound = tolerance(backend, "float64")
    check_close(to_numpy(first), plain, "float64", bound)
    expected = reference.cross_entropy_hvp(direction, LOGITS, target, z_loss=0.3)
    check_close(to_numpy(second), expected, "float64", bound)
