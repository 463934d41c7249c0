"""The two sums of a loss on one device, by the backends of ms_ce."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from ms_ce import _checks
from ms_ce.backend import requested
from ms_ce.functional import cross_entropy_on
from ms_ce.ops.options import Options, Plan


@constexpr
def holds_class_indices(dtype) -> bool:
    return dtype in _checks.LABELS


class LocalSums(nn.Cell):
    """(Σ mask·loss, Σ mask·weight[label]) over the rows of this device, both () and float32.

    Args:
        op: name of the loss, for messages.
        options: ignore_index, label_smoothing and z_loss are used.
        weight: a factor for each class, or None.
        backend: "auto" or the name of a backend.

    Inputs: logits (N, C), target (N,) class indices or (N, C) probabilities, mask with N elements.
    """

    def __init__(self, op: str, options: Options, weight: tuple[float, ...] | None, backend: str):
        super().__init__()
        self.plan = Plan(op, requested(op, backend), options._replace(reduction="none"), False)
        self.ignore_index = options.ignore_index
        self.weight = None if weight is None else Tensor(weight, ms.float32)

    def construct(self, logits, target, mask):
        mask = ops.cast(ops.reshape(mask, (-1,)), ms.float32)
        left_out = ops.equal(mask, 0.0)
        logits = ops.cast(logits, ms.float32)
        if holds_class_indices(target.dtype):
            # A row that is left out becomes an ignored one, whose logits the backend does not read.
            target = ops.masked_fill(ops.cast(target, ms.int64), left_out, self.ignore_index)
            counts = ops.not_equal(target, self.ignore_index)
            row_weight = ops.cast(counts, ms.float32)
            if self.weight is not None:
                known = ops.masked_fill(target, ops.logical_not(counts), 0)
                row_weight = row_weight * ops.gather(self.weight, known, 0)
        else:
            logits = ops.masked_fill(logits, ops.expand_dims(left_out, 1), 0.0)
            row_weight = ops.cast(ops.logical_not(left_out), ms.float32)
        rows = cross_entropy_on(self.plan, False, logits, target, self.weight)
        rows = ops.masked_fill(rows, left_out, 0.0)
        return ops.sum(rows * mask), ops.sum(row_weight * mask)
