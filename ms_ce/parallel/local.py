"""The two sums of a loss on one device, by the backends of ms_ce."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from ms_ce import _checks
from ms_ce.backend import requested
from ms_ce.functional import cross_entropy_on
from ms_ce.ops.mean import total_weight
from ms_ce.ops.options import Options, Plan
from ms_ce.ops.precision import UncastCell


@constexpr
def holds_class_indices(dtype) -> bool:
    return dtype in _checks.LABELS


class LocalSums(UncastCell):
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
        self.plan = Plan(op, requested(op, backend), options._replace(reduction="sum"), False)
        self.ignore_index = options.ignore_index
        self.weight = None if weight is None else Tensor(weight, ms.float32)

    def construct(self, logits, target, mask):
        mask = ops.cast(ops.reshape(mask, (-1,)), ms.float32)
        logits = ops.cast(logits, ms.float32)
        loss = cross_entropy_on(self.plan, False, logits, target, self.weight, mask)
        rows, ignored = logits.shape[0], self.ignore_index
        return loss, total_weight(target, rows, self.weight, mask, ignored, ms.float32)
