"""The order of pipes and blocks must not matter: pipes hold back whatever no flag forces, blocks run in falling order,
and every output stays the same to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.expected import OPTIONS
from tests.ascend.host_model import ADVERSARIAL
from tests.ascend.operators import (
    Run,
    backward,
    forward,
    forward_grad,
    nll_backward,
    nll_forward,
    partial,
)
from tests.ascend.problems import SMALL_SHAPES, make, name_of


def everything(dtype, shape, options, run, values=None):
    """Outputs of every operator on one problem, with logits of these values."""
    problem, logits, target = make(shape, dtype, options, logits=values)
    _, _, probabilities = make(shape, dtype, options, probabilities=True, logits=values)
    weight, attributes, chosen = (
        problem.weight,
        options.attributes(),
        {"reduction": options.reduction, "run": run},
    )
    saved, _ = forward(logits, target, weight, dtype, **chosen, **attributes)
    outputs = [*saved.values()]
    statistics = (saved["lse"], saved["total_weight"])
    outputs.append(
        backward(
            problem.grad_loss, logits, target, weight, *statistics, dtype, **chosen, **attributes
        )[0]
    )
    saved, _ = forward(logits, probabilities, weight, dtype, **chosen, **attributes)
    outputs += saved.values()
    statistics, mass = (saved["lse"], saved["total_weight"]), saved["mass"]
    outputs.append(
        backward(
            problem.grad_loss,
            logits,
            probabilities,
            weight,
            *statistics,
            dtype,
            mass=mass,
            **chosen,
            **attributes,
        )[0]
    )
    outputs += partial(logits, target, weight, dtype, run=run, **attributes)[0].values()
    ignore = {"ignoreIndex": options.ignore_index}
    saved, _ = nll_forward(logits, target, weight, dtype, **chosen, **ignore)
    outputs += saved.values()
    outputs.append(
        nll_backward(
            problem.grad_loss,
            logits,
            target,
            weight,
            saved["total_weight"],
            dtype,
            **chosen,
            **ignore,
        )[0]
    )
    if options.reduction != "none":
        outputs += forward_grad(logits, target, weight, dtype, **chosen, **attributes)[0].values()
    return outputs


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("options", ["mean", "mean-all", "none-all"])
@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pipes(dtype, shape, options):
    options = OPTIONS[options]
    expected = everything(dtype, shape, options, Run(cores=shape[2]))
    for lazy in ADVERSARIAL:
        assert_same(
            everything(dtype, shape, options, Run(cores=shape[2], lazy_pipes=lazy)), expected
        )


@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=name_of)
def test_blocks(shape):
    expected = everything("bfloat16", shape, OPTIONS["mean-all"], Run(cores=shape[2]))
    assert_same(
        everything("bfloat16", shape, OPTIONS["mean-all"], Run(cores=shape[2], falling_order=True)),
        expected,
    )
