"""The loop over chunks of rows of the linear loss, by MindSpore's matrix products: any device, one or several of them.

A chunk's logits are made, reduced to statistics by the backend (`partial`), completed by the other holders of classes
where there are any, and turned into gradients (`partial_backward`). A compiled graph holds one loop, whatever the
number of rows: it compiles faster and holds less than an unrolled one. Rows of ignore_index are put last, and the
loop ends before them.
"""

from __future__ import annotations

from mindspore import Tensor, get_context, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce.ops import composed
from ms_ce.ops.composed_cells import number
from ms_ce.ops.graph import compiling, is_class_index, nan_if_any
from ms_ce.ops.linear_plan import (
    counting,
    exact_dtype,
    known_rows,
    not_vectorised,
    rows_of_chunk,
)
from ms_ce.ops.options import ClassBlock, Gradients, Options

_product = P.MatMul()
_product_with_transpose = P.MatMul(transpose_b=True)
_product_of_transpose = P.MatMul(transpose_a=True)
_write_rows = P.TensorScatterUpdate()
_running_sum = P.CumSum()
_sum = P.ReduceSum()
_zeros_like, _ones_like = P.ZerosLike(), P.OnesLike()


def on_cpu() -> bool:
    return get_context("device_target") == "CPU"


@constexpr
def _needs_cast(dtype) -> bool:
    return on_cpu() and dtype in (mstype.float16, mstype.bfloat16)


def readable(values):
    """Float values that MindSpore can reshape and take rows of: its CPU does neither with bfloat16 in a graph."""
    return values.astype(mstype.float32) if _needs_cast(values.dtype) else values


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
        return (_zeros_like(gradient) + nothing,)


_once = _Once()


def _padded(gradient, columns):
    """A gradient of weight or bias with 0 for the classes of padding."""
    padding = columns - gradient.shape[0]
    if padding <= 0:
        return gradient
    zeros = ops.zeros((padding, *gradient.shape[1:]), gradient.dtype)
    return ops.concat((gradient, zeros))


def _scaled(gradient, factor):
    if factor is None:
        return gradient
    return gradient * factor


class OneDevice(nn.Cell):
    """Where the classes lie: all of them here. `ms_ce.parallel.linear` has the other kind."""

    def block_of(self, columns):
        """(offset, classes held, classes in all) of a weight with this many rows."""
        return 0, columns, columns

    def columns(self, held):
        """Classes of the device that holds most: all devices cut rows into the same chunks."""
        return held

    def whole(self, statistics):
        """(rows, 3) of this device's classes to those of all classes."""
        return statistics

    def gathered(self, hidden):
        """All rows, from those that this device was given."""
        return hidden

    def collected(self, grad_hidden):
        """The gradient of what this device was given, from its classes' part of that of all rows."""
        return grad_hidden


