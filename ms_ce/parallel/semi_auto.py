"""Sums of row losses for MindSpore's partitioner (semi_auto_parallel, auto_parallel); rows from primitives with
strategies, where fused.py does not make them.

Logits (N, C) are split over rows and classes. Each row costs three numbers over the ranks that share it: the maximum,
the sum of exponentials and the target's logit, which GatherD fetches without a one-hot. The derivative is written by
hand. It sees the local block, needs nothing from other ranks, and keeps the logits, not their exponentials.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from ms_ce.backend import splits_into_blocks
from ms_ce.ops.options import Options
from ms_ce.ops.precision import UncastCell
from ms_ce.parallel.config import Mesh, refuse_copies_at_compile
from ms_ce.parallel.fused import IGNORED, FusedClassIndexRows

# Stands for -inf where a product with 0 must stay 0. MindSpore removes a Maximum with a constant much closer to the
# lowest float (-3e38 is removed, -1e38 is not).
_FLOOR = -1.0e38
_INFINITY = float("inf")
_NOT_A_NUMBER = float("nan")


class _SoftmaxRows(UncastCell):
    """What the row losses of both kinds of target share. Methods, since the partitioner loses the shapes of a tuple
    that a nested Cell returns inside a Cell with a derivative of its own."""

    def __init__(self, mesh: Mesh, z_loss: float):
        super().__init__()
        block, column = (mesh.rows, mesh.classes), (mesh.rows, 1)
        self.mesh, self.z_loss = mesh, z_loss
        self.cast = ops.Cast().shard((block,))
        self.floor = ops.Maximum().shard((block, ()))
        self.maximum = ops.ReduceMax(keep_dims=True).shard((block,))
        self.subtract_column = ops.Sub().shard((block, column))
        self.exp = ops.Exp().shard((block,))
        self.sum = ops.ReduceSum(keep_dims=True).shard((block,))
        self.log = ops.Log().shard((column,))
        self.at_most = ops.LessEqual().shard((column, ()))
        self.replace = ops.MaskedFill().shard((column, column, ()))
        self.add = ops.Add().shard((column, column))
        self.multiply = ops.Mul().shard((column, column))
        self.scale = ops.Mul().shard((column, ()))
        self.zeros_like = ops.ZerosLike()

    def statistics(self, logits):
        """(x without -inf, maximum, log Σ exp(x - maximum)); the log is nan in a row of nothing but -inf."""
        finite = self.floor(self.cast(logits, ms.float32), _FLOOR)
        top = self.maximum(finite, -1)
        log_sum = self.log(self.sum(self.exp(self.subtract_column(finite, top)), -1))
        return finite, top, self.replace(log_sum, self.at_most(top, _FLOOR), _NOT_A_NUMBER)

    def with_z_loss(self, row_loss, top, log_sum):
        if not self.z_loss:
            return row_loss
        lse = self.add(top, log_sum)
        return self.add(row_loss, self.multiply(self.scale(lse, self.z_loss), lse))

    def softmax_gradient(self, logits, mass, top, log_sum, upstream):
        """The part of the derivative that is proportional to p; on the local block, as all of a bprop."""
        if self.z_loss:
            mass = mass + 2.0 * self.z_loss * (top + log_sum)
        return ops.exp(ops.cast(logits, ms.float32) - top - log_sum) * (upstream * mass)


class _WeightedSum(UncastCell):
    """Σ_c factor_c·(lse - x_c), (N, 1), where a factor of 0 contributes 0 even beside an infinite logit.

    The factor and the mask that tells where it is 0 are (N, C), or (1, C) where `one_line`.
    """

    def __init__(self, mesh: Mesh, one_line: bool):
        super().__init__()
        block, column = (mesh.rows, mesh.classes), (mesh.rows, 1)
        factor = (1, mesh.classes) if one_line else block
        self.cast = ops.Cast().shard((block,))
        self.subtract = ops.Sub().shard((block, column))
        self.multiply = ops.Mul().shard((block, factor))
        self.replace = ops.MaskedFill().shard((block, factor, ()))
        self.sum = ops.ReduceSum(keep_dims=True).shard((block,))
        self.negate = ops.Neg().shard((column,))

    def construct(self, logits, top, log_sum, factor, is_zero):
        log_probability = self.subtract(self.subtract(self.cast(logits, ms.float32), top), log_sum)
        term = self.replace(self.multiply(log_probability, factor), is_zero, 0.0)
        return self.negate(self.sum(term, -1))


class ClassIndexRows(_SoftmaxRows):
    """Row losses `hard·(lse - x_y) + Σ_c soft_c·(lse - x_c) + z·lse²` for class indices y.

    Inputs: logits (N, C); labels (N, 1) int32; hard (N, 1) float32, the factor of the target's term; class_ids
    (rows, C) int32 and local_soft (rows, C) float32, the same in every line and split like the logits, so that the
    derivative, which sees one line of them, knows the classes of its block; soft (1, C) float32, that line again,
    and soft_is_zero (1, C) bool.
    Output: row losses (N, 1), then what the derivative needs.

    Args:
        soft_total: Σ_c soft_c.
    """

    def __init__(self, mesh: Mesh, options: Options, soft_total: float):
        super().__init__(mesh, options.z_loss)
        block, column = (mesh.rows, mesh.classes), (mesh.rows, 1)
        self.smooth = options.label_smoothing > 0
        self.soft_total = soft_total
        self.soft_sum = _WeightedSum(mesh, one_line=True)
        self.gather = ops.GatherD().shard((block, column))
        self.subtract = ops.Sub().shard((column, column))
        self.is_zero = ops.Equal().shard((column, ()))
        self.scatter = ops.TensorScatterElements(axis=1, reduction="add")

    def construct(self, logits, labels, hard, class_ids, local_soft, soft, soft_is_zero):
        finite, top, log_sum = self.statistics(logits)
        target_logit = self.gather(finite, 1, labels)
        distance = self.subtract(log_sum, self.subtract(target_logit, top))
        distance = self.replace(distance, self.at_most(target_logit, _FLOOR), _INFINITY)
        row_loss = self.replace(self.multiply(hard, distance), self.is_zero(hard, 0.0), 0.0)
        if self.smooth:
            soft_loss = self.soft_sum(logits, top, log_sum, soft, soft_is_zero)
            row_loss = self.add(row_loss, soft_loss)
        return self.with_z_loss(row_loss, top, log_sum), top, log_sum

    def bprop(self, logits, labels, hard, class_ids, local_soft, soft, soft_is_zero, out, dout):
        upstream = dout[0] * self.mesh.classes
        mass = hard + self.soft_total
        gradient = self.softmax_gradient(logits, mass, out[1], out[2], upstream)
        if self.smooth:
            gradient = gradient - upstream * local_soft
        local = labels - class_ids[0, 0]
        held = ops.logical_and(ops.greater_equal(local, 0), ops.less(local, class_ids.shape[1]))
        zeros = self.zeros_like
        position = ops.select(held, local, zeros(local))
        pull = ops.select(held, -upstream * hard, zeros(hard))
        gradient = ops.cast(self.scatter(gradient, position, pull), logits.dtype)
        return (
            gradient,
            zeros(labels),
            zeros(hard),
            zeros(class_ids),
            zeros(local_soft),
            zeros(soft),
            zeros(soft_is_zero),
        )


class ProbabilityRows(_SoftmaxRows):
    """Row losses `Σ_c factor_c·(lse - x_c) + z·lse²`; factor (N, C) float32 is weight times smoothed target."""

    def __init__(self, mesh: Mesh, options: Options):
        super().__init__(mesh, options.z_loss)
        self.weighted_sum = _WeightedSum(mesh, one_line=False)
        self.equals = ops.Equal().shard(((mesh.rows, mesh.classes), ()))

    def construct(self, logits, factor):
        _, top, log_sum = self.statistics(logits)
        is_zero = self.equals(factor, 0.0)
        row_loss = self.weighted_sum(logits, top, log_sum, factor, is_zero)
        return self.with_z_loss(row_loss, top, log_sum), top, log_sum, self.sum(factor, -1)

    def bprop(self, logits, factor, out, dout):
        upstream = dout[0] * self.mesh.classes
        gradient = self.softmax_gradient(logits, out[3], out[1], out[2], upstream)
        gradient = gradient - upstream * factor
        log_probability = ops.cast(logits, ms.float32) - out[1] - out[2]
        excluded = ops.logical_and(ops.equal(factor, 0.0), ops.less(log_probability, _FLOOR))
        distance = ops.masked_fill(-log_probability, excluded, 0.0)
        return ops.cast(gradient, logits.dtype), distance * upstream


@constexpr
def _class_ids(classes: int) -> Tensor:
    return Tensor(np.arange(classes, dtype=np.int32)[None])


@constexpr
def _soft_line(classes: int, label_smoothing: float, weight: tuple[float, ...] | None) -> Tensor:
    """ε/C·w_c for every class, (1, C)."""
    per_class = np.ones(classes) if weight is None else np.array(weight)
    return Tensor((label_smoothing / classes * per_class).astype(np.float32)[None])


@constexpr
def _is_zero(classes: int, weight: tuple[float, ...] | None) -> Tensor:
    """Where a class weighs nothing, (1, C). A constant: computed in the graph it would have to be communicated."""
    return Tensor(np.zeros((1, classes), bool) if weight is None else np.array([weight]) == 0)


class _PairOfSums(UncastCell):
    """(Σ loss, Σ weight) over the rows of the mesh, (2,), from two columns (N, 1): one AllReduce of two numbers.

    Its derivative is written by hand as well: it flows to the losses, and needs nothing from other ranks.
    """

    def __init__(self, mesh: Mesh):
        super().__init__()
        column = (mesh.rows, 1)
        self.ranks = mesh.rows
        self.concatenate = ops.Concat(axis=1).shard((column, column))
        self.sum = ops.ReduceSum().shard((column,))
        self.ones_like, self.zeros_like = ops.OnesLike(), ops.ZerosLike()

    def construct(self, losses, weights):
        return self.sum(self.concatenate((losses, weights)), 0)

    def bprop(self, losses, weights, out, dout):
        upstream = dout[0] * self.ranks
        return self.ones_like(losses) * upstream, self.zeros_like(weights)


class _Rows(UncastCell):
    """What both kinds of target share: the mask, rows left out, and the two sums."""

    def __init__(self, mesh: Mesh):
        super().__init__()
        block, column = (mesh.rows, mesh.classes), (mesh.rows, 1)
        self.cast, self.reshape = ops.Cast().shard((column,)), ops.Reshape()
        self.as_column = ops.ExpandDims().shard(((mesh.rows,),))
        self.equals = ops.Equal().shard((column, ()))
        self.negate = ops.LogicalNot().shard((column,))
        self.clear_rows = ops.MaskedFill().shard((block, column, ()))
        self.replace = ops.MaskedFill().shard((column, column, ()))
        self.multiply = ops.Mul().shard((column, column))
        self.sums_over_mesh = _PairOfSums(mesh)
        # With cross_batch the partitioner leaves the sum to each rank.
        self.local_sum = ops.ReduceSum().shard((column,)).add_prim_attr("cross_batch", True)

    def mask_column(self, input_mask):
        if input_mask.ndim != 1:
            input_mask = self.reshape(input_mask, (-1,))
        return self.cast(self.as_column(input_mask, 1), ms.float32)

    def sums(self, row_loss, row_weight, left_out, mask):
        """Both sums over the mesh, then both over the rows of this rank."""
        row_loss = self.multiply(self.replace(row_loss, left_out, 0.0), mask)
        row_weight = self.multiply(row_weight, mask)
        pair = self.sums_over_mesh(row_loss, row_weight)
        return pair[0], pair[1], self.local_sum(row_loss), self.local_sum(row_weight)


class ClassIndexSums(_Rows):
    """(Σ mask·loss, Σ mask·weight[label]), both (), over all rows and again over this rank's, for labels (N,).

    Rows whose mask is 0 or whose label is ignore_index are never looked at. A label outside [0, C) in any other row
    makes the sum nan: a compiled graph cannot raise, and a plausible number would be worse.

    Args:
        op: name of the loss, for messages.
        backend: "auto" or a name; the primitives serve one whose kernels take no blocks in a partitioned graph.
    """

    def __init__(
        self,
        op: str,
        mesh: Mesh,
        options: Options,
        weight: tuple[float, ...] | None,
        backend: str,
    ):
        super().__init__(mesh)
        column = (mesh.rows, 1)
        self.op, self.mesh_rows, self.mesh_classes = op, mesh.rows, mesh.classes
        self.backend = backend
        self.ignore_index, self.label_smoothing = options.ignore_index, options.label_smoothing
        self.class_weight = weight
        self.weight = None if weight is None else Tensor(weight, ms.float32)
        average_weight = 1.0 if weight is None else sum(weight) / len(weight)
        self.soft_total = options.label_smoothing * average_weight
        self.rows = ClassIndexRows(mesh, options, self.soft_total)
        self.fused_rows = FusedClassIndexRows(op, mesh, options, weight)
        self.as_block = ops.Identity().shard(((mesh.rows, mesh.classes),))
        self.as_row, self.shift = ops.Squeeze(1).shard((column,)), ops.Add().shard((column, ()))
        self.no_ids = Tensor(np.zeros((mesh.rows, 1), np.int32))
        self.no_soft = Tensor(np.zeros((mesh.rows, 1), np.float32))
        # Adding 0 is what splits the constants over the mesh; keep_alive keeps it from being simplified away.
        self.split = ops.Add().shard((column, (1, mesh.classes))).add_prim_attr("keep_alive", True)
        self.below = ops.Less().shard((column, ()))
        self.above = ops.GreaterEqual().shard((column, ()))
        self.either = ops.LogicalOr().shard((column, column))
        self.both = ops.LogicalAnd().shard((column, column))
        self.gather = ops.Gather().shard(((1,), column))
        self.scale = ops.Mul().shard((column, ()))

    def construct(self, logits, label, input_mask):
        classes = logits.shape[1]
        mask = self.mask_column(input_mask)
        label = self.cast(self.as_column(label, 1), ms.int64)
        left_out = self.either(self.equals(mask, 0.0), self.equals(label, self.ignore_index))
        outside = self.either(self.below(label, 0), self.above(label, classes))
        wrong = self.both(outside, self.negate(left_out))
        unused = self.either(left_out, outside)
        label = self.cast(label, ms.int32)
        known = self.replace(label, unused, 0)
        row_weight = self.cast(self.negate(unused), ms.float32)
        if self.weight is not None:
            row_weight = self.multiply(self.gather(self.weight, known, 0), row_weight)
        hard = self.scale(row_weight, 1.0 - self.label_smoothing)
        if splits_into_blocks(self.op, self.backend, logits.dtype):
            target = self.as_row(self.replace(label, unused, IGNORED))
            mass = self.shift(hard, self.soft_total)
            row_loss, _ = self.fused_rows(self.as_block(logits), target, mass)
        else:
            row_loss = self.primitive_rows(logits, known, hard, unused)
        row_loss = self.replace(row_loss, wrong, _NOT_A_NUMBER)
        return self.sums(row_loss, row_weight, left_out, mask)

    def primitive_rows(self, logits, label, hard, unused):
        refuse_copies_at_compile(self.op, self.mesh_rows, self.mesh_classes)
        classes = logits.shape[1]
        soft = _soft_line(classes, self.label_smoothing, self.class_weight)
        row_loss, _, _ = self.rows(
            self.clear_rows(logits, unused, 0.0),
            label,
            hard,
            self.split(self.no_ids, _class_ids(classes)),
            self.split(self.no_soft, soft),
            soft,
            _is_zero(classes, self.class_weight),
        )
        return row_loss


class ProbabilitySums(_Rows):
    """As ClassIndexSums, for target probabilities (N, C), whose rows weigh 1 each."""

    def __init__(self, mesh: Mesh, options: Options, weight: tuple[float, ...] | None):
        super().__init__(mesh)
        block = (mesh.rows, mesh.classes)
        self.label_smoothing = options.label_smoothing
        self.weight = None if weight is None else Tensor([weight], ms.float32)
        self.rows = ProbabilityRows(mesh, options)
        self.widen = ops.Cast().shard((block,))
        self.scale, self.shift = ops.Mul().shard((block, ())), ops.Add().shard((block, ()))
        self.weigh = ops.Mul().shard((block, (1, mesh.classes)))

    def construct(self, logits, target, input_mask):
        mask = self.mask_column(input_mask)
        left_out = self.equals(mask, 0.0)
        factor = self.clear_rows(self.widen(target, ms.float32), left_out, 0.0)
        if self.label_smoothing:
            factor = self.scale(factor, 1.0 - self.label_smoothing)
            factor = self.shift(factor, self.label_smoothing / logits.shape[1])
        if self.weight is not None:
            factor = self.weigh(factor, self.weight)
        row_loss, _, _, _ = self.rows(self.clear_rows(logits, left_out, 0.0), factor)
        row_weight = self.cast(self.negate(left_out), ms.float32)
        return self.sums(row_loss, row_weight, left_out, mask)
