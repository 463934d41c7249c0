"""How a kernel finds the chip must not matter: conversions to 16 bits saturate or not, and a maximum of NaN and a
number may be either. NaN and inf come through all the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.expected import OPTIONS
from tests.ascend.host_model import CHIPS
from tests.ascend.operators import Run, backward, decode, encode, forward, forward_grad
from tests.ascend.problems import name_of
from tests.ascend.test_corners import PATHS
from tests.ascend.test_orders import assert_same, everything

SIXTEEN_BITS = ("float16", "bfloat16")


def not_numbers(shape) -> np.ndarray:
    """Logits with NaN in the second row, inf in the third where there is one, -inf in every fourth class."""
    logits = np.random.default_rng(7).normal(size=shape[:2])
    logits[:, 3::4] = -np.inf
    logits[1, 1] = np.nan
    logits[2 % len(logits), shape[1] - 1] = np.inf
    return logits


@pytest.mark.parametrize("options", ["mean", "none-all"])
@pytest.mark.parametrize("shape", PATHS, ids=name_of)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_every_output_is_the_same(dtype, shape, options):
    values, chosen = not_numbers(shape), OPTIONS[options]
    expected = everything(dtype, shape, chosen, Run(cores=shape[2]), values)
    for chip in CHIPS[1:]:
        run = Run(cores=shape[2], chip=chip)
        assert_same(everything(dtype, shape, chosen, run, values), expected)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("options", [{}, {"labelSmoothing": 0.25}], ids=["plain", "smoothed"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", PATHS, ids=name_of)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_gradient_of_a_bad_target_and_of_nan_is_nan(dtype, shape, weighted, options, chip):
    rows, classes, cores = shape
    logits = np.zeros((rows, classes))
    logits[0, 1] = np.nan
    target = np.zeros(rows, np.int32)
    target[1] = classes
    given = (encode(logits, dtype), target, np.ones(classes) if weighted else None, dtype)
    run = Run(cores=cores, chip=chip)
    saved, _ = forward(*given, run=run, reduction="sum", **options)
    assert np.isnan(saved["loss"]).all()
    assert np.isnan(saved["lse"]).tolist() == [True, True] + [False] * (rows - 2)
    statistics = (saved["lse"], saved["total_weight"])
    gradients = [
        backward(np.ones(1), *given[:3], *statistics, dtype, reduction="sum", run=run, **options)[
            0
        ],
        forward_grad(*given, reduction="sum", run=run, **options)[0]["grad_logits"],
    ]
    for gradient in gradients:
        nan = np.isnan(decode(gradient, dtype))
        assert nan.all(1).tolist() == nan.any(1).tolist() == [True, True] + [False] * (rows - 2)


@pytest.mark.parametrize("chip", CHIPS)
def test_a_gradient_too_large_for_float16_is_inf(chip):
    logits, target = np.zeros((8, 40), np.float16), np.zeros(8, np.int32)
    lse = np.full(8, np.log(40), np.float32)
    given = (np.full(1, 1e6), logits, target, None, lse, np.ones(1), "float16")
    gradient, _ = backward(*given, reduction="sum", run=Run(cores=1, chip=chip))
    assert np.isneginf(gradient[:, 0]).all()
    assert np.isfinite(gradient[:, 1:]).all()
