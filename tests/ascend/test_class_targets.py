"""Class targets: forward, backward, and both in one call, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.expected import OPTIONS, check_gradient, check_loss, check_lse, within
from tests.ascend.operators import Run, backward, decode, forward, forward_grad
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
