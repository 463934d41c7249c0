"""What a loss call is asked for beside its tensors; every backend takes the same tuple."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """Python constants, known when a graph is compiled. `softcap` 0 means none."""

    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0
    logit_scale: float = 1.0


class ClassBlock(NamedTuple):  # MindSpore compiles no function that names anything "shard"
    """The block of classes that logits hold: [offset, offset + C) of total; total 0 means all of C."""

    offset: int = 0
    total: int = 0


class Gradients(NamedTuple):
    """Of the linear loss: which gradients to make, and whether in the forward pass. What nobody wants costs nothing."""

    in_forward: bool = False
    input: bool = True
    linear_weight: bool = True
    linear_bias: bool = True
