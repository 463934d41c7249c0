"""Probability targets: forward and backward against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.expected import (
    EPSILON,
    OPTIONS,
    ROUNDINGS,
    check_gradient,
    check_loss,
    check_lse,
    reference,
    within,
)
from tests.ascend.operators import Run, backward, decode, empty, encode, forward
from tests.ascend.problems import DTYPES, SHAPES, make, name_of

# Options that mean nothing for probabilities (ignore_index, the dtype of class indices) are left out.
CHOSEN = (
    "mean",
    "none",
    "mean-weight",
    "none-smooth",
    "mean-smooth-weight",
    "sum-z-ignore0",
    "none-all",
)


@pytest.mark.parametrize("options", CHOSEN)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward(dtype, shape, options):
    options = OPTIONS[options]
    problem, logits, target = make(shape, dtype, options, probabilities=True)
    run = Run(cores=shape[2])
    attributes = options.attributes()
    out, _ = forward(
        logits, target, problem.weight, dtype, reduction=options.reduction, run=run, **attributes
    )
    check_loss(problem, out["loss"])
    check_lse(problem, out["lse"])
    assert out["total_weight"] == shape[0]
    weight = 1.0 if problem.weight is None else problem.weight
    mass = (weight * problem.target_rows()).sum(1)
    within(out["mass"], mass, ROUNDINGS * EPSILON * mass, "mass")
    gradient, _ = backward(
        problem.grad_loss,
        logits,
        target,
        problem.weight,
        out["lse"],
        out["total_weight"],
        dtype,
        mass=out["mass"],
        reduction=options.reduction,
        run=run,
        **attributes,
    )
    check_gradient(problem, decode(gradient, dtype), dtype)


@pytest.mark.parametrize("classes", [40, 300, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_infinity(dtype, classes):
    """A -inf logit costs nothing where the probability is 0, and everything where it is not."""
    random = np.random.default_rng(classes)
    logits = random.normal(size=(6, classes)).astype(np.float32)
    target = random.random((6, classes)).astype(np.float32)
    logits[:, 3] = -np.inf
    target[:4, 3] = 0.0
    coded, coded_target = encode(logits, dtype), encode(target, dtype)
    out, _ = forward(coded, coded_target, None, dtype, reduction="none", run=Run(cores=2))
    arguments = (decode(coded, dtype)[:4], decode(coded_target, dtype)[:4])
    expected = reference.cross_entropy(*arguments, reduction="none").loss
    within(out["loss"][:4], expected, 1e-6 * classes, "loss")
    assert np.all(np.isposinf(out["loss"][4:]))


def test_outputs_are_not_preset():
    """The check above would accept an output that nobody wrote if outputs started as zeros."""
    assert np.isnan(empty(3, "float32")).all()
