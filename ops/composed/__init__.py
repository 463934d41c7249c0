"""The `composed` backend: ordinary MindSpore primitives, on any device MindSpore supports."""

from __future__ import annotations

from ms_ce.ops.composed.blocks import (
    partial,
    partial_backward,
    partial_entropy,
    partial_entropy_backward,
    partial_target_grad,
    partial_weight_grad,
)
from ms_ce.ops.composed.losses import (
    cross_entropy,
    cross_entropy_value_and_grad,
    cross_entropy_with_stats,
    nll_loss,
    refuse_targets,
    token_log_probs,
)

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


def probe() -> str | None:
    """MindSpore itself is all it needs."""
    return None
