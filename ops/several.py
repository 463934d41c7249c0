"""Several losses whose rows share a call: their sum, each with a factor that its rows' weights carry.

So one sweep makes the gradients of all. The losses are the first axis of the hidden states and of whatever is per row.
"""

from __future__ import annotations

import numpy as np
from mindspore import nn, ops
from mindspore.ops import operations as P

from ms_ce._versions import zeros_like
from ms_ce.ops.derivative import differentiable, without_gradient
from ms_ce.ops.graph import known_shape, select

_sum = P.ReduceSum()


class _OfFactors(nn.Cell):
    """Σ_d factor_d·sum_d, in which the factors were constants, as the function of them that it is."""

    def construct(self, total, factors, sums):
        return total

    def bprop(self, total, factors, sums, out, dout):
        slope = select(factors == 0, 0.0, sums)
        return dout, slope * dout.astype(slope.dtype), zeros_like(sums)


class _NanWhere(nn.Cell):
    """nan where `bad` is not 0, which changes nobody's gradient."""

    def construct(self, value, bad):
        exact = value.astype(bad.dtype)
        return select(bad == 0, exact, np.nan).astype(value.dtype)

    def bprop(self, value, bad, out, dout):
        return dout, zeros_like(bad)


_of_factors, nan_where = differentiable(_OfFactors()), differentiable(_NanWhere())


def by_loss(rows, count):
    """The sums of `count` losses, from numbers of their rows."""
    shape = known_shape(rows)
    if shape is not None and 0 in shape:
        return ops.zeros((count,), rows.dtype)
    return _sum(rows.reshape((count, -1)), 1)


def spread(factors, rows_rank):
    """factors (D,) beside numbers of rows, whose first axis are the losses."""
    return factors.reshape((-1,) + (1,) * (rows_rank - 1))


def weighted(row_weight, factors):
    """The rows' weights times their loss's factor, which is a constant here."""
    return row_weight * spread(without_gradient(factors), row_weight.ndim)


def known(sums, factors):
    """The sums of the losses, but nan for a factor of 0, of which the rows are left out."""
    return select(factors == 0, np.nan, sums)


def finished(total, rows, factors, of_factors: bool):
    """(Σ_d factor_d·sum_d, sum_d), from the sum of rows of `weighted` weights and those rows; nan for a factor of 0.
    `of_factors` says whether the factors have a gradient."""
    constant = without_gradient(factors)
    sums = by_loss(without_gradient(rows), factors.shape[0]).astype(factors.dtype)
    sums = known(sums / select(constant == 0, 1.0, constant), constant)
    if of_factors:
        total = _of_factors(total, factors, sums)
    return total, sums
