"""Class targets: forward, backward, and both in one call, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.expected import OPTIONS, Options, check_gradient, check_loss, check_lse, within
from tests.ascend.operators import Run, backward, decode, encode, forward, forward_grad, model
from tests.ascend.problems import DTYPES, SHAPES, make, name_of


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward(dtype, shape, options):
    problem, logits, target = make(shape, dtype, options)
    run = Run(cores=shape[2])
    arguments = (logits, target, problem.weight, dtype)
    out, _ = forward(*arguments, reduction=options.reduction, run=run, **options.attributes())
    check_loss(problem, out["loss"])
    check_lse(problem, out["lse"])
    total = problem.result().total_weight
    within(out["total_weight"], total, 1e-6 * np.abs(total), "total_weight")
    assert out["error"].tolist() == [0, -1, -1, 0, 0, 0, 0, 0]
    gradient, _ = backward(
        problem.grad_loss,
        logits,
        target,
        problem.weight,
        out["lse"],
        out["total_weight"],
        dtype,
        reduction=options.reduction,
        run=run,
        **options.attributes(),
    )
    check_gradient(problem, decode(gradient, dtype), dtype)


@pytest.mark.parametrize("options", [n for n in OPTIONS if not n.startswith("none")])
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_with_gradient(dtype, shape, options):
    options = OPTIONS[options]
    problem, logits, target = make(shape, dtype, options)
    problem.grad_loss = np.float64(1.0)
    out, _ = forward_grad(
        logits,
        target,
        problem.weight,
        dtype,
        reduction=options.reduction,
        run=Run(cores=shape[2]),
        **options.attributes(),
    )
    check_loss(problem, out["loss"])
    check_lse(problem, out["lse"])
    total = problem.result().total_weight
    within(out["total_weight"], total, 1e-6 * np.abs(total), "total_weight")
    check_gradient(problem, decode(out["grad_logits"], dtype), dtype)


# Rows that stay in fp32 between the passes of MsCeForwardGrad: several groups of 8 for a core, one tile and many, a
# length that is no multiple of 64.
KEPT_SHAPES = ((41, 12301, 2), (19, 20000, 2), (3, 32001, 1))
KEPT_OPTIONS = {
    "mean": Options(),
    "sum-smooth": Options("sum", label_smoothing=0.3, ignore_index=7),
    "mean-smooth-z": Options(label_smoothing=0.1, z_loss=0.01, target_dtype="int64"),
    "sum-weight-z": Options("sum", z_loss=0.02, weighted=True),
}


@pytest.mark.parametrize("options", KEPT_OPTIONS.values(), ids=KEPT_OPTIONS)
@pytest.mark.parametrize("shape", KEPT_SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_stay(dtype, shape, options):
    kept = model(dtype).problem("forward_grad", *shape[:2], labelSmoothing=options.label_smoothing)
    assert model(dtype).tiling(kept).keepsRow
    problem, logits, target = make(shape, dtype, options, ignored=0.4)
    problem.grad_loss = np.float64(1.0)
    given = {"reduction": options.reduction, **options.attributes()}
    out, _ = forward_grad(logits, target, problem.weight, dtype, run=Run(cores=shape[2]), **given)
    check_loss(problem, out["loss"])
    check_lse(problem, out["lse"])
    check_gradient(problem, decode(out["grad_logits"], dtype), dtype)


def test_the_gradient_of_a_row_that_stays_does_not_lose_by_its_offset():
    """It is exp(x - m) over its sum: nothing of the size of lse is rounded."""
    shape, options = (4, 20000, 2), Options("sum")
    logits = np.random.default_rng(3).integers(-20, 20, shape[:2]) / 4.0
    plain, moved = (
        forward_grad(
            encode(logits + offset, "float32"),
            np.zeros(4, np.int32),
            None,
            "float32",
            reduction=options.reduction,
            run=Run(cores=shape[2]),
        )[0]["grad_logits"]
        for offset in (0.0, 10000.0)
    )
    np.testing.assert_array_equal(moved, plain)
