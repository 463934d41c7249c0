"""A factor for each row of the loss, where the backend's kernels do not take it themselves."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops

from ms_ce.ops.graph import is_class_index, select


def without_rows(logits, target, row_weight, ignore_index):
    """(logits, target) of axes (N, C, …) in which rows of weight 0 count for nothing, whatever they hold: their class
    index is ignore_index; with probabilities, which have none, both are 0."""
    counts = ops.not_equal(row_weight, 0)
    if is_class_index(target.dtype):
        return logits, select(counts, target.astype(mstype.int64), ignore_index)
    counts = counts.expand_dims(1)
    return select(counts, logits, 0.0), select(counts, target, 0.0)
