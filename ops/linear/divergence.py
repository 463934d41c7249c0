"""Divergences between a student's and a teacher's distributions over chunks of rows, from the hidden states of both.

A chunk has the logits of both models, which live no longer than it does. The backend reduces them to lse, the rest is
MindSpore's primitives. Where ranks hold blocks of classes they exchange three numbers a row thrice: lse of the student
and of the teacher, and the sums over classes.
"""

from __future__ import annotations

import functools

from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce._versions import zeros_like
from ms_ce.ops.chunks import exact_dtype, known_rows
from ms_ce.ops.composed.losses import through_transform, transformed
from ms_ce.ops.eager import DifferentiableCell
from ms_ce.ops.graph import compiling, select
from ms_ce.ops.linear.gradients import SweepGradients
from ms_ce.ops.linear.losses import functions_of, made_in_graph
from ms_ce.ops.linear.sweep import as_rows, over_chunks, own, write_rows
from ms_ce.ops.options import Gradients, Options, Plan
from ms_ce.ops.pieces import number, ones_like, rest
from ms_ce.ops.rows import OneDevice
from ms_ce.ops.table import kernels_of

_product_with_transpose = P.MatMul(transpose_b=True)
_sum = P.ReduceSum()
# Of both models' logits, what the arrays of a chunk may take that are alive at once; and a chunk's bytes at least, and
# where a graph does not know the number of rows.
_SHARE, _ARRAYS, _LEAST, _UNKNOWN = 24, 20, 1 << 20, 1 << 23


