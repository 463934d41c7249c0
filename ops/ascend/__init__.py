"""The `ascend` backend: the operators of custom_aicore/, called through ops.Custom.

Nothing here has run on hardware; docs/ascend.md says what was checked and how. The module imports everywhere: operators
are built at the first call, on the device that MindSpore then runs on.

The kernels take rows (N, C) of float16, bfloat16 or float32 and return float32 losses. softcap and logit_scale
are applied
before them, and the gradients of a weight or of probability targets are made after them, with MindSpore primitives.
"""

from __future__ import annotations

from ms_ce.ops.ascend.blocks import (
    partial,
    partial_backward,
    partial_target_grad,
    partial_weight_grad,
)
from ms_ce.ops.ascend.errors import check_targets, forget_targets
from ms_ce.ops.ascend.losses import (
    cross_entropy,
    cross_entropy_value_and_grad,
    cross_entropy_with_stats,
    nll_loss,
    token_log_probs,
)
from ms_ce.ops.ascend.operators import PROJECT, probe
from ms_ce.ops.composed.blocks import partial_entropy, partial_entropy_backward

__all__ = [
    "BLOCKS_IN_PARTITIONED_GRAPHS",
    "BLOCKS_OF_PROBABILITIES",
    "PROJECT",
    "check_targets",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "cross_entropy_with_stats",
    "forget_targets",
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

BLOCKS_OF_PROBABILITIES, BLOCKS_IN_PARTITIONED_GRAPHS = False, True


def refuse_targets(target, classes, ignore_index, shift=False):
    """`check_targets` raises on request, without waiting for the device before."""
