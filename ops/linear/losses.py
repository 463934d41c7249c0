"""The linear loss of rows whose logits are made a chunk at a time.

A chunk's logits are reduced to statistics by the backend (`partial`), completed by the other holders of classes where
there are any, and turned into gradients: in a sweep of their own (`ChunkedRows`), or in the same one (`ChunkedSum`).
"""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce import _versions
from ms_ce._versions import zeros_like
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.composed.losses import predicted_class, transformed
from ms_ce.ops.eager import DifferentiableCell, recording, wanted
from ms_ce.ops.graph import compiling, is_class_index, select
from ms_ce.ops.linear.gradients import SweepGradients, not_made
from ms_ce.ops.linear.sweep import over_chunks, write_rows
from ms_ce.ops.options import Gradients, Options
from ms_ce.ops.pieces import largest_class, ones_like

_sum = P.ReduceSum()


@constexpr
def made_in_graph(gradients) -> Gradients:
    """Which gradients to make and where, in a graph: all in the forward pass where a bprop can hold no loop."""
    return Gradients(*gradients) if _versions.loops_in_bprops else Gradients(in_forward=True)


class ChunkedRows(SweepGradients, DifferentiableCell):
    """Row losses, and in the backward pass the gradients, from logits that are made again there.

    Inputs: those of Sweep.
    Where not all `gradients` are wanted, a graph may ask for the others all the same, say for a parameter that was
    frozen: they come from a sweep of their own (`others`), which the compiler drops where nobody does.
    Outputs: row losses times row_weight, lse and Σ w·q' of each row, z-losses times row_weight and entropies; all (N,).
    Entropies are made for `stats`, and for `tokens`, where they have a gradient; else they are 0. With `stats` follow,
    in int32, whether a row is right and the class that it predicts.
    """

    def __init__(
        self,
        kernels,
        place,
        options: Options,
        chunk_bytes: int,
        gradients: Gradients,
        stats: bool = False,
        tokens: bool = False,
        alone: bool = False,
    ):
        super().__init__(kernels, place, options, chunk_bytes, gradients)
        made = gradients[1:]
        self.partly = not alone and not all(made)
        if self.partly:
            others = Gradients(gradients.in_forward, *(not one for one in made))
            self.others = type(self)(
                kernels, place, options, chunk_bytes, others, stats, tokens, True
            )
        self.stats, self.tokens, self.entropies = stats, tokens, stats or tokens

    def construct(self, hidden, linear_weight, target, linear_bias, weight, row_weight):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        sweep, position = self.prepared(*tensors)
        state = self.no_statistics(position.shape[0] + sweep[-1])
        state = over_chunks(self.add_statistics, sweep, (), state)
        keep = self.kept(target, row_weight)
        made = self.finished(ops.gather(state[0], position, 0), keep, row_weight)
        if self.stats:
            classes = ops.gather(state[1], position, 0)
            correct, predicted = classes[:, 0], classes[:, 1]
            if keep is not None:
                correct, predicted = select(keep, correct, 0), select(keep, predicted, -1)
            return *made, correct.astype(mstype.int32), predicted.astype(mstype.int32)
        return made

    def no_statistics(self, rows):
        """Places for those of so many rows."""
        numbers = ops.zeros((rows, 3 + self.entropies), self.wide)
        if self.stats:
            return numbers, ops.zeros((rows, 2), mstype.int32)
        return (numbers,)

    def add_statistics(self, sweep, saved, first, state):
        where, given = self.chunk(sweep, first)
        place, rows = where[0].expand_dims(1), self.statistics_of(sweep, given)
        written = write_rows(state[0], place, rows)
        if self.stats:
            return written, write_rows(state[1], place, self.classes(given, rows[:, 0]))
        return (written,)

    def classes(self, given, lse):
        """(rows, 2): whether a row is right, and the class that it predicts."""
        _, target, logits = given
        predicted = predicted_class(transformed(logits, self.options), lse)
        if is_class_index(target.dtype):
            best = target.astype(mstype.int64)
            known = ops.logical_and(best >= 0, best < logits.shape[1])
            predicted = select(known, predicted, -1)
        else:
            best = largest_class(target)
        correct = ops.logical_and(predicted >= 0, predicted == best)
        return ops.stack((correct.astype(mstype.int32), predicted.astype(mstype.int32)), 1)

    def finished(self, rows, keep, row_weight):
        """The outputs that are numbers, from the statistics of all rows; 0 in those that do not count."""
        (lse, dot), mass = self.counted(keep, rows[:, 0], rows[:, 1]), rows[:, 2]
        entropy = zeros_like(lse)
        if self.entropies:
            entropy = self.counted(keep, rows[:, 3])[0]
        squares = self.squares(lse)
        losses, squares = self.weighted(row_weight, mass * lse - dot + squares, squares)
        return losses, lse, mass, squares, entropy

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
        if self.tokens:
            entropies = (ops.gather(entropy, index, 0), ops.gather(grad_entropy, index, 0))
        return self.add_gradients(sweep, chunk, rows, entropies, sums)

    def gradients_of(self, tensors, out, dout):
        """The gradients that this Cell makes, those of all rows, from its inputs."""
        sweep, position = self.prepared(*tensors)
        saved = (out[1], out[2], dout[0], dout[3], out[4], dout[4])
        sums = over_chunks(self.add_chunk_gradients, sweep, saved, self.no_gradients(sweep))
        return self.unordered(sums, position, tensors[1])

    def bprop(self, hidden, linear_weight, target, linear_bias, weight, row_weight, out, dout):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        grads = (hidden, linear_weight, linear_bias)
        if wanted(0, 1, 3):
            grads = self.gradients_of(tensors, out, dout)
        if self.partly and compiling():
            grads = self.completed(grads, self.others.gradients_of(tensors, out, dout))
        return self.returned(grads, None, tensors, self.data_gradients(tensors, out[1], dout[0]))


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


