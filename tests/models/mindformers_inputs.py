"""What the ranks of a tensor-parallel group compute; numpy only."""

from __future__ import annotations

import numpy as np

ROWS, VOCABULARY = 6, 10
RANDOM = np.random.default_rng(5)
LOGITS = RANDOM.normal(size=(ROWS, VOCABULARY)).astype(np.float32)
LABELS = RANDOM.integers(0, VOCABULARY, ROWS).astype(np.int32)
MASK = np.array([1, 0, 1, 1, 0, 1], np.float32)
# name: options of the loss, whether it is the chunked one, whether a mask is given
CASES = {
    "plain": ({}, False, True),
    "no compensation": ({"compensate_loss_sense_tp": False}, False, True),
    "per token": ({"calculate_per_token_loss": True}, False, True),
    "rows": ({}, False, False),
    "chunked": ({"chunk_loss_num": 2}, True, True),
}
