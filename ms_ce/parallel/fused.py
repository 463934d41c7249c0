"""Row losses for MindSpore's partitioner, by the fused kernel of the `ascend` backend.

The kernel is an operator that the partitioner takes as local (self_define_shard): each rank computes the statistics of
its block in one read of the logits, ordinary primitives with strategies combine them, and the derivative calls the
backward kernel on the block. Every rank compiles its own graph, which is how the kernel learns its first class.
"""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
from mindspore import Layout, Tensor, ops
from mindspore.ops import constexpr

from ms_ce.ops import ascend
from ms_ce.ops.ascend.operators import custom
from ms_ce.ops.options import ClassBlock, Options
from ms_ce.ops.precision import UncastCell
from ms_ce.parallel.config import Mesh, class_rank, mesh_copies

# Stands for every row that is left out: the kernel neither reads nor counts it.
IGNORED = -1


@functools.lru_cache(maxsize=32)
def partial_operator(rows: int, classes: int, copies: int) -> ops.Custom:
    """The kernel of a block's statistics, whose outputs have a value of their own on every rank.

    Each is declared split over the rows only. That is how a column of one number a block can be made of it: added to
    zeros that are split over the classes, every rank keeps its own.
    """
    layout = Layout((rows, classes, copies), ("rows", "classes", "copies"))
    whole, by_row = layout("None"), layout("rows")
    operator = custom("MsCePartial", True)
    operator.add_prim_attr("self_define_shard", True)
    operator.shard(
        (layout("rows", "classes"), by_row, whole),
        (by_row, by_row, by_row, whole),
    )
    return operator


def _operator_of_mesh(op: str, rows: int, classes: int) -> ops.Custom:
    return partial_operator(rows, classes, mesh_copies(op, rows, classes))


def _first_class(op: str, rows: int, classes: int, class_count: int) -> int:
    """The first class of this rank's block."""
    return class_rank(op, rows, classes) * (class_count // classes)


# While a graph is compiled: only then is the context set under `AutoParallel`.
_operator_at_compile = constexpr(_operator_of_mesh, reuse_result=False)
_first_class_at_compile = constexpr(_first_class, reuse_result=False)


class FusedClassIndexRows(UncastCell):
    """Row losses `Σ_c w_c·q'_c·(lse - x_c) + z·lse²` for class indices.

    Inputs: logits (N, C) float16, bfloat16 or float32, from an operator that is split like them, since a derivative
    sees the block of such a value and the whole of any other; target (N,) int32, `IGNORED` for rows left out; mass
    (N, 1) float32, Σ_c w_c·q'_c, which needs no kernel and no communication.
    Output: row losses (N, 1), then lse (N, 1). Rows left out hold a number that means nothing.
    """

    def __init__(self, op: str, mesh: Mesh, options: Options, weight: tuple[float, ...] | None):
        super().__init__()
        block, column = (mesh.rows, mesh.classes), (mesh.rows, 1)
        self.op, self.mesh_rows, self.mesh_classes = op, mesh.rows, mesh.classes
        self.label_smoothing, self.z_loss = options.label_smoothing, options.z_loss
        self.options = Options(IGNORED, "none", options.label_smoothing, options.z_loss)
        self.has_weight = weight is not None
        self.weight = Tensor((1.0,) if weight is None else weight, ms.float32)
        self.no_value = Tensor(np.zeros((1, mesh.classes), np.float32))
        self.as_column = ops.ExpandDims().shard(((mesh.rows,),))
        # keep_alive keeps the sum with 0 from being simplified away.
        self.split = ops.Add().shard((column, (1, mesh.classes))).add_prim_attr("keep_alive", True)
        self.maximum = ops.ReduceMax(keep_dims=True).shard((block,))
        self.sum = ops.ReduceSum(keep_dims=True).shard((block,))
        self.exp, self.log = ops.Exp().shard((block,)), ops.Log().shard((column,))
        self.subtract_column = ops.Sub().shard((block, column))
        self.subtract_block = ops.Sub().shard((block, block))
        self.multiply_column = ops.Mul().shard((block, column))
        self.add = ops.Add().shard((column, column))
        self.subtract = ops.Sub().shard((column, column))
        self.multiply = ops.Mul().shard((column, column))
        self.scale = ops.Mul().shard((column, ()))
        self.zeros_like = ops.ZerosLike()

    def construct(self, logits, target, mass):
        kernel = _operator_at_compile(self.op, self.mesh_rows, self.mesh_classes)
        classes = logits.shape[1]
        first = _first_class_at_compile(self.op, self.mesh_rows, self.mesh_classes, classes)
        local = kernel(
            logits,
            target,
            self.weight,
            IGNORED,
            self.label_smoothing,
            self.has_weight,
            first,
            classes,
        )
        local_lse = self.by_block(local[0])
        top = self.maximum(local_lse, -1)
        log_sum = self.log(self.sum(self.exp(self.subtract_column(local_lse, top)), -1))
        # Σ w·q'·(x - top), so that a common offset of the logits costs no accuracy.
        moved = self.multiply_column(self.by_block(local[2]), top)
        dot = self.sum(self.subtract_block(self.by_block(local[1]), moved), -1)
        row_loss = self.subtract(self.multiply(mass, log_sum), dot)
        lse = self.add(top, log_sum)
        if self.z_loss:
            row_loss = self.add(row_loss, self.multiply(self.scale(lse, self.z_loss), lse))
        return row_loss, lse

    def by_block(self, values):
        """(N,), which differs between the ranks of a row, as (N, blocks)."""
        return self.split(self.as_column(values, 1), self.no_value)

    def bprop(self, logits, target, mass, out, dout):
        # As all of a bprop, on the local block; what is repeated over the classes has had its upstream divided.
        total = logits.shape[1] * self.mesh_classes
        first = _first_class_at_compile(self.op, self.mesh_rows, self.mesh_classes, total)
        upstream = dout[0] * self.mesh_classes
        of_lse = self.zeros_like(upstream)
        if self.z_loss:
            of_lse = 2.0 * self.z_loss * out[1] * upstream
        weight = self.weight if self.has_weight else None
        block = ClassBlock(first, total)
        gradient = ascend.partial_backward(
            upstream, of_lse, logits, target, weight, out[1], mass, self.options, block
        )
        return gradient, self.zeros_like(target), self.zeros_like(mass)
