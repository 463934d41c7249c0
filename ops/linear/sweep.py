"""The walk over chunks of rows of the linear loss, by MindSpore's matrix products: any device, one or several of them.

A compiled graph holds one loop, whatever the number of rows: it compiles faster and holds less than an unrolled one.
Rows of ignore_index are put last, and the loop ends before them.
"""

from __future__ import annotations

from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce._versions import zeros_like
from ms_ce.ops.chunks import (
    counting,
    exact_dtype,
    known_rows,
    not_vectorised,
    rows_of_chunk,
)
from ms_ce.ops.graph import compiling, is_class_index, select
from ms_ce.ops.options import Options
from ms_ce.ops.rows import Rows, on_cpu

# Level "auto" of mixed precision makes products of 16 bits, as in nn.Dense: what they go into keeps its own.
_product_with_transpose = P.MatMul(transpose_b=True)
write_rows = P.TensorScatterUpdate()
_running_sum = P.CumSum()
_sum, _larger = P.ReduceSum(), P.Maximum()


@constexpr
def _needs_cast(dtype) -> bool:
    return on_cpu() and dtype in (mstype.float16, mstype.bfloat16)


def readable(values):
    """Float values that MindSpore can reshape and take rows of: its CPU does neither with bfloat16 in a graph."""
    return values.astype(mstype.float32) if _needs_cast(values.dtype) else values


def as_rows(hidden):
    """Hidden states as (N, features)."""
    return readable(hidden).reshape((-1, hidden.shape[-1]))


def own(values):
    """A copy in a graph, where a loop reads a tensor that is a view of another from the wrong place
    (tests/integration/test_mindspore_limits.py)."""
    if values is None or not compiling():
        return values
    values = readable(values)
    return _larger(values, values)


# Graphs take plain tuples only: a named one that holds tensors makes variables of the constants beside them. So a sweep
# is (tensors, order, count, block, size): the five inputs in the dtype computed in; all rows in the order in which they
# are taken, of which the first `count` have a loss; (offset, classes in all); rows of a chunk. And a chunk is
# ((place, index, valid), (hidden, target, logits)): where its rows stand in the order and among all, and which count.


def over_chunks(add, sweep, saved, state):
    """`state` after `add(sweep, saved, first, state)` for the first row of each chunk.

    A function, since a loop beside a Parameter would be kept by the compiler even where nobody reads it.
    """
    _, _, count, _, size = sweep
    if compiling():
        first = Tensor(0, mstype.int32)
        while first < count:
            state = add(sweep, saved, first, state)
            first = first + size
    else:
        for first in range(0, int(count), size):
            state = add(sweep, saved, Tensor(first, mstype.int32), state)
    return state


class Sweep(Rows):
    """What every walk does: rows in order, and the logits of a chunk.

    Inputs: hidden (N, H), linear_weight (C_local, H), target (N,) class indices or (N, C_local) probabilities,
    linear_bias (C_local,) or None, weight of all classes or None, row_weight (N,) or None.
    """

    def __init__(self, kernels, place, options: Options, chunk_bytes: int):
        super().__init__(kernels, place, options)
        self.chunk_bytes = chunk_bytes

    def bytes_of_chunk(self, hidden, columns):
        """What a chunk's logits may take; 0 stands for the default of the linear loss."""
        return self.chunk_bytes

    def prepared(self, hidden, linear_weight, target, linear_bias, weight, row_weight):
        """(sweep, the position of each row in its order)."""
        exact = exact_dtype(hidden.dtype)
        hidden = self.location.gathered(not_vectorised(hidden))
        offset, held, total = self.location.block_of(linear_weight.shape[0])
        matrix = linear_weight.astype(exact)
        bias = None if linear_bias is None else linear_bias.astype(exact)
        if held < linear_weight.shape[0]:
            matrix = matrix[:held]
            bias = None if bias is None else bias[:held]
        seen = _running_sum(ops.ones((hidden.shape[0],), mstype.int32), 0)
        order, count, position = seen - 1, hidden.shape[0], seen - 1
        if is_class_index(target.dtype):
            target = target.astype(mstype.int64)
        keep = self.kept(target, row_weight)
        if keep is not None:
            counts = keep.astype(mstype.int32)
            kept, count = _running_sum(counts, 0), _sum(counts)
            position = select(keep, kept - 1, count + seen - kept - 1)
            order = write_rows(zeros_like(order), position.expand_dims(1), order)
        columns, features = self.location.columns(linear_weight.shape[0]), linear_weight.shape[1]
        chunk_bytes = self.bytes_of_chunk(hidden, columns)
        size = rows_of_chunk(hidden.dtype, known_rows(hidden), columns, features, chunk_bytes)
        if weight is not None:
            weight = weight.astype(exact)
        if row_weight is not None:
            row_weight = row_weight.astype(self.wide)
        tensors = (own(hidden), own(matrix), own(target), own(bias), own(weight))
        return ((*tensors, own(row_weight)), order, count, (offset, total), size), position

    def chunk(self, sweep, first):
        """The chunk that begins at row `first` of the order, with its logits."""
        (all_hidden, matrix, all_target, bias, _, _), order, count, _, size = sweep
        place = first + counting(size)
        valid = place < count
        index = ops.gather(order, ops.minimum(place, all_hidden.shape[0] - 1), 0)
        # Rows without a loss fill the last chunk, whatever they hold.
        hidden = ops.gather(all_hidden, index, 0).astype(matrix.dtype)
        hidden = select(valid.expand_dims(1), hidden, 0.0)
        target = ops.gather(all_target, index, 0)
        if is_class_index(target.dtype):
            target = select(valid, target, self.ignore_index)
        else:
            # Without the columns of padding.
            target = target.astype(matrix.dtype)[:, : matrix.shape[0]]
            target = select(valid.expand_dims(1), target, 0.0)
        logits = _product_with_transpose(hidden, matrix).astype(matrix.dtype)
        if bias is not None:
            logits = logits + bias
        return (place, index, valid), (hidden, target, logits)

    def statistics_of(self, sweep, given):
        """Those of a chunk."""
        tensors, _, _, block, _ = sweep
        _, target, logits = given
        return self.statistics(logits, target, tensors[4], block)

    def weighted(self, row_weight, *rows):
        """Numbers of rows times the rows' weights."""
        if row_weight is None:
            return rows
        return tuple([row * row_weight.astype(row.dtype) for row in rows])