class _FunctionOf(nn.Cell):
    """A gradient as a function of the inputs, in PyNative. MindSpore takes `out` of a bprop for a constant, 2.7 always,
    and nobody would hear of a second derivative. A product, because of what `_versions.DIFFERENCES` says of Cells."""

    def construct(self, gradient, hidden, linear_weight, linear_bias):
        return gradient * 1

    def bprop(self, gradient, hidden, linear_weight, linear_bias, out, dout):
        return dout, zeros_like(hidden), zeros_like(linear_weight), zeros_like(linear_bias)


_function_of = _FunctionOf()


def functions_of(grads, hidden, linear_weight, linear_bias):
    """Gradients that the forward pass has made, for whoever differentiates them again."""
    if compiling():
        return grads
    return _functions_of(grads, hidden, linear_weight, linear_bias)


def _functions_of(grads, hidden, linear_weight, linear_bias):
    if not recording():
        return grads
    bias = linear_weight if linear_bias is None else linear_bias
    return tuple([_function_of(each, hidden, linear_weight, bias) for each in grads])


class ChunkedSum(ChunkedRows):
    """The sum of the row losses, with gradients from the same sweep.

    Inputs: those of Sweep. Outputs: the sum (), the sums of gradients for an upstream gradient of 1, and lse and row
    losses (N,).
    """

    def construct(self, hidden, linear_weight, target, linear_bias, weight, row_weight):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        sweep, position = self.prepared(*tensors)
        rows = ops.zeros((position.shape[0] + sweep[-1], 2), self.wide)
        state = (ops.zeros((1,), self.wide), rows, *self.no_gradients(sweep))
        state = over_chunks(self.add_both, sweep, (), state)
        grads = self.unordered(state[2:], position, linear_weight)
        rows = ops.gather(state[1], position, 0)
        return state[0].reshape(()), grads[0], grads[1], grads[2], rows[:, 0], rows[:, 1]

    def add_both(self, sweep, saved, first, state):
        """Loss and gradients of a chunk, from its logits."""
        chunk = self.chunk(sweep, first)
        (place, index, valid), given = chunk
        rows, exact = self.statistics_of(sweep, given), given[0].dtype
        lse, dot, mass = rows[:, 0], rows[:, 1], rows[:, 2]
        losses = mass * lse - dot + self.squares(lse)
        if sweep[0][5] is not None:
            losses = self.weighted(ops.gather(sweep[0][5], index, 0), losses)[0]
        losses = ops.select(valid, losses, zeros_like(losses))
        one = ones_like(lse)
        rows = (lse, mass, one.astype(exact), self.of_squares(lse, one).astype(exact))
        sums = self.add_gradients(sweep, chunk, rows, None, state[2:])
        rows = write_rows(state[1], place.expand_dims(1), ops.stack((lse, losses), 1))
        return state[0] + _sum(losses), rows, sums[0], sums[1], sums[2]

    def bprop(self, hidden, linear_weight, target, linear_bias, weight, row_weight, out, dout):
        tensors = (hidden, linear_weight, target, linear_bias, weight, row_weight)
        factor = dout[0].astype(exact_dtype(hidden.dtype))
        grads = functions_of((out[1], out[2], out[3]), hidden, linear_weight, linear_bias)
        if self.partly and compiling():
            others = self.others.construct(*tensors)
            grads = self.completed(grads, others[1:4])
        upstream = ones_like(out[4]) * dout[0].astype(self.wide)
        return self.returned(grads, factor, tensors, self.data_gradients(tensors, out[4], upstream))


class SumWithoutDataGradients(ChunkedSum):
    """ChunkedSum in a graph where a bprop can hold no loop, not even one that is left out."""

    def data_gradients(self, tensors, lse, upstream):
        return not_made(tensors[2]), not_made(tensors[4])


def sum_in_graph() -> type[ChunkedSum]:
    """The Cell of summed losses for a graph."""
    return ChunkedSum if _versions.loops_in_bprops else SumWithoutDataGradients
