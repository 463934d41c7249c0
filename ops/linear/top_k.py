"""Divergences between a student's distribution and what is known of a teacher's: its log-probabilities of k classes.

A chunk has the student's logits. All other classes of a row are taken as one, the tail; its log-probability comes from
the logits without the k, since 1 - Σ q of the k would cancel where the tail is small. Where ranks hold blocks of
classes they exchange k + 1 numbers a row: each of the k logits is one rank's, and of the others each has an lse.
"""

from __future__ import annotations

import functools

import numpy as np
from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr
from mindspore.ops import operations as P
from mindspore.ops.operations import _grad_ops as G

from ms_ce._versions import zeros_like
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.composed.losses import through_transform, transformed
from ms_ce.ops.eager import DifferentiableCell
from ms_ce.ops.graph import compiling, select
from ms_ce.ops.linear.divergence import ChunkOfLogits, by_class, times
from ms_ce.ops.linear.losses import functions_of, made_in_graph
from ms_ce.ops.linear.sweep import as_rows, over_chunks, own, readable, write_rows
from ms_ce.ops.options import ClassBlock, Gradients, Options, Plan
from ms_ce.ops.pieces import ones_like
from ms_ce.ops.rows import OneDevice
from ms_ce.ops.table import kernels_of

_gather, _place = P.GatherD(), G.GatherDGradV2()
_sum, _largest = P.ReduceSum(), P.ReduceMax()


