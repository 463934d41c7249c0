"""NLLLoss: forward and backward against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.expected import EPSILON, OPTIONS, SMALLEST, UNIT, reference, within
from tests.ascend.operators import Run, decode, nll_backward, nll_forward
from tests.ascend.problems import DTYPES, SHAPES, make, name_of

CHOSEN = ("mean", "sum-int64", "none", "mean-weight", "none-all")


@pytest.mark.parametrize("options", CHOSEN)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward(dtype, shape, options):
    options = OPTIONS[options]
    problem, log_prob, target = make(shape, dtype, options)
    run = Run(cores=shape[2])
    choice = {"reduction": options.reduction, "ignoreIndex": options.ignore_index}
    out, _ = nll_forward(log_prob, target, problem.weight, dtype, run=run, **choice)
    arguments = (problem.logits, target, problem.weight, options.ignore_index, options.reduction)
    with np.errstate(all="ignore"):
        loss, total_weight = reference.nll_loss(*arguments)
        expected = reference.nll_loss_grad(*arguments, grad_loss=problem.grad_loss).logits
    size = (
        np.abs(loss)
        if options.reduction == "none"
        else np.abs(problem.logits).max(initial=0.0) * max(total_weight, 1.0)
    )
    within(out["loss"], loss, 8 * EPSILON * size, "loss")
    within(out["total_weight"], total_weight, 4 * EPSILON * total_weight, "total_weight")
    assert out["error"][0] == 0
    gradient, _ = nll_backward(
        problem.grad_loss,
        log_prob,
        target,
        problem.weight,
        out["total_weight"],
        dtype,
        run=run,
        **choice,
    )
    within(
        decode(gradient, dtype),
        expected,
        (8 * EPSILON + UNIT[dtype]) * np.abs(expected) + SMALLEST[dtype],
        "gradient",
    )


@pytest.mark.parametrize("classes", [5, 40_000])
def test_bad_target_is_not_a_zero(classes):
    log_prob = np.zeros((6, classes), np.float32)
    target = np.array([0, 1, classes, -1, 2, -100], np.int64)
    out, _ = nll_forward(log_prob, target, None, "float32", reduction="none", run=Run(cores=2))
    assert np.isnan(out["loss"]).tolist() == [False, False, True, True, False, False]
    assert out["error"].tolist() == [2, 2, 0, classes, 0, 0, 0, 0]
    gradient, _ = nll_backward(
        np.ones(6), log_prob, target, None, out["total_weight"], "float32", reduction="none"
    )
    assert np.isnan(gradient).all(1).tolist() == [False, False, True, True, False, False]
    expected = np.zeros((4, classes))
    expected[[0, 1, 2], [0, 1, 2]] = -1
    within(gradient[[0, 1, 4, 5]], expected, 0.0, "gradient of the others")
