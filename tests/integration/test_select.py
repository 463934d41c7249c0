"""A choice between tensors in a graph, of constants too: MindSpore 2.9 makes a scalar of some of these."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

import ms_ce
from ms_ce.ops.graph import select
from tests.integration.conftest import to_numpy

ROWS = np.array([[2.0, 3.0, 0.0], [1.0, 0.0, 1.0]])
SCALARS = (0.0, 1.5, np.nan, -np.inf)


@ops.constexpr
def rows():
    return Tensor(ROWS)


@pytest.mark.parametrize("first", [*SCALARS, "rows"])
@pytest.mark.parametrize("second", [*SCALARS, "rows"])
@pytest.mark.parametrize("constant", [True, False])
def test_choice(first, second, constant):
    def chosen(given):
        taken = rows() if constant else given
        one = taken if first == "rows" else first
        return select(taken == 0, one, taken if second == "rows" else second)

    one, other = (ROWS if each == "rows" else each for each in (first, second))
    expected = np.where(ROWS == 0, one, other)
    for function in (chosen, ms.jit(chosen)):
        np.testing.assert_array_equal(to_numpy(function(Tensor(ROWS))), expected)


@pytest.mark.parametrize("dtype", [ms.float32, ms.float64])
@pytest.mark.parametrize("divisor", [0.0, 3.0])
def test_choice_of_scalars(dtype, divisor):
    @ops.constexpr
    def scalar(value):
        return Tensor(value, dtype)

    def chosen():
        return select(scalar(divisor) == 0, scalar(0.1), scalar(0.7))

    for found in (chosen(), ms.jit(chosen)()):
        assert found.dtype == dtype
        assert found.shape == ()
        assert to_numpy(found) == to_numpy(Tensor(0.1 if divisor == 0 else 0.7, dtype))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_loss_of_constants(reduction, backend):
    logits, target = Tensor(ROWS.astype(np.float32)), Tensor([2, -100], ms.int32)
    row_weight = Tensor([0.5, 1.0])

    def loss():
        return ms_ce.cross_entropy(
            logits, target, reduction=reduction, row_weight=row_weight, backend=backend
        )

    row = 0.5 * (np.log(np.exp(ROWS[0]).sum()) - ROWS[0, 2])
    expected = {"none": [row, 0.0], "sum": row, "mean": row / 0.5}[reduction]
    for function in (loss, ms.jit(loss)):
        np.testing.assert_allclose(to_numpy(function()), expected, rtol=1e-6)