class ChunkedTopK(ChunkOfLogits, DifferentiableCell):
    """Divergences of rows, and in the backward pass their gradients, from logits that are made again there.

    Inputs: student_hidden (N, H), student_weight (C_local, H), student_bias (C_local,) or None; teacher_log_probs
    (N, k) and teacher_indices (N, k), constants; row_weight (N,) or None.
    Outputs: divergences times row_weight, lse, the tail's log-probability; all (N,).
    """

    def __init__(
        self,
        kernels,
        place,
        options: Options,
        chunk_bytes: int,
        gradients: Gradients,
        beta: float,
        tail: bool,
    ):
        super().__init__(kernels, place, options, chunk_bytes, gradients)
        self.beta, self.tail = beta, tail
        self.untransformed = self.options._replace(softcap=0.0, logit_scale=1.0)

    def construct(
        self,
        student_hidden,
        student_weight,
        student_bias,
        teacher_log_probs,
        teacher_indices,
        row_weight,
    ):
        student = (student_hidden, student_weight, student_bias)
        return self.computed(student, (teacher_log_probs, teacher_indices), row_weight)

    def bprop(
        self,
        student_hidden,
        student_weight,
        student_bias,
        teacher_log_probs,
        teacher_indices,
        row_weight,
        out,
        dout,
    ):
        student, teacher = (
            (student_hidden, student_weight, student_bias),
            (teacher_log_probs, teacher_indices),
        )
        grads, factor = self.differentiated(student, teacher, row_weight, out, dout)
        tensors = (student_hidden, student_weight, None, student_bias, None, row_weight)
        found = self.returned(grads, factor, tensors, (None, None))
        return (
            found[0],
            found[1],
            found[3],
            teacher_log_probs,
            zeros_like(teacher_indices),
            row_weight,
        )

    def computed(self, student, teacher, row_weight):
        """The outputs."""
        sweep, position = self.begun_alone(student, row_weight)
        state = (ops.zeros((position.shape[0] + sweep[-1], 3), self.wide),)
        state = over_chunks(self.add_rows, sweep, self.owned(teacher), state)
        rows = ops.gather(state[0], position, 0)
        keep = None if row_weight is None else ops.not_equal(row_weight, 0)
        losses, lse, tail = self.counted(keep, rows[:, 0], rows[:, 1], rows[:, 2])
        return self.weighted(row_weight, losses)[0], lse, tail

    def owned(self, teacher):
        return own(teacher[0].astype(self.wide)), own(teacher[1].astype(mstype.int64))

    def taught(self, sweep, teacher, first):
        """(where a chunk's rows stand, hidden states, logits, the k classes, their log p and the tail's)."""
        where, (hidden, _, logits) = self.chunk(sweep, first)
        valid = where[2].expand_dims(1)
        log_p = select(valid, ops.gather(teacher[0], where[1], 0), -np.inf)
        classes = select(valid, ops.gather(teacher[1], where[1], 0), 0)
        offset, total = sweep[3]
        bad = ops.logical_or(classes < 0, classes >= total)
        classes = select(bad, 0, classes)
        placed = self.placed(logits, classes, offset, total)
        if placed[1] is None:
            bad = ops.logical_or(bad, ops.logical_and(valid, self.twice(placed)))
        log_p = select(bad, np.nan, log_p)
        if self.tail:
            rest = 1.0 - _sum(ops.exp(log_p), 1).expand_dims(1)
            if classes.shape[1] == total:
                rest = zeros_like(rest)
            log_p = ops.concat((log_p, ops.log(select(rest < 0, 0.0, rest))), 1)
        return where, hidden, logits, placed, log_p

    def placed(self, logits, classes, offset, total):
        """(the columns of the k classes, which of them lie here: None where all do, how often they name each logit)."""
        columns, here, held = classes, None, logits.shape[1]
        ones = ones_like(columns)
        if held != total:
            columns = classes - offset
            here = ops.logical_and(columns >= 0, columns < held)
            columns, ones = select(here, columns, 0), here
        return columns, here, _place(logits, 1, columns, ones.astype(logits.dtype))

    def twice(self, classes):
        """Which of the k classes stand in the same column as another."""
        return _gather(classes[2], 1, classes[0]) > 1

    def at_classes(self, x, classes, of_others):
        """(rows, k + 1): the logits of the k classes, and lse of all others from that of the others here."""
        columns, here, _ = classes
        picked = _gather(x, 1, columns).astype(self.wide)
        if here is not None:
            # Of a class that is there twice only the rank that holds it knows, which tells the others by nan.
            picked = select(self.twice(classes), np.nan, picked)
            picked = select(here, picked, 0.0)
        return self.location.joined(ops.concat((picked, of_others), 1))

    def log_probs(self, sweep, logits, classes):
        """(lse, log q of the classes and of the tail) over all classes."""
        x = transformed(logits, self.options)
        others = select(classes[2] > 0, -np.inf, x)
        labels, block = ops.zeros(logits.shape[:1], mstype.int32), ClassBlock(*sweep[3])
        rest = self.partial(others, labels, None, self.untransformed, block)
        both = self.at_classes(x, classes, rest.astype(self.wide).reshape((-1, 3))[:, :1])
        top = _largest(both, 1).expand_dims(1)
        lse = top + ops.log(_sum(ops.exp(both - top), 1).expand_dims(1))
        return lse.reshape((-1,)), both - lse

    def of_classes(self, log_q, log_p):
        """(terms, their derivatives by log q): of the tail where it counts, which `log_q` always has."""
        if not self.tail:
            log_q = log_q[:, :-1]
        terms, slope = by_class(log_q, log_p, self.beta)
        if self.beta == 1.0:
            slope = slope + ops.exp(log_q)
        return terms, slope

    def add_rows(self, sweep, teacher, first, state):
        where, _, logits, classes, log_p = self.taught(sweep, teacher, first)
        lse, log_q = self.log_probs(sweep, logits, classes)
        losses = _sum(self.of_classes(log_q, log_p)[0], 1)
        rows = ops.stack((losses, lse, log_q[:, -1]), 1)
        return (write_rows(state[0], where[0].expand_dims(1), rows),)

    def slope(self, logits, classes, lse, log_q, of_classes, upstream):
        """The gradient of the logits: g of its own at each of the k classes, g·q / Σ q of the tail's at the others, and
        -q·Σ g at all."""
        x, whole = transformed(logits, self.options), _sum(of_classes, 1)
        shift, factor = lse.expand_dims(1).astype(x.dtype), (-whole * upstream).expand_dims(1)
        factor = factor.astype(x.dtype)
        if self.tail:
            chosen, tail = classes[2] > 0, log_q[:, -1]
            of_tail = (of_classes[:, -1] - ops.exp(tail) * whole) * upstream
            # Of the tail's share, since q itself may be too small for a number.
            shift = select(chosen, shift, (lse + tail).expand_dims(1).astype(x.dtype))
            factor = select(chosen, factor, of_tail.expand_dims(1).astype(x.dtype))
        columns, here, _ = classes
        own = of_classes[:, : columns.shape[1]] * upstream.expand_dims(1)
        if here is not None:
            own = select(here, own, 0.0)
        slope = times(factor, ops.exp(x - shift)) + _place(x, 1, columns, own.astype(x.dtype))
        return through_transform(slope, logits, self.options)

    def add_gradients_of_rows(self, sweep, saved, first, sums):
        """The logits again, and from them the gradients."""
        teacher, arriving, lse, tail = saved
        where, hidden, logits, classes, log_p = self.taught(sweep, teacher, first)
        lse, tail = ops.gather(lse, where[1], 0), ops.gather(tail, where[1], 0).expand_dims(1)
        both = self.at_classes(transformed(logits, self.options), classes, tail)
        log_q = ops.concat((both[:, :-1] - lse.expand_dims(1), tail), 1)
        upstream = self.upstream(sweep, where, ops.gather(arriving, where[1], 0))
        of_classes = self.of_classes(log_q, log_p)[1]
        slope = self.slope(logits, classes, lse, log_q, of_classes, upstream)
        slope = select(where[2].expand_dims(1), slope, 0.0)
        return self.add_products(sweep, where[0], hidden, slope, sums)

    def differentiated(self, student, teacher, row_weight, out, dout):
        """(sums of the student's gradients, what they are to be multiplied by)."""
        sweep, position = self.begun_alone(student, row_weight)
        saved = (self.owned(teacher), dout[0], out[1], out[2])
        sums = over_chunks(self.add_gradients_of_rows, sweep, saved, self.no_gradients(sweep))
        return self.unordered(sums, position, student[1]), None