@constexpr
def _chunk_bytes_of(dtype, rows: int | None, classes: int | None, given: int) -> int:
    """What the logits of a chunk may take, of each model; 0 stands for the default."""
    if given or rows is None or classes is None:
        return given or _UNKNOWN
    logits = rows * classes * (8 if dtype == mstype.float64 else 4)
    return max(_LEAST, 2 * logits // (_SHARE * _ARRAYS))


def times(factor, value):
    """factor·value; a class without probability adds nothing."""
    return select(factor == 0, 0.0, factor * value)


# By class, from log q of the student and log p of the teacher: (terms of the divergence, q·its derivative by log q).
# The derivative by the student's logits is then q·g - q·Σ q·g.


def _one_sided(log_q, log_p, reverse):
    if reverse:
        terms = times(ops.exp(log_q), log_q - log_p)
        return terms, terms
    p = ops.exp(log_p)
    return times(p, log_p - log_q), -p


def _mixed(log_q, log_p, beta):
    """The derivative of Σ β·p·log(p/m) + (1-β)·q·log(q/m), m = β·p + (1-β)·q, by log q is (1-β)·q·log(q/m)."""
    p, q = ops.exp(log_p) * number(beta, log_p.dtype), ops.exp(log_q) * rest(beta, log_q.dtype)
    log_m = ops.log(p + q)
    of_student = times(q, log_q - log_m)
    return times(p, log_p - log_m) + of_student, of_student


def by_class(log_q, log_p, beta):
    """As above, of the divergence that beta says."""
    if 0.0 < beta < 1.0:
        return _mixed(log_q, log_p, beta)
    return _one_sided(log_q, log_p, beta == 1.0)


class ChunkOfLogits(SweepGradients):
    """What divergences share, of which every row counts but those of weight 0."""

    def bytes_of_chunk(self, hidden, columns):
        return _chunk_bytes_of(hidden.dtype, known_rows(hidden), columns, self.chunk_bytes)

    def begun_alone(self, student, row_weight):
        """(sweep of the student, the position of each row)."""
        hidden, matrix, bias = student
        labels = ops.zeros((self.location.rows(hidden.shape[0]),), mstype.int32)
        return self.prepared(hidden, matrix, labels, bias, None, row_weight)

    def upstream(self, sweep, where, arriving):
        """What arrives at the divergences of a chunk's rows, of what arrives at them times their weights."""
        row_weight, (_, index, valid) = sweep[0][5], where
        if row_weight is not None:
            arriving = self.weighted(ops.gather(row_weight, index, 0), arriving)[0]
        return ops.select(valid, arriving, zeros_like(arriving))


class ChunkedDivergence(ChunkOfLogits, DifferentiableCell):
    """Divergences of rows, and in the backward pass their gradients, from logits that are made again there.

    Inputs: student_hidden (N, H), student_weight (C_local, H), student_bias (C_local,) or None, the teacher's likewise,
    which are constants, and row_weight (N,) or None.
    Outputs: divergences times row_weight, lse of the student and of the teacher, Σ q·g; all (N,).
    """

    def __init__(
        self, kernels, place, options: Options, chunk_bytes: int, gradients: Gradients, beta: float
    ):
        super().__init__(kernels, place, options, chunk_bytes, gradients)
        self.beta = beta

    def construct(
        self,
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        row_weight,
    ):
        student = (student_hidden, student_weight, student_bias)
        teacher = (teacher_hidden, teacher_weight, teacher_bias)
        return self.computed(student, teacher, row_weight)

    def bprop(
        self,
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        row_weight,
        out,
        dout,
    ):
        student = (student_hidden, student_weight, student_bias)
        teacher = (teacher_hidden, teacher_weight, teacher_bias)
        grads, factor = self.differentiated(student, teacher, row_weight, out, dout)
        # Anything for constants.
        tensors = (student_hidden, student_weight, None, student_bias, None, row_weight)
        found = self.returned(grads, factor, tensors, (None, None))
        return found[0], found[1], found[3], *teacher, row_weight

    def computed(self, student, teacher, row_weight):
        """The outputs."""
        sweep, position, teacher = self.begun(student, teacher, row_weight)
        state = (ops.zeros((position.shape[0] + sweep[-1], 4), self.wide),)
        state = over_chunks(self.add_rows, sweep, teacher, state)
        rows = ops.gather(state[0], position, 0)
        keep = None if row_weight is None else ops.not_equal(row_weight, 0)
        losses, of_student, of_teacher, dot = self.counted(
            keep, rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]
        )
        return self.weighted(row_weight, losses)[0], of_student, of_teacher, dot

    def begun(self, student, teacher, row_weight):
        """(sweep of the student, the position of each row, the teacher's tensors as a sweep holds them)."""
        sweep, position = self.begun_alone(student, row_weight)
        held, exact = sweep[0][1].shape[0], exact_dtype(student[0].dtype)
        hidden, matrix, bias = teacher
        matrix = matrix.astype(exact)
        bias = None if bias is None else bias.astype(exact)
        if held < matrix.shape[0]:
            matrix = matrix[:held]
            bias = None if bias is None else bias[:held]
        return sweep, position, (own(self.location.gathered(hidden)), own(matrix), own(bias))

    def both(self, sweep, teacher, first):
        """(where the chunk's rows stand, hidden states of the student, labels, logits of the two)."""
        where, (hidden, labels, logits) = self.chunk(sweep, first)
        all_hidden, matrix, bias = teacher
        rows = ops.gather(all_hidden, where[1], 0).astype(matrix.dtype)
        rows = select(where[2].expand_dims(1), rows, 0.0)
        of_teacher = _product_with_transpose(rows, matrix).astype(matrix.dtype)
        if bias is not None:
            of_teacher = of_teacher + bias
        return where, hidden, labels, logits, of_teacher

    def log_probs(self, logits, lse):
        x = transformed(logits, self.options)
        return x - lse.astype(x.dtype).expand_dims(1)

    def sums(self, terms, of_student):
        """(rows, 3): a number that means nothing, and the sums over all classes."""
        loss, dot = _sum(terms, 1).astype(self.wide), _sum(of_student, 1).astype(self.wide)
        return self.location.whole(ops.stack((zeros_like(loss), loss, dot), 1))

    def statistics_of_both(self, sweep, labels, logits, of_teacher):
        """lse of the student and of the teacher, over all classes."""
        block = sweep[3]
        student = self.statistics(logits, labels, None, block)[:, 0]
        return student, self.statistics(of_teacher, labels, None, block)[:, 0]

    def add_rows(self, sweep, teacher, first, state):
        where, _, labels, logits, of_teacher = self.both(sweep, teacher, first)
        student_lse, teacher_lse = self.statistics_of_both(sweep, labels, logits, of_teacher)
        log_q, log_p = self.log_probs(logits, student_lse), self.log_probs(of_teacher, teacher_lse)
        terms, of_student = by_class(log_q, log_p, self.beta)
        sums = self.sums(terms, of_student)
        rows = ops.stack((sums[:, 1], student_lse, teacher_lse, sums[:, 2]), 1)
        return (write_rows(state[0], where[0].expand_dims(1), rows),)

    def slope(self, logits, log_q, of_student, dot, upstream):
        """The gradient of the student's logits, where `upstream` arrives at the rows' divergences."""
        dot = dot.astype(log_q.dtype).expand_dims(1)
        slope = of_student - times(ops.exp(log_q), dot)
        slope = slope * upstream.astype(log_q.dtype).expand_dims(1)
        return through_transform(slope, logits, self.options)

    def add_gradients_of_rows(self, sweep, saved, first, sums):
        """The logits again, and from them the gradients."""
        teacher, arriving, student_lse, teacher_lse, dot = saved
        where, hidden, _, logits, of_teacher = self.both(sweep, teacher, first)
        index = where[1]
        log_q = self.log_probs(logits, ops.gather(student_lse, index, 0))
        log_p = self.log_probs(of_teacher, ops.gather(teacher_lse, index, 0))
        upstream = self.upstream(sweep, where, ops.gather(arriving, index, 0))
        of_student = by_class(log_q, log_p, self.beta)[1]
        slope = self.slope(logits, log_q, of_student, ops.gather(dot, index, 0), upstream)
        slope = select(where[2].expand_dims(1), slope, 0.0)
        return self.add_products(sweep, where[0], hidden, slope, sums)

    def differentiated(self, student, teacher, row_weight, out, dout):
        """(sums of the student's gradients, what they are to be multiplied by)."""
        sweep, position, of_teacher = self.begun(student, teacher, row_weight)
        saved = (of_teacher, dout[0], out[1], out[2], out[3])
        sums = over_chunks(self.add_gradients_of_rows, sweep, saved, self.no_gradients(sweep))
        return self.unordered(sums, position, student[1]), None


