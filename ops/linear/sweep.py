"""The loop over chunks of rows of the linear loss, by MindSpore's matrix products: any device, one or several of them.

A chunk's logits are made, reduced to statistics by the backend (`partial`), completed by the other holders of classes
where there are any, and turned into gradients (`partial_backward`). A compiled graph holds one loop, whatever the
number of rows: it compiles faster and holds less than an unrolled one. Rows of ignore_index are put last, and the
loop ends before them.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce import _versions
from ms_ce._versions import zeros_like
from ms_ce.ops.chunks import (
    counting,
    exact_dtype,
    known_rows,
    not_vectorised,
    rows_of_chunk,
)
from ms_ce.ops.composed.losses import entropy_backward, product, transformed
from ms_ce.ops.eager import DifferentiableCell
from ms_ce.ops.graph import compiling, is_class_index, nan_if_any
from ms_ce.ops.options import ClassBlock, Gradients, Options
from ms_ce.ops.pieces import ones_like
from ms_ce.ops.rows import Rows, on_cpu, with_padding

# Level "auto" of mixed precision makes products of 16 bits, as in nn.Dense: what they go into keeps its own.
_product = P.MatMul()
_product_with_transpose = P.MatMul(transpose_b=True)
_product_of_transpose = P.MatMul(transpose_a=True)
_write_rows = P.TensorScatterUpdate()
_running_sum = P.CumSum()
_sum, _larger = P.ReduceSum(), P.Maximum()


@constexpr
def _needs_cast(dtype) -> bool:
    return on_cpu() and dtype in (mstype.float16, mstype.bfloat16)


def readable(values):
    """Float values that MindSpore can reshape and take rows of: its CPU does neither with bfloat16 in a graph."""
    return values.astype(mstype.float32) if _needs_cast(values.dtype) else values


def _own(values):
    """A copy in a graph, where a loop reads a tensor that is a view of another from the wrong place
    (tests/integration/test_mindspore_limits.py)."""
    if values is None or not compiling():
        return values
    values = readable(values)
    return _larger(values, values)


class _Once(nn.Cell):
    """Ends a second derivative: the saved statistics are functions of the inputs, which nothing below knows."""

    def construct(self, gradient):
        return gradient

    def bprop(self, gradient, out, dout):
        if not compiling():
            raise NotImplementedError(
                "ms_ce: in chunks the linear loss is differentiated once; for second derivatives take "
                "backend='composed' and a chunk_bytes that holds all logits"
            )
        nothing = nan_if_any(dout).astype(gradient.dtype)
        return (zeros_like(gradient) + nothing,)


_once = _Once()


# Graphs take plain tuples only: a named one that holds tensors makes variables of the constants beside them. So a sweep
# is (tensors, order, count, block, size): the five inputs in the dtype computed in; all rows in the order in which they
# are taken, of which the first `count` have a loss; (offset, classes in all); rows of a chunk. And a chunk is
# ((place, index, valid), (hidden, target, logits)): where its rows stand in the order and among all, and which count.


def _over_chunks(add, sweep, saved, state):
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


def _scaled(gradient, factor):
    return gradient if factor is None else gradient * factor


@constexpr
def made_in_graph(gradients) -> Gradients:
    """Which gradients to make and where, in a graph: all in the forward pass where a bprop can hold no loop."""
    return Gradients(*gradients) if _versions.loops_in_bprops else Gradients(in_forward=True)


class ChunkedRows(Rows, DifferentiableCell):
    """Row losses, and in the backward pass the gradients, from logits that are made again there.

    Inputs: hidden (N, H), linear_weight (C_local, H), target (N,) class indices or (N, C_local) probabilities,
    linear_bias (C_local,) or None, weight of all classes or None, row_weight (N,) or None. Target and weights are
    constants.
    Where not all `gradients` are wanted, a graph may ask for the others all the same, say for a parameter that was
    frozen: they come from a sweep of their own (`others`), which the compiler drops where nobody does.
    Outputs: row losses times row_weight, lse and Σ w·q' of each row, z-losses times row_weight, whether a row is right
    and its entropy; all (N,). The last two are made for `stats` only, and entropies have a gradient with
    `entropy_gradient`.
    """

    def __init__(
        self,
        kernels,
        place,
        options: Options,
        chunk_bytes: int,
        gradients: Gradients,
        stats: bool = False,
        entropy_gradient: bool = False,
        alone: bool = False,
    ):
        super().__init__(kernels, place, options)
        made = gradients[1:]
        self.of_input, self.of_weight, self.of_bias = made
        self.partly = not alone and not all(made)
        if self.partly:
            others = Gradients(gradients.in_forward, *(not one for one in made))
            self.others = type(self)(
                kernels, place, options, chunk_bytes, others, stats, entropy_gradient, True
            )
        self.chunk_bytes, self.stats = chunk_bytes, stats
        self.entropy_gradient = entropy_gradient

    def construct(self, hidden, linear_weight, target, linear_bias, weight, row_weight):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        sweep, position = self.prepared(*tensors)
        width = 5 if self.stats else 3
        state = (ops.zeros((position.shape[0] + sweep[-1], width), self.wide),)
        state = _over_chunks(self.add_statistics, sweep, (), state)
        return self.finished(ops.gather(state[0], position, 0), target, row_weight)

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
            position = ops.where(keep, kept - 1, count + seen - kept - 1)
            order = _write_rows(zeros_like(order), position.expand_dims(1), order)
        columns, features = self.location.columns(linear_weight.shape[0]), linear_weight.shape[1]
        size = rows_of_chunk(hidden.dtype, known_rows(hidden), columns, features, self.chunk_bytes)
        if row_weight is not None:
            row_weight = row_weight.astype(self.wide)
        tensors = (_own(hidden), _own(matrix), _own(target), _own(bias), _own(weight))
        return ((*tensors, _own(row_weight)), order, count, (offset, total), size), position

    def chunk(self, sweep, first):
        """The chunk that begins at row `first` of the order, with its logits."""
        (all_hidden, matrix, all_target, bias, _, _), order, count, _, size = sweep
        place = first + counting(size)
        valid = place < count
        index = ops.gather(order, ops.minimum(place, all_hidden.shape[0] - 1), 0)
        # Rows without a loss fill the last chunk, whatever they hold.
        hidden = ops.gather(all_hidden, index, 0).astype(matrix.dtype)
        hidden = ops.where(valid.expand_dims(1), hidden, 0.0)
        target = ops.gather(all_target, index, 0)
        if is_class_index(target.dtype):
            target = ops.where(valid, target, self.ignore_index)
        else:
            # Without the columns of padding.
            target = target.astype(matrix.dtype)[:, : matrix.shape[0]]
            target = ops.where(valid.expand_dims(1), target, 0.0)
        logits = _product_with_transpose(hidden, matrix).astype(matrix.dtype)
        if bias is not None:
            logits = logits + bias
        return (place, index, valid), (hidden, target, logits)

    def statistics_of(self, sweep, given):
        """Those of a chunk."""
        tensors, _, _, block, _ = sweep
        _, target, logits = given
        return self.statistics(logits, target, tensors[4], block)

    def add_statistics(self, sweep, saved, first, state):
        where, given = self.chunk(sweep, first)
        rows = self.statistics_of(sweep, given)
        if self.stats:
            rows = ops.concat((rows, self.logged(given, rows[:, 0]).astype(self.wide)), 1)
        return (_write_rows(state[0], where[0].expand_dims(1), rows),)

    def logged(self, given, lse):
        """(rows, 2): whether the largest logit is the target's, and the entropy."""
        _, target, logits = given
        x = transformed(logits, self.options)
        best = target if is_class_index(target.dtype) else target.argmax(axis=1)
        correct = x.argmax(axis=1).astype(mstype.int64) == best.astype(mstype.int64)
        log_prob = x - lse.astype(x.dtype).expand_dims(1)
        entropy = -product(ops.exp(log_prob), log_prob).sum(axis=1)
        return ops.stack((correct.astype(x.dtype), entropy), 1)

    def weighted(self, row_weight, *rows):
        """Numbers of rows times the rows' weights."""
        if row_weight is None:
            return rows
        return tuple([row * row_weight.astype(row.dtype) for row in rows])

    def finished(self, rows, target, row_weight):
        """The outputs, from the statistics of all rows; 0 in those that do not count."""
        keep = self.kept(target, row_weight)
        (lse, dot), mass = self.counted(keep, rows[:, 0], rows[:, 1]), rows[:, 2]
        correct, entropy = zeros_like(lse), zeros_like(lse)
        if self.stats:
            correct, entropy = self.counted(keep, rows[:, 3], rows[:, 4])
        squares = self.squares(lse)
        losses, squares = self.weighted(row_weight, mass * lse - dot + squares, squares)
        return losses, lse, mass, squares, correct, entropy

    def no_gradients(self, sweep):
        """Where the sums of gradients begin: hidden states in the order, weight, bias; (1,) for what is not made."""
        (hidden, matrix, _, bias, _, _), _, _, _, size = sweep
        nothing = ops.zeros((1,), matrix.dtype)
        grad_hidden, grad_weight, grad_bias = nothing, nothing, nothing
        if self.of_input:
            grad_hidden = ops.zeros((hidden.shape[0] + size, hidden.shape[1]), matrix.dtype)
        if self.of_weight:
            grad_weight = zeros_like(matrix)
        if self.of_bias and bias is not None:
            grad_bias = zeros_like(bias)
        return grad_hidden, grad_weight, grad_bias

    def add_gradients(self, sweep, chunk, rows, entropies, sums):
        """`sums` with a chunk's part; `rows` are its lse, its Σ w·q', and what arrives at its losses and at lse;
        `entropies`, where they have a gradient, those of the rows and what arrives at them."""
        (_, matrix, _, bias, weight, row_weight), _, _, (offset, total), _ = sweep
        (place, index, valid), (hidden, target, logits) = chunk
        lse, mass, upstream, of_lse = rows
        if row_weight is not None:
            upstream, of_lse = self.weighted(ops.gather(row_weight, index, 0), upstream, of_lse)
        nothing, block = zeros_like(upstream), ClassBlock(offset, total)
        upstream, of_lse = ops.select(valid, upstream, nothing), ops.select(valid, of_lse, nothing)
        slope = self.partial_backward(
            upstream, of_lse, logits, target, weight, lse, mass, self.options, block
        )
        if entropies is not None:
            arriving = ops.select(valid, entropies[1], zeros_like(entropies[1]))
            of_entropy = entropy_backward(arriving, logits, lse, entropies[0], self.options)
            of_entropy = ops.where(valid.expand_dims(1), of_entropy, 0.0)
            slope = slope + of_entropy.astype(slope.dtype)
        grad_hidden, grad_weight, grad_bias = sums
        if self.of_input:
            part = _product(slope, matrix).astype(matrix.dtype)
            grad_hidden = _write_rows(grad_hidden, place.expand_dims(1), part)
        if self.of_weight:
            part = _product_of_transpose(slope, hidden).astype(matrix.dtype)
            grad_weight = grad_weight + part
        if self.of_bias and bias is not None:
            grad_bias = grad_bias + _sum(slope, 0)
        return grad_hidden, grad_weight, grad_bias

    def add_chunk_gradients(self, sweep, saved, first, sums):
        """The logits again, and from them the gradients."""
        chunk = self.chunk(sweep, first)
        (_, index, _), (hidden, _, _) = chunk
        lse, mass, grad_loss, grad_squares, entropy, grad_entropy = saved
        own_lse, own_mass = ops.gather(lse, index, 0), ops.gather(mass, index, 0)
        upstream = ops.gather(grad_loss, index, 0)
        of_lse = self.of_squares(own_lse, upstream + ops.gather(grad_squares, index, 0))
        rows = (own_lse, own_mass, upstream.astype(hidden.dtype), of_lse.astype(hidden.dtype))
        entropies = None
        if self.entropy_gradient:
            entropies = (ops.gather(entropy, index, 0), ops.gather(grad_entropy, index, 0))
        return self.add_gradients(sweep, chunk, rows, entropies, sums)

    def gradients_of(self, tensors, out, dout):
        """The gradients that this Cell makes, those of all rows, from its inputs."""
        sweep, position = self.prepared(*tensors)
        saved = (out[1], out[2], dout[0], dout[3], out[5], dout[5])
        sums = _over_chunks(self.add_chunk_gradients, sweep, saved, self.no_gradients(sweep))
        return self.unordered(sums, position, tensors[1])

    def bprop(self, hidden, linear_weight, target, linear_bias, weight, row_weight, out, dout):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        grads = self.gradients_of(tensors, out, dout)
        if self.partly and compiling():
            grads = self.completed(grads, self.others.gradients_of(tensors, out, dout))
        return self.returned(grads, None, tensors)

    def completed(self, grads, others):
        grad_hidden = grads[0] if self.of_input else others[0]
        grad_weight = grads[1] if self.of_weight else others[1]
        return grad_hidden, grad_weight, grads[2] if self.of_bias else others[2]

    def unordered(self, sums, position, linear_weight):
        """Sums of gradients with rows where they belong, and 0 for classes of padding."""
        grad_hidden, grad_weight, grad_bias = sums
        if self.of_input:
            grad_hidden = ops.gather(grad_hidden, position, 0)
        if self.of_weight:
            grad_weight = with_padding(grad_weight, linear_weight, 0)
        if self.of_bias:
            grad_bias = with_padding(grad_bias, linear_weight, 0)
        return grad_hidden, grad_weight, grad_bias

    def returned(self, grads, factor, tensors):
        """What a bprop returns: gradients times `factor` in the inputs' dtypes, and anything for what is not made:
        target and weights are constants, and PyNative wants nothing else that is not made."""
        hidden, linear_weight, target, linear_bias, weight, row_weight = tensors
        grad_hidden, grad_weight, grad_bias = hidden, linear_weight, linear_bias
        if self.of_input or compiling():
            grad_hidden = self.location.collected(_scaled(grads[0], factor))
            grad_hidden = _once(grad_hidden.astype(hidden.dtype))
        if self.of_weight or compiling():
            grad_weight = _once(_scaled(grads[1], factor).astype(linear_weight.dtype))
        if linear_bias is not None and (self.of_bias or compiling()):
            grad_bias = _once(_scaled(grads[2], factor).astype(linear_bias.dtype))
        return grad_hidden, grad_weight, target, grad_bias, weight, row_weight


