"""Blocks of a sharded vocabulary: their statistics combine to the loss of the whole, their gradients are its
columns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.ascend.expected import OPTIONS, check_gradient, check_loss, within
from tests.ascend.operators import Run, backward, decode, partial
from tests.ascend.problems import DTYPES, make

SHAPES = ((4, 6, 2), (70, 130, 7), (9, 4100, 3), (3, 32000, 40), (0, 8, 2))


def _cuts(classes: int, shards: int) -> list[int]:
    """Borders of blocks of different widths."""
    return [classes * i * (i + 1) // (shards * (shards + 1)) for i in range(shards + 1)]


@pytest.mark.parametrize("options", ["none", "none-smooth", "none-all"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_make_the_whole(dtype, shards, shape, options):
    options = OPTIONS[options]
    problem, logits, target = make(shape, dtype, options)
    _, classes, cores = shape
    run = Run(cores=cores)
    kept = problem.kept()
    cuts = _cuts(classes, shards)
    blocks = [np.ascontiguousarray(logits[:, a:b]) for a, b in itertools.pairwise(cuts)]
    parts = []
    for first, block in zip(cuts[:-1], blocks, strict=True):
        place = {"classOffset": first, "totalClasses": classes}
        out, _ = partial(
            block, target, problem.weight, dtype, run=run, **options.attributes(), **place
        )
        assert out["error"][0] == 0
        parts.append(out)
    local = np.stack([p["lse"] for p in parts]).astype(np.float64)
    top = local.max(0)
    lse = np.where(kept, top + np.log(np.exp(local - top).sum(0)), 0.0)
    dot = np.sum([p["dot"] for p in parts], 0, np.float64)
    mass = np.sum([p["mass"] for p in parts], 0, np.float64)
    loss = np.where(kept, mass * lse - dot, 0.0) + options.z_loss * lse**2
    check_loss(problem, loss)
    gradients = []
    for first, block in zip(cuts[:-1], blocks, strict=True):
        place = {"classOffset": first, "totalClasses": classes}
        gradient, _ = backward(
            problem.grad_loss,
            block,
            target,
            problem.weight,
            lse,
            np.ones(1),
            dtype,
            reduction="none",
            run=run,
            **options.attributes(),
            **place,
        )
        gradients.append(decode(gradient, dtype))
    check_gradient(problem, np.concatenate(gradients, 1), dtype)


def test_target_logit_where_owned():
    """Without smoothing and weights, dot is the target's logit and mass is 1 in the block that holds it."""
    logits = np.arange(12, dtype=np.float32).reshape(3, 4)
    target = np.array([4, 9, -100], np.int32)
    out, _ = partial(logits, target, None, "float32", classOffset=4, totalClasses=10)
    within(out["dot"], [logits[0, 0], 0.0, 0.0], 0.0, "dot")
    within(out["mass"], [1.0, 0.0, 0.0], 0.0, "mass")


@pytest.mark.parametrize("classes", [40, 70, 2000, 20000])
def test_block_of_minus_infinity(classes):
    logits = np.full((2, classes), -np.inf, np.float32)
    target = np.array([classes + 5, classes + 10], np.int32)
    out, _ = partial(logits, target, None, "float32", totalClasses=2 * classes)
    assert np.isneginf(out["lse"]).all()
    assert (out["dot"] == 0).all()


def test_bad_target_is_reported_by_every_block():
    logits = np.zeros((2, 4), np.float32)
    out, _ = partial(logits, np.array([3, 12], np.int64), None, "float32", totalClasses=12)
    assert out["error"].tolist() == [1, 1, 0, 12, 0, 0, 0, 0]
    assert np.isnan(out["lse"]).tolist() == [False, True]
