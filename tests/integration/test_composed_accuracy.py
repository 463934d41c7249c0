"""The composed backend is as exact as the plain formula in the dtype it computes in: x - max, exp, sum, log.

The bound is that formula's own error in numpy, and what MindSpore's float32 exp and log may be off beside numpy's
(8.2e-6 relative and 1.8e-6, measured on CPU; its float64 ones are numpy's to one bit).
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import ms_ce
from ms_ce import reference
from tests.integration.conftest import to_numpy, to_tensor

PRIMITIVES = {"float32": 8.2e-6, "float64": 4 * 2.0**-52}
SHAPES = [(64, 10, 2.0), (16, 1000, 2.0), (8, 100, 50.0), (4, 4000, 0.1), (8, 50, 1e4)]


def _plain(logits, target):
    """(losses, gradients) by numpy in logits' dtype."""
    rows = np.arange(len(target))
    moved = logits - logits.max(1, keepdims=True)
    e = np.exp(moved)
    total = e.sum(1, keepdims=True)
    gradient = e / total
    gradient[rows, target] -= 1
    return (np.log(total[:, 0]) - moved[rows, target]), gradient


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("dtype", PRIMITIVES)
@pytest.mark.parametrize(("rows", "classes", "scale"), SHAPES)
def test_as_exact_as_the_plain_formula(rows, classes, scale, dtype, run):
    random = np.random.default_rng(0)
    logits = (random.normal(size=(rows, classes)) * scale).astype(dtype)
    target = random.integers(0, classes, rows).astype(np.int32)
    options = {"reduction": "none", "z_loss": 1e-4}
    labels = to_tensor(target)

    def loss(logits):
        return ms_ce.cross_entropy(logits, labels, reduction="none", backend="composed")

    def total(logits):
        return loss(logits).sum()

    def with_stats(logits):
        stats = ms_ce.cross_entropy_with_stats(logits, labels, backend="composed", **options)
        return stats[2]

    tensor = to_tensor(logits)
    truth = reference.cross_entropy(logits, target, reduction="none")
    slope = reference.cross_entropy_grad(
        logits, target, reduction="none", grad_loss=np.ones(rows)
    ).logits
    plain, plain_slope = _plain(logits, target)
    wide = np.abs(truth.loss).max() + np.abs(logits).max()
    slack = PRIMITIVES[dtype] + 2 * np.finfo(dtype).eps * wide
    if dtype == "float64":  # the reference is the same formula in the same dtype
        slack = np.finfo(dtype).eps * (8 + classes / 8 + 2 * wide)
    for got, wanted, formula in (
        (run(loss, tensor), truth.loss, plain),
        (run(ms.grad(total), tensor), slope, plain_slope),
        (run(with_stats, tensor), truth.lse, truth.lse),
    ):
        allowed = np.abs(formula - wanted).max() + slack
        assert np.abs(to_numpy(got) - wanted).max() <= allowed


LARGE = np.array([[3e19, 1e19]], np.float32)


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
def test_z_loss_overflows_no_earlier_than_its_value(backend, run):
    """z·lse² is 9e34 although lse² has no float32; its gradient 2·z·lse·p."""
    labels = ms.Tensor([0], ms.int32)

    def loss(logits, scale):
        return scale * ms_ce.cross_entropy(logits, labels, z_loss=1e-4, backend=backend)

    tensors = ms.Tensor(LARGE), ms.Tensor(1e15, ms.float32)
    value = run(loss, ms.Tensor(LARGE), ms.Tensor(1.0, ms.float32))
    np.testing.assert_allclose(to_numpy(value), 9e34, rtol=1e-5)
    gradient = run(ms.grad(loss), *tensors)
    np.testing.assert_allclose(to_numpy(gradient), [[6e30, 0.0]], rtol=1e-5)


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("chunk_bytes", [8, 1 << 20], ids=["chunks", "one chunk"])
@pytest.mark.parametrize("in_forward", [False, True])
def test_z_loss_of_the_linear_loss(chunk_bytes, in_forward, backend, run):
    labels = ms.Tensor([0, 0], ms.int32)

    def loss(hidden, matrix):
        return ms_ce.linear_cross_entropy(
            hidden,
            matrix,
            labels,
            z_loss=1e-4,
            backend=backend,
            chunk_bytes=chunk_bytes,
            gradient_in_forward=in_forward,
        )

    hidden = np.concatenate([LARGE, LARGE])
    tensors = ms.Tensor(hidden), ms.Tensor(np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(to_numpy(run(loss, *tensors)), 9e34, rtol=1e-5)
    gradient = to_numpy(run(ms.grad(loss), *tensors))
    np.testing.assert_allclose(gradient, [[3e15, 0.0]] * 2, rtol=1e-5)
