"""What the forms of the linear loss share: dtypes, shapes, and how many rows a chunk has where MindSpore makes it."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import functional as F

from ms_ce.ops.derivative import RefusesVmap

# Every chunk is filled up, so that one must not be far larger than a number of rows that nobody knows yet.
_MOST_ROWS_UNKNOWN = 1024
# The kernel's own (ops/csrc/linear/linear_loss.h), in bytes but for the share and the number of copies.
DEFAULT_CHUNK = {
    "smallest": 4 << 20,
    "largest": 128 << 20,
    "share": 20,
    "beside": 3 << 19,
    "hidden_copies": 2,
}


@constexpr
def exact_dtype(dtype):
    """The dtype to compute and to add in."""
    return mstype.float64 if dtype == mstype.float64 else mstype.float32


def per_row(results, plan, place, input):
    """`results` of a `protocol.LinearForm`, with what is per row put into input's leading shape by `place`."""
    rows = plan.options.reduction == "none"
    if len(results) == 1:
        return (place(results[0], plan, input),) if rows else results
    loss, total_weight, lse, squares, correct, entropy, predicted = results
    lse, predicted = place(lse, plan, input), place(predicted, plan, input)
    if rows:
        loss, squares = place(loss, plan, input), place(squares, plan, input)
        entropy = place(entropy, plan, input)
    return loss, total_weight, lse, squares, correct, entropy, predicted


def in_leading_shape(rows, plan, input):
    """Rows, one for each hidden state that has a target."""
    if plan.shift:
        return rows.reshape((*input.shape[:-2], input.shape[-2] - 1))
    return rows.reshape(input.shape[:-1])


def known_rows(hidden):
    """N of hidden states (N, H), or None where a compiled graph does not know it yet."""
    return None if F.is_sequence_value_unknown(hidden.shape) else hidden.shape[0]


def _default_chunk_bytes(rows: int | None, classes: int, features: int, element: int) -> int:
    """A chunk, the copies of its hidden states and what a call needs besides stay within a share of the logits."""
    smallest, largest, share, beside, copies = DEFAULT_CHUNK.values()
    if rows is None:
        return largest
    row_bytes = classes * element
    within = rows * row_bytes // share - beside
    chunk_bytes = within / (row_bytes + copies * features * element) * row_bytes
    return min(max(int(chunk_bytes), smallest), largest)


@constexpr
def rows_of_chunk(
    dtype, rows: int | None, classes: int | None, features: int | None, chunk_bytes: int
) -> int:
    """Rows whose logits take chunk_bytes at most; 0 stands for the default. What a graph does not know yet is None."""
    if classes is None:
        raise ValueError(
            "ms_ce: the linear loss needs the number of classes, linear_weight's first dimension, when a graph is "
            "compiled; give set_inputs a linear_weight of known shape, or use backend='cpu'"
        )
    element = 8 if dtype == mstype.float64 else 4
    chunk_bytes = chunk_bytes or _default_chunk_bytes(rows, classes, features or 0, element)
    most = max(1, chunk_bytes // (classes * element))
    if rows is None:
        return min(most, _MOST_ROWS_UNKNOWN)
    if rows == 0:
        return most
    chunks = -(-rows // most)
    return -(-rows // chunks)


@constexpr
def counting(rows: int) -> Tensor:
    return Tensor(np.arange(rows), mstype.int32)


not_vectorised = RefusesVmap(
    "ms_ce: linear_cross_entropy in several chunks is not vectorised (vmap, jacrev, jacfwd), since MindSpore "
    "vectorises no loop; take a chunk_bytes that holds all logits: rows times classes of 4 bytes, 8 for float64"
)