class ChunkedDivergenceSum(ChunkedDivergence):
    """The sum of the divergences, with gradients from the same sweep.

    Inputs: those of ChunkedDivergence. Outputs: the sum (), then the sums of gradients for an upstream gradient of 1.
    """

    def computed(self, student, teacher, row_weight):
        sweep, position, of_teacher = self.begun(student, teacher, row_weight)
        state = (ops.zeros((1,), self.wide), *self.no_gradients(sweep))
        state = over_chunks(self.add_both, sweep, of_teacher, state)
        grads = self.unordered(state[1:], position, student[1])
        return state[0].reshape(()), grads[0], grads[1], grads[2]

    def add_both(self, sweep, teacher, first, state):
        """Divergences and gradients of a chunk."""
        where, hidden, labels, logits, of_teacher = self.both(sweep, teacher, first)
        student_lse, teacher_lse = self.statistics_of_both(sweep, labels, logits, of_teacher)
        log_q, log_p = self.log_probs(logits, student_lse), self.log_probs(of_teacher, teacher_lse)
        terms, of_student = by_class(log_q, log_p, self.beta)
        sums = self.sums(terms, of_student)
        upstream = self.upstream(sweep, where, ones_like(student_lse))
        losses = sums[:, 1] * upstream
        losses = ops.select(where[2], losses, zeros_like(losses))
        slope = self.slope(logits, log_q, of_student, sums[:, 2], upstream)
        slope = select(where[2].expand_dims(1), slope, 0.0)
        made = self.add_products(sweep, where[0], hidden, slope, state[1:])
        return state[0] + _sum(losses), made[0], made[1], made[2]

    def differentiated(self, student, teacher, row_weight, out, dout):
        hidden, matrix, bias = student
        grads = functions_of((out[1], out[2], out[3]), hidden, matrix, bias)
        return grads, dout[0].astype(exact_dtype(hidden.dtype))


@constexpr
@functools.lru_cache(maxsize=64)
def _cell(backend, options, chunk_bytes, gradients, beta, summed):
    """The Cell of these options, built once. A graph hands tuples over as plain ones."""
    kind = ChunkedDivergenceSum if summed else ChunkedDivergence
    tuples = Options(*options), chunk_bytes, Gradients(*gradients)
    return kind(kernels_of(backend), OneDevice(), *tuples, beta)


def may_scale_later(dtype) -> bool:
    """Sums of gradients stay in float32 at least until the upstream one has arrived."""
    return True


def distillation(plan: Plan, gradients: Gradients, beta: float, student, teacher, row_weight):
    """As `protocol.DistillationForm` says; in float32 (float64 for float64) at least."""
    if compiling():
        gradients = made_in_graph(gradients)
    summed = gradients.in_forward and plan.options.reduction == "sum"
    cell = _cell(plan.backend, plan.options, plan.chunk_bytes, gradients, beta, summed)
    hidden, matrix, bias = student
    teacher_hidden, teacher_matrix, teacher_bias = teacher
    if row_weight is not None:
        row_weight = row_weight.reshape((-1,))
    given = (as_rows(hidden), matrix, bias, as_rows(teacher_hidden), teacher_matrix, teacher_bias)
    out = cell(*given, row_weight)[0]
    if plan.options.reduction == "none":
        return out.reshape(hidden.shape[:-1])
    return out if summed else _sum(out)