class ChunkedRows(nn.Cell):
    """Row losses, and in the backward pass the gradients, from logits that are made again there.

    Inputs: hidden (N, H), linear_weight (C_local, H), target (N,) class indices or (N, C_local) probabilities,
    linear_bias (C_local,) or None, weight of all classes or None. Target and weight are constants.
    Where not all `gradients` are wanted, a graph may ask for the others all the same, say for a parameter that was
    frozen: they come from a sweep of their own (`others`), which the compiler drops where nobody does.
    Outputs: row losses, lse and Σ w·q' of each row, z-losses, whether each row is right and its entropy; all (N,). The
    last two are made for `stats` only.
    """

    def __init__(
        self,
        kernels,
        place,
        options: Options,
        chunk_bytes: int,
        gradients: Gradients,
        stats: bool = False,
        alone: bool = False,
    ):
        super().__init__()
        made = gradients[1:]
        self.of_input, self.of_weight, self.of_bias = made
        self.partly = not alone and not all(made)
        if self.partly:
            others = Gradients(gradients.in_forward, *(not one for one in made))
            self.others = type(self)(kernels, place, options, chunk_bytes, others, alone=True)
        self.partial, self.partial_backward = kernels.partial, kernels.partial_backward
        self.place, self.chunk_bytes, self.stats = place, chunk_bytes, stats
        self.options = options._replace(reduction="none")
        self.ignore_index, self.z_loss = options.ignore_index, options.z_loss
        # Statistics are kept in float64 where there is one.
        self.wide = mstype.float64 if on_cpu() else mstype.float32

    def construct(self, hidden, linear_weight, target, linear_bias, weight):
        given = self.prepared(hidden, linear_weight, target, linear_bias, weight)
        width = 5 if self.stats else 3
        state = (ops.zeros((given[0].shape[0] + given[9], width), self.wide),)
        if compiling():
            first = Tensor(0, mstype.int32)
            while first < given[6]:
                state = self.add_statistics(given, first, state)
                first = first + given[9]
        else:
            for first in range(0, int(given[6]), given[9]):
                state = self.add_statistics(given, Tensor(first, mstype.int32), state)
        return self.finished(ops.gather(state[0], given[7], 0), target)

    def prepared(self, hidden, linear_weight, target, linear_bias, weight):
        """(hidden, matrix, target, bias, weight, order, count, position, block, rows): `rows` rows a chunk
        are taken in `order`, a row stands at `position` in it, and the first `count` have a loss."""
        exact = exact_dtype(hidden.dtype)
        hidden = self.place.gathered(not_vectorised(hidden))
        offset, held, total = self.place.block_of(linear_weight.shape[0])
        matrix = linear_weight.astype(exact)
        bias = None if linear_bias is None else linear_bias.astype(exact)
        if held < linear_weight.shape[0]:
            matrix = matrix[:held]
            bias = None if bias is None else bias[:held]
        seen = _running_sum(ops.ones((hidden.shape[0],), mstype.int32), 0)
        order, count, position = seen - 1, hidden.shape[0], seen - 1
        if is_class_index(target.dtype):
            target = target.astype(mstype.int64)
            keep = ops.not_equal(target, self.ignore_index)
            counts = keep.astype(mstype.int32)
            kept, count = _running_sum(counts, 0), _sum(counts)
            position = ops.where(keep, kept - 1, count + seen - kept - 1)
            order = _write_rows(_zeros_like(order), position.expand_dims(1), order)
        columns = self.place.columns(linear_weight.shape[0])
        features = linear_weight.shape[1]
        rows = rows_of_chunk(hidden.dtype, known_rows(hidden), columns, features, self.chunk_bytes)
        block = (offset, total)
        return hidden, matrix, target, bias, weight, order, count, position, block, rows

    def chunk(self, given, first):
        """(places in the order, their rows, which of them count, hidden, target, logits) of a chunk."""
        hidden, matrix, target, bias, _, order, count, _, _, rows = given
        exact = matrix.dtype
        place = first + counting(rows)
        valid = place < count
        index = ops.gather(order, ops.minimum(place, hidden.shape[0] - 1), 0)
        own = ops.gather(hidden, index, 0).astype(exact)
        own_target = ops.gather(target, index, 0)
        if is_class_index(target.dtype):
            own_target = ops.where(valid, own_target, self.ignore_index)
        else:
            # Without the columns of padding.
            own_target = own_target.astype(exact)[:, : matrix.shape[0]]
        logits = _product_with_transpose(own, matrix)
        if bias is not None:
            logits = logits + bias
        return place, index, valid, own, own_target, logits

    def statistics(self, given, own_target, logits):
        """(rows, 3) over all classes: lse, Σ w·q'·x and Σ w·q'."""
        offset, total = given[8]
        block = ClassBlock(offset, total)
        local = self.partial(logits, own_target, given[4], self.options, block)
        return self.place.whole(local.astype(self.wide).reshape((-1, 3)))

    def add_statistics(self, given, first, state):
        place, _, _, _, own_target, logits = self.chunk(given, first)
        rows = self.statistics(given, own_target, logits)
        if self.stats:
            logged = self.logged(logits, own_target, rows[:, 0])
            rows = ops.concat((rows, logged.astype(self.wide)), 1)
        return (_write_rows(state[0], place.expand_dims(1), rows),)

    def logged(self, logits, target, lse):
        """(rows, 2): whether the largest logit is the target's, and the entropy."""
        x = composed._transformed(logits, self.options)
        best = target if is_class_index(target.dtype) else target.argmax(axis=1)
        correct = x.argmax(axis=1).astype(mstype.int64) == best.astype(mstype.int64)
        log_prob = x - lse.astype(x.dtype).expand_dims(1)
        entropy = -composed._product(ops.exp(log_prob), log_prob).sum(axis=1)
        return ops.stack((correct.astype(x.dtype), entropy), 1)

    def finished(self, rows, target):
        """The outputs, from the statistics of all rows; 0 in ignored ones."""
        lse, dot, mass = rows[:, 0], rows[:, 1], rows[:, 2]
        correct, entropy = _zeros_like(lse), _zeros_like(lse)
        if self.stats:
            correct, entropy = rows[:, 3], rows[:, 4]
        if is_class_index(target.dtype):
            # Rows of ignore_index that share a chunk with others have a statistic of their own.
            keep = ops.not_equal(target.astype(mstype.int64), self.ignore_index)
            nothing = _zeros_like(lse)
            lse, dot = ops.select(keep, lse, nothing), ops.select(keep, dot, nothing)
            correct, entropy = (
                ops.select(keep, correct, nothing),
                ops.select(keep, entropy, nothing),
            )
        squares = number(self.z_loss, self.wide) * lse * lse
        return mass * lse - dot + squares, lse, mass, squares, correct, entropy

    def no_gradients(self, given):
        """Where the sums of gradients begin: hidden states in the order, weight, bias; (1,) for what is not made."""
        hidden, matrix, bias = given[0], given[1], given[3]
        nothing = ops.zeros((1,), matrix.dtype)
        grad_hidden, grad_weight, grad_bias = nothing, nothing, nothing
        if self.of_input:
            grad_hidden = ops.zeros((hidden.shape[0] + given[9], hidden.shape[1]), matrix.dtype)
        if self.of_weight:
            grad_weight = _zeros_like(matrix)
        if self.of_bias and bias is not None:
            grad_bias = _zeros_like(bias)
        return grad_hidden, grad_weight, grad_bias

    def add_gradients(self, given, chunk, lse, mass, upstream, of_lse, sums):
        """`sums` with a chunk's part, from the gradients that arrive at its rows' losses and lse."""
        place, _, valid, own, own_target, logits = chunk
        matrix, bias, weight = given[1], given[3], given[4]
        offset, total = given[8]
        block = ClassBlock(offset, total)
        nothing = _zeros_like(upstream)
        upstream, of_lse = ops.select(valid, upstream, nothing), ops.select(valid, of_lse, nothing)
        slope = self.partial_backward(
            upstream, of_lse, logits, own_target, weight, lse, mass, self.options, block
        )
        grad_hidden, grad_weight, grad_bias = sums
        if self.of_input:
            part = _product(slope, matrix)
            grad_hidden = _write_rows(grad_hidden, place.expand_dims(1), part)
        if self.of_weight:
            grad_weight = grad_weight + _product_of_transpose(slope, own)
        if self.of_bias and bias is not None:
            grad_bias = grad_bias + _sum(slope, 0)
        return grad_hidden, grad_weight, grad_bias

    def add_chunk_gradients(self, given, saved, first, sums):
        """The logits again, and from them the gradients."""
        lse, mass, grad_loss, grad_squares = saved
        chunk = self.chunk(given, first)
        index, exact = chunk[1], given[1].dtype
        own_lse, own_mass = ops.gather(lse, index, 0), ops.gather(mass, index, 0)
        upstream = ops.gather(grad_loss, index, 0)
        of_square = upstream + ops.gather(grad_squares, index, 0)
        of_lse = 2.0 * number(self.z_loss, self.wide) * own_lse * of_square
        rows = (own_lse, own_mass, upstream.astype(exact), of_lse.astype(exact))
        return self.add_gradients(given, chunk, rows[0], rows[1], rows[2], rows[3], sums)

    def gradients_of(self, hidden, linear_weight, target, linear_bias, weight, out, dout):
        """The gradients that this Cell makes, those of all rows."""
        given = self.prepared(hidden, linear_weight, target, linear_bias, weight)
        saved = (out[1], out[2], dout[0], dout[3])
        sums = self.swept_backward(given, saved)
        return self.unordered(sums, given[7], linear_weight.shape[0])

    def swept_backward(self, given, saved):
        """The sums of gradients. A loop beside a Parameter would be kept by the compiler even where nobody reads it."""
        sums = self.no_gradients(given)
        if compiling():
            first = Tensor(0, mstype.int32)
            while first < given[6]:
                sums = self.add_chunk_gradients(given, saved, first, sums)
                first = first + given[9]
        else:
            for first in range(0, int(given[6]), given[9]):
                sums = self.add_chunk_gradients(given, saved, Tensor(first, mstype.int32), sums)
        return sums

    def bprop(self, hidden, linear_weight, target, linear_bias, weight, out, dout):
        grads = self.gradients_of(hidden, linear_weight, target, linear_bias, weight, out, dout)
        if self.partly and compiling():
            others = self.others.gradients_of(
                hidden, linear_weight, target, linear_bias, weight, out, dout
            )
            grads = self.completed(grads, others)
        return self.returned(grads, None, hidden, linear_weight, target, linear_bias, weight)

    def completed(self, grads, others):
        grad_hidden = grads[0] if self.of_input else others[0]
        grad_weight = grads[1] if self.of_weight else others[1]
        return grad_hidden, grad_weight, grads[2] if self.of_bias else others[2]

    def unordered(self, sums, position, columns):
        """Sums of gradients with rows where they belong, and 0 for classes of padding."""
        grad_hidden, grad_weight, grad_bias = sums
        if self.of_input:
            grad_hidden = ops.gather(grad_hidden, position, 0)
        if self.of_weight:
            grad_weight = _padded(grad_weight, columns)
        if self.of_bias:
            grad_bias = _padded(grad_bias, columns)
        return grad_hidden, grad_weight, grad_bias

    def returned(self, grads, factor, hidden, linear_weight, target, linear_bias, weight):
        """What a bprop returns: gradients times `factor` in the inputs' dtypes, and anything for what is not made:
        target and weight are constants, and PyNative wants nothing else that is not made."""
        grad_hidden, grad_weight, grad_bias = hidden, linear_weight, linear_bias
        if self.of_input or compiling():
            grad_hidden = self.place.collected(_scaled(grads[0], factor))
            grad_hidden = _once(grad_hidden.astype(hidden.dtype))
        if self.of_weight or compiling():
            grad_weight = _once(_scaled(grads[1], factor).astype(linear_weight.dtype))
        if linear_bias is not None and (self.of_bias or compiling()):
            grad_bias = _once(_scaled(grads[2], factor).astype(linear_bias.dtype))
        return grad_hidden, grad_weight, target, grad_bias, weight


