"""How many rows a chunk of the linear loss has where MindSpore's products make it."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import functional as F

# Every chunk is filled up, so that one must not be far larger than a number of rows that nobody knows yet.
_MOST_ROWS_UNKNOWN = 1024
_DEFAULT_SHARE, _SMALLEST_DEFAULT, _LARGEST_DEFAULT = 25, 8 << 20, 128 << 20


def known_rows(hidden):
    """N of hidden states (N, H), or None where a compiled graph does not know it yet."""
    return None if F.is_sequence_value_unknown(hidden.shape) else hidden.shape[0]


@constexpr
def rows_of_chunk(dtype, rows: int | None, classes: int | None, chunk_bytes: int) -> int:
    """Rows whose logits take chunk_bytes at most; 0 stands for the default. What a graph does not know yet is None."""
    if classes is None:
        raise ValueError(
            "ms_ce: the linear loss needs the number of classes, linear_weight's first dimension, when a graph is "
            "compiled; give set_inputs a linear_weight of known shape, or use backend='cpu'"
        )
    row_bytes = classes * (8 if dtype == mstype.float64 else 4)
    if chunk_bytes == 0:
        chunk_bytes = _LARGEST_DEFAULT
        if rows is not None:
            share = rows * row_bytes // _DEFAULT_SHARE
            chunk_bytes = min(max(share, _SMALLEST_DEFAULT), _LARGEST_DEFAULT)
    most = max(1, chunk_bytes // row_bytes)
    if rows is None:
        return min(most, _MOST_ROWS_UNKNOWN)
    if rows == 0:
        return most
    chunks = -(-rows // most)
    return -(-rows // chunks)


@constexpr
def counting(rows: int) -> Tensor:
    return Tensor(np.arange(rows), mstype.int32)
