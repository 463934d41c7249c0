"""What the losses of the `ascend` backend share: operators, and logits as the rows (N, C) that its kernels take."""

from __future__ import annotations

import functools

from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from ms_ce.ops.ascend.operators import custom
from ms_ce.ops.graph import is_class_index, select


@functools.lru_cache(maxsize=32)
def built(name: str, per_row: bool) -> ops.Custom:
    """The operator, built once."""
    return custom(name, per_row)


# In a graph it runs while that is compiled, and the graph holds what it returns.
operator = constexpr(built)


@constexpr
def no_weight() -> Tensor:
    """Stands for an absent weight; no kernel reads it."""
    return Tensor([1.0], mstype.float32)


@constexpr
def require_supported(dtype) -> None:
    if dtype == mstype.float64:
        raise TypeError(
            "ms_ce: the ascend backend has no float64; cast the logits or use backend='composed'"
        )


@constexpr
def _class_axis_second(rank: int) -> tuple[int, ...]:
    return (0, rank - 1, *range(1, rank - 1))


@constexpr
def _class_axis_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def as_rows(x):
    """(N, C, d1…dK) or (C) as rows (n, C)."""
    if x.ndim == 1:
        return x.reshape(1, -1)
    if x.ndim > 2:
        return ops.transpose(x, _class_axis_last(x.ndim)).reshape(-1, x.shape[1])
    return x


def from_rows(rows, shape):
    """The inverse of as_rows."""
    if len(shape) > 2:
        last = rows.reshape(shape[:1] + shape[2:] + shape[1:2])
        return ops.transpose(last, _class_axis_second(len(shape)))
    # Rows stay as they are: a shape known at compile time is that of the whole in a graph that is partitioned later.
    return rows if len(shape) == 2 else rows.reshape(shape)


def rows_shape(shape):
    return () if len(shape) == 1 else shape[:1] + shape[2:]


def prepared(logits, target, options):
    """Logits as rows, scaled and capped as the options say."""
    require_supported(logits.dtype)
    x = as_rows(logits)
    if options.softcap or options.logit_scale != 1.0:
        x = options.logit_scale * ops.cast(x, mstype.float32)
    if options.softcap:
        if is_class_index(target.dtype):  # what ignored rows hold would reach their gradient
            keep = ops.not_equal(target.reshape((-1, 1)).astype(mstype.int64), options.ignore_index)
            x = select(keep, x, 0.0)
        x = options.softcap * ops.tanh(x / options.softcap)
    return x


def class_rows(target):
    rows = target.reshape(-1)
    return ops.cast(rows, mstype.int32) if rows.dtype == mstype.uint8 else rows