class ChunkedSum(ChunkedRows):
    """The sum of the row losses, with gradients from the same sweep.

    Inputs: those of ChunkedRows. Outputs: the sum (), then the sums of gradients for an upstream gradient of 1.
    """

    def construct(self, hidden, linear_weight, target, linear_bias, weight):
        given = self.prepared(hidden, linear_weight, target, linear_bias, weight)
        total, sums = self.swept(given)
        grads = self.unordered(sums, given[7], linear_weight.shape[0])
        return total.reshape(()), grads[0], grads[1], grads[2]

    def swept(self, given):
        """The sums of losses and of gradients."""
        total, sums = ops.zeros((1,), self.wide), self.no_gradients(given)
        if compiling():
            first = Tensor(0, mstype.int32)
            while first < given[6]:
                total, sums = self.add_both(given, first, total, sums)
                first = first + given[9]
        else:
            for first in range(0, int(given[6]), given[9]):
                total, sums = self.add_both(given, Tensor(first, mstype.int32), total, sums)
        return total, sums

    def add_both(self, given, first, total, sums):
        """Loss and gradients of a chunk, from its logits."""
        chunk = self.chunk(given, first)
        valid, exact = chunk[2], given[1].dtype
        rows = self.statistics(given, chunk[4], chunk[5])
        lse, dot, mass = rows[:, 0], rows[:, 1], rows[:, 2]
        losses = mass * lse - dot + number(self.z_loss, self.wide) * lse * lse
        losses = ops.select(valid, losses, _zeros_like(losses))
        of_lse = (2.0 * number(self.z_loss, self.wide) * lse).astype(exact)
        one = _ones_like(of_lse)
        sums = self.add_gradients(given, chunk, lse, mass, one, of_lse, sums)
        return total + _sum(losses), sums

    def bprop(self, hidden, linear_weight, target, linear_bias, weight, out, dout):
        factor = dout[0].astype(exact_dtype(hidden.dtype))
        grads = (out[1], out[2], out[3])
        if self.partly and compiling():
            others = self.others.construct(hidden, linear_weight, target, linear_bias, weight)
            grads = self.completed(grads, others[1:])
        return self.returned(grads, factor, hidden, linear_weight, target, linear_bias, weight)