@constexpr
def _refuse_loop_in_bprop():
    raise NotImplementedError(
        f"ms_ce: MindSpore {_versions.MINDSPORE} compiles no gradient of the linear loss in several chunks with "
        "reduction 'none', statistics or log-probabilities; take a chunk_bytes that holds all logits, backend='cpu', "
        "PyNative, or MindSpore 2.8"
    )


class UndifferentiatedRows(ChunkedRows):
    """ChunkedRows in a graph where a bprop can hold no loop: MindSpore would say that a pointer is null."""

    def bprop(self, hidden, linear_weight, target, linear_bias, weight, row_weight, out, dout):
        _refuse_loop_in_bprop()
        return hidden, linear_weight, target, linear_bias, weight, row_weight


def rows_in_graph() -> type[ChunkedRows]:
    """The Cell of row losses for a graph."""
    return ChunkedRows if _versions.loops_in_bprops else UndifferentiatedRows


class ChunkedSum(ChunkedRows):
    """The sum of the row losses, with gradients from the same sweep.

    Inputs: those of ChunkedRows. Outputs: the sum (), then the sums of gradients for an upstream gradient of 1.
    """

    def construct(self, hidden, linear_weight, target, linear_bias, weight, row_weight):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        sweep, position = self.prepared(*tensors)
        state = (ops.zeros((1,), self.wide), *self.no_gradients(sweep))
        state = _over_chunks(self.add_both, sweep, (), state)
        grads = self.unordered(state[1:], position, linear_weight)
        return state[0].reshape(()), grads[0], grads[1], grads[2]

    def add_both(self, sweep, saved, first, state):
        """Loss and gradients of a chunk, from its logits."""
        chunk = self.chunk(sweep, first)
        (_, index, valid), given = chunk
        rows, exact = self.statistics_of(sweep, given), given[0].dtype
        lse, dot, mass = rows[:, 0], rows[:, 1], rows[:, 2]
        losses = mass * lse - dot + self.squares(lse)
        if sweep[0][5] is not None:
            losses = self.weighted(ops.gather(sweep[0][5], index, 0), losses)[0]
        losses = ops.select(valid, losses, zeros_like(losses))
        one = ones_like(lse)
        rows = (lse, mass, one.astype(exact), self.of_squares(lse, one).astype(exact))
        sums = self.add_gradients(sweep, chunk, rows, None, state[1:])
        return state[0] + _sum(losses), sums[0], sums[1], sums[2]

    def bprop(self, hidden, linear_weight, target, linear_bias, weight, row_weight, out, dout):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        factor = dout[0].astype(exact_dtype(hidden.dtype))
        grads = (out[1], out[2], out[3])
        if self.partly and compiling():
            others = self.others.construct(*tensors)
            grads = self.completed(grads, others[1:])
        return self.returned(grads, factor, tensors)
