"""The `cpu` backend: one call of the compiled kernel forward and one backward."""

from __future__ import annotations

from ms_ce.ops.composed.blocks import partial_entropy, partial_entropy_backward
from ms_ce.ops.cpu.blocks import (
    partial,
    partial_backward,
    partial_target_grad,
    partial_weight_grad,
)
from ms_ce.ops.cpu.library import problem as probe
from ms_ce.ops.cpu.losses import (
    cross_entropy,
    cross_entropy_value_and_grad,
    cross_entropy_with_stats,
)
from ms_ce.ops.cpu.nll import nll_loss
from ms_ce.ops.cpu.tokens import token_log_probs

__all__ = [
    "BLOCKS_IN_PARTITIONED_GRAPHS",
    "BLOCKS_OF_PROBABILITIES",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "cross_entropy_with_stats",
    "nll_loss",
    "partial",
    "partial_backward",
    "partial_entropy",
    "partial_entropy_backward",
    "partial_target_grad",
    "partial_weight_grad",
    "probe",
    "refuse_targets",
    "token_log_probs",
]

BLOCKS_OF_PROBABILITIES, BLOCKS_IN_PARTITIONED_GRAPHS = True, False


def refuse_targets(target, classes, ignore_index, shift=False):
    """The kernel's own errors know the whole position."""