class ChunkedTopKSum(ChunkedTopK):
    """The sum of the divergences, with gradients from the same sweep.

    Inputs: those of ChunkedTopK. Outputs: the sum (), then the sums of gradients for an upstream gradient of 1.
    """

    def computed(self, student, teacher, row_weight):
        sweep, position = self.begun_alone(student, row_weight)
        state = (ops.zeros((1,), self.wide), *self.no_gradients(sweep))
        state = over_chunks(self.add_both, sweep, self.owned(teacher), state)
        grads = self.unordered(state[1:], position, student[1])
        return state[0].reshape(()), grads[0], grads[1], grads[2]

    def add_both(self, sweep, teacher, first, state):
        """Divergences and gradients of a chunk."""
        where, hidden, logits, classes, log_p = self.taught(sweep, teacher, first)
        lse, log_q = self.log_probs(sweep, logits, classes)
        terms, of_classes = self.of_classes(log_q, log_p)
        upstream = self.upstream(sweep, where, ones_like(lse))
        losses = _sum(terms, 1) * upstream
        losses = ops.select(where[2], losses, zeros_like(losses))
        slope = self.slope(logits, classes, lse, log_q, of_classes, upstream)
        slope = select(where[2].expand_dims(1), slope, 0.0)
        made = self.add_products(sweep, where[0], hidden, slope, state[1:])
        return state[0] + _sum(losses), made[0], made[1], made[2]

    def differentiated(self, student, teacher, row_weight, out, dout):
        hidden, matrix, bias = student
        grads = functions_of((out[1], out[2], out[3]), hidden, matrix, bias)
        return grads, dout[0].astype(exact_dtype(hidden.dtype))


@constexpr
@functools.lru_cache(maxsize=64)
def _cell(backend, options, chunk_bytes, gradients, beta, tail, summed):
    """The Cell of these options, built once. A graph hands tuples over as plain ones."""
    kind = ChunkedTopKSum if summed else ChunkedTopK
    tuples = Options(*options), chunk_bytes, Gradients(*gradients)
    return kind(kernels_of(backend), OneDevice(), *tuples, beta, tail)


def as_top_k(teacher):
    """The teacher's log-probabilities and indices as (N, k)."""
    log_probs, indices = teacher
    k = indices.shape[-1]
    return readable(log_probs).reshape((-1, k)), indices.reshape((-1, k))


def may_scale_later(dtype) -> bool:
    """As of a LinearForm: sums are kept in the dtype computed in."""
    return True


def top_k_distillation(
    plan: Plan, gradients: Gradients, beta: float, tail: bool, student, teacher, row_weight
):
    """As `protocol.TopKForm` says."""
    hidden, linear_weight, linear_bias = student
    if row_weight is not None:
        row_weight = row_weight.reshape((-1,))
    if compiling():
        gradients = made_in_graph(gradients)
    rows = plan.options.reduction == "none"
    summed = gradients.in_forward and not rows
    cell = _cell(plan.backend, plan.options, plan.chunk_bytes, gradients, beta, tail, summed)
    student = (as_rows(hidden), linear_weight, linear_bias)
    out = cell(*student, *as_top_k(teacher), row_weight)[0]
    if rows:
        return out.reshape(hidden.shape[:-1])
    return out if summed else _sum(out)
