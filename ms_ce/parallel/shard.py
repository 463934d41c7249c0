"""The ordinary loss Cell over a device mesh."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.ops import constexpr

from ms_ce import _arguments, _checks, _divisor
from ms_ce._cell import LossCell
from ms_ce.nn import CrossEntropyLoss
from ms_ce.parallel.config import (
    ParallelConfig,
    check_divisible,
    is_partitioned_at_compile,
    mesh_of,
)
from ms_ce.parallel.local import holds_class_indices
from ms_ce.parallel.semi_auto import ClassIndexSums, ProbabilitySums

_OP = "parallel.shard"


@constexpr
def _check_rank(rank: int) -> None:
    if rank != 2:
        raise ValueError(
            f"{_OP}: logits must have shape (N, C) in a partitioned graph, got {rank} dimensions; move the class "
            "axis last and flatten the others"
        )


class ShardedCrossEntropyLoss(LossCell):
    """What `shard` returns."""

    def __init__(self, loss: CrossEntropyLoss, parallel_config):
        super().__init__()
        options, weight = loss.plan.options, loss.weight
        if options.reduction == "none":
            raise ValueError(
                f"{_OP}: reduction must be 'mean' or 'sum', got 'none': row losses stay where their rows are"
            )
        mesh = mesh_of(_OP, parallel_config)
        block = (mesh.rows, mesh.classes)
        class_weight = None
        if weight is not None:
            class_weight = tuple(np.asarray(weight.asnumpy(), np.float64).tolist())
        self.loss, self.reduction = loss, options.reduction
        self.mesh_rows, self.mesh_classes = mesh
        self.softcap, self.logit_scale = options.softcap, options.logit_scale
        self.ignore_index = options.ignore_index
        self.class_index_sums = ClassIndexSums(_OP, mesh, options, class_weight, loss.plan.backend)
        self.probability_sums = ProbabilitySums(mesh, options, class_weight)
        self.cast = ops.Cast().shard((block,))
        self.scale, self.tanh = ops.Mul().shard((block, ())), ops.Tanh().shard((block,))

    def construct(self, *tensors, **names):
        if not is_partitioned_at_compile():
            return self.loss(*tensors, **names)
        input, target, mask, total_weight = _arguments.inputs_of(_OP, tensors, names)
        input = self.in_precision(input, self.cast)
        _check_rank(input.ndim)
        _checks.check_dtypes(_OP, "input", input.dtype, target.dtype, None, True)
        _checks.check_ignore_index(_OP, target.dtype, self.ignore_index)
        check_divisible(_OP, _checks.known_shape(input), self.mesh_rows, self.mesh_classes)
        if mask is None:
            mask = ops.ones((input.shape[0],), ms.float32)
        logits = self.transformed(input)
        if holds_class_indices(target.dtype):
            sums = self.class_index_sums(logits, target, mask)
        else:
            sums = self.probability_sums(logits, target, mask)
        loss = sums[0]
        if total_weight is not None:
            loss = loss / _divisor.divisor_of(_OP, self.reduction, total_weight)
        elif self.reduction == "mean":
            loss = loss / sums[1]
        return ops.cast(loss, input.dtype)

    def transformed(self, logits):
        """cap·tanh(scale·x / cap), or scale·x without a cap."""
        if not self.softcap and self.logit_scale == 1.0:
            return logits
        logits = self.cast(logits, ms.float32)
        if not self.softcap:
            return self.scale(logits, self.logit_scale)
        return self.scale(
            self.tanh(self.scale(logits, self.logit_scale / self.softcap)), self.softcap
        )


def shard(loss: CrossEntropyLoss, parallel_config: object = ParallelConfig()) -> nn.Cell:
    """`ms_ce.CrossEntropyLoss` with its logits split over a device mesh.

    Under semi_auto_parallel, auto_parallel or `AutoParallel` the logits (N, C) are split (data_parallel,
    model_parallel), and the mean or sum is that of all rows of the mesh; elsewhere the Cell is called as it is. What
    is communicated is what `CrossEntropyLoss` of this package communicates.

    Args:
        loss (ms_ce.CrossEntropyLoss): with reduction 'mean' or 'sum'.
        parallel_config: `ParallelConfig`, or any object with data_parallel and model_parallel.

    Returns:
        Cell, called as `loss` is; a total_weight is that of the rows of the whole mesh. In a partitioned graph a class
        index out of range makes the result nan.

    Raises:
        TypeError: loss is another Cell.
        ValueError: reduction 'none', or a mesh that does not divide the logits.

    Example:
        >>> import ms_ce
        >>> from ms_ce.parallel import ParallelConfig, shard
        >>> loss = shard(ms_ce.CrossEntropyLoss(label_smoothing=0.1), ParallelConfig(2, 4))
    """
    if not isinstance(loss, CrossEntropyLoss):
        raise TypeError(f"{_OP}: loss must be a ms_ce.CrossEntropyLoss, got {type(loss).__name__}")
    return ShardedCrossEntropyLoss(loss, parallel_config)
