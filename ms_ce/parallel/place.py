"""Where the classes lie when each rank of a group holds a block of them."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from ms_ce._versions import zeros_like
from ms_ce.backend import device_target
from ms_ce.ops.graph import select
from ms_ce.ops.precision import UncastCell
from ms_ce.ops.rows import OneDevice
from ms_ce.parallel.blocks import checked_blocks, class_block
from ms_ce.parallel.config import check_positive
from ms_ce.parallel.exchange import AllStatistics, Group


class _Gathered(UncastCell):
    """A block of rows of every rank to the rows of all, in one collective, without a gradient."""

    def __init__(self, group: Group):
        super().__init__()
        # The CPU engine sums and gathers float32 and float16 only, and the slots of AllStatistics are sums.
        self.widen, self.statistics = device_target() == "CPU", AllStatistics(group)

    def construct(self, rows):
        sent = ops.cast(rows, ms.float32) if self.widen else rows
        return ops.reshape(self.statistics(sent), (-1, rows.shape[1]))


class _Scattered(UncastCell):
    """The sum over a group of (rows of all, width), of which each rank gets its block of rows."""

    def __init__(self, group: Group):
        super().__init__()
        self.rank, self.size = group.rank, group.size
        # The CPU engine has no ReduceScatter.
        self.by_sum = device_target() == "CPU"
        self.collective: Any = None
        if self.size > 1:
            collective = ops.AllReduce if self.by_sum else ops.ReduceScatter
            self.collective = collective(group=group.name)

    def construct(self, rows):
        if self.size == 1:
            return rows
        summed = self.collective(rows)
        if not self.by_sum:
            return summed
        return ops.reshape(summed, (self.size, -1, rows.shape[1]))[self.rank]


class VocabularyBlocks(OneDevice):
    """A block of the classes on each rank of a group. `tensor` names what holds them, for messages."""

    def __init__(
        self,
        op: str,
        tensor: str,
        group: Group,
        class_blocks,
        num_classes: int | None,
        sequence_parallel: bool = False,
    ):
        super().__init__()
        blocks = checked_blocks(op, class_blocks, group.size)
        if num_classes is not None:
            check_positive(f"{op}: num_classes", num_classes)
        self.named = (op, tensor, group.rank, group.size, blocks, num_classes)
        self.largest_block = None if blocks is None else max(blocks)
        self.sequence_parallel, self.ranks = sequence_parallel, group.size
        self.all_rows, self.own_rows = _Gathered(group), _Scattered(group)
        self.reduce: Any = ops.AllReduce(group=group.name) if group.size > 1 else None
        # On CPU the statistics cross as two float32 each, so that they arrive in float64.
        self.in_two_parts = device_target() == "CPU"
        self.gather, self.concatenate = AllStatistics(group), ops.Concat(axis=1)

    def block_of(self, columns):
        return class_block(*self.named, columns)

    def columns(self, held):
        return self.largest_block or held

    def whole(self, statistics):
        """A block of nothing but -inf adds nothing to lse and to the entropy."""
        blocks, width = self.exchanged(statistics), statistics.shape[1]
        lse, rest = blocks[:, :, 0], ops.ReduceSum()(blocks[:, :, 1:3], 0)
        top = ops.ReduceMax()(lse, 0)
        log_sum = ops.log(ops.ReduceSum()(ops.exp(lse - top), 0))
        if width == 3:
            return ops.stack((top + log_sum, rest[:, 0], rest[:, 1]), 1)
        # Of a block with share s of the probability and entropy h the whole row's has s·(h - log s).
        log_share = lse - (top + log_sum)
        parts = ops.exp(log_share) * (blocks[:, :, 3] - log_share)
        parts = ops.select(log_share == -np.inf, zeros_like(parts), parts)
        return ops.stack((top + log_sum, rest[:, 0], rest[:, 1], ops.ReduceSum()(parts, 0)), 1)

    def joined(self, rows):
        """A block of nothing but -inf adds nothing, and all such blocks have an lse of -inf."""
        blocks = self.exchanged(rows)
        sums, lse = ops.ReduceSum()(blocks[:, :, :-1], 0), blocks[:, :, -1]
        top = ops.ReduceMax()(lse, 0)
        top = select(top == -np.inf, 0.0, top)
        log_sum = top + ops.log(ops.ReduceSum()(ops.exp(lse - top), 0))
        return ops.concat((sums, ops.expand_dims(log_sum, 1)), 1)

    def exchanged(self, statistics):
        """(rows, width) of this rank to (ranks, rows, width)."""
        if not self.in_two_parts:
            return self.gather(statistics)
        high = ops.cast(statistics, ms.float32)
        rest = ops.cast(statistics - ops.cast(high, ms.float64), ms.float32)
        low = ops.masked_fill(rest, ops.logical_not(ops.isfinite(high)), 0.0)
        both = self.gather(self.concatenate((high, low)))
        width = statistics.shape[1]
        return ops.cast(both[:, :, :width], ms.float64) + ops.cast(both[:, :, width:], ms.float64)

    def rows(self, given):
        return given * self.ranks if self.sequence_parallel else given

    def gathered(self, hidden):
        return self.all_rows(hidden) if self.sequence_parallel else hidden

    def collected(self, grad_hidden):
        if self.sequence_parallel:
            return self.own_rows(grad_hidden)
        return grad_hidden if self.reduce is None else self.reduce(grad_hidden)
