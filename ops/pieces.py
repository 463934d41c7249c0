"""What the `composed` backend is made of where MindSpore's own derivatives fall short.

MindSpore has no second derivative of LogSoftmax or GatherD, its PyNative forgets the upstream gradient in the second
derivative of a sum or a reshape, and its LogSoftmax, Softmax and NLLLoss are inexact or wrong in places
(docs/backends.md). So the linear and smooth pieces of the loss have derivatives of their own, each other's transposes,
of primitives that vmap vectorises rightly in the way they are used here: _Pick's x is mapped wherever its index is, and
both on axis 0, since Select has made them. Everything else is differentiated by MindSpore.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import functional as F
from mindspore.ops import operations as P
from mindspore.ops.operations import _grad_ops as G

from ms_ce._versions import zeros_like
from ms_ce.ops.derivative import differentiable, plain_in_graphs
from ms_ce.ops.eager import DifferentiableCell
from ms_ce.ops.graph import known_shape, select

ones_like = P.OnesLike()  # the function ops.ones_like breaks a second derivative in graph mode
# Unlike Tensor.max and Tensor.sum they take an empty batch, and vmap vectorises them rightly.
largest, _sum, _sum_in_place = P.ReduceMax(), P.ReduceSum(), P.ReduceSum(True)


@constexpr
def number(value: float, dtype):
    """An option as a factor of tensors of `dtype`: MindSpore rounds a Python float to float32 beside them, and what a
    graph computes from it."""
    return Tensor(value, dtype) if dtype == mstype.float64 else value


@constexpr
def rest(value: float, dtype):
    """1 - value, in the same way."""
    return Tensor(1.0 - value, dtype) if dtype == mstype.float64 else 1.0 - value


def included(log_prob, factor):
    """log p, 0 for a class that log p -inf and factor 0 exclude."""
    return select(ops.logical_and(factor == 0, log_prob == -np.inf), 0.0, log_prob)


def product(factor, log_prob):
    """factor·log p, to which a class excluded in this way contributes 0."""
    return factor * included(log_prob, factor)


@constexpr
def _is_empty(shape) -> bool:
    return shape is not None and 0 in shape


def largest_class(x):
    """Where the largest stands on axis 1, the first of several, int64. MindSpore's Argmax takes no empty batch."""
    if _is_empty(known_shape(x)):
        return ops.zeros((x.shape[0], *x.shape[2:]), mstype.int64)
    return x.argmax(axis=1).astype(mstype.int64)


class _ClassSum(nn.Cell):
    """The sum over axis 1."""

    def construct(self, x):
        return _sum(x, 1)

    def bprop(self, x, out, dout):
        return (ones_like(x) * dout.expand_dims(1),)


class _Total(nn.Cell):
    """The sum of all rows. MindSpore leaves the sum of nothing uninitialised."""

    def construct(self, rows):
        if F.is_sequence_value_unknown(rows.shape):
            return _sum(ops.concat((rows.reshape((-1,)), ops.zeros((1,), rows.dtype))))
        if 0 in rows.shape:
            return ops.zeros((), rows.dtype)
        return _sum(rows)

    def bprop(self, rows, out, dout):
        return (ones_like(rows) * dout,)


class _ByClass(nn.Cell):
    """x (N, C, d1…dK) times the weight (C,) of its class."""

    def __init__(self):
        super().__init__()
        self.reshape = P.Reshape()

    def construct(self, x, weight):
        return x * self.reshape(weight, (1, -1) + (1,) * (x.ndim - 2))

    def bprop(self, x, weight, out, dout):
        return by_class(dout, weight), class_totals(x * dout)


class _ClassTotals(nn.Cell):
    """The sum over everything but the classes."""

    def construct(self, x):
        return _sum(x, (0, *range(2, x.ndim)))

    def bprop(self, x, out, dout):
        return (by_class(ones_like(x), dout),)


class _LogSoftmaxBackward(nn.Cell):
    """d - p·Σd, the transpose of log-softmax's Jacobian at x applied to d."""

    def construct(self, x, log_prob, direction):
        return direction - ops.exp(log_prob) * class_sum(direction).expand_dims(1)

    def bprop(self, x, log_prob, direction, out, dout):
        p = _softmax(x, log_prob)
        centred = dout - class_sum(p * dout).expand_dims(1)
        grad_x = -p * class_sum(direction).expand_dims(1) * centred
        return grad_x, zeros_like(log_prob), centred


class _LogSoftmax(nn.Cell):
    """Log-probabilities over axis 1: nan throughout a row with nan, +inf or nothing but -inf."""

    def __init__(self):
        super().__init__()
        self.log_softmax = P.LogSoftmax(1)

    def construct(self, x):
        moved = self.moved(x)
        return moved - ops.log(_sum_in_place(ops.exp(moved), 1))

    def moved(self, x):
        """x less something near its largest: by MindSpore's LogSoftmax, which is one sweep but off by 5e-6, in every
        dtype."""
        if x.dtype != mstype.float64:
            return self.log_softmax(x)
        return x - largest(x, 1).expand_dims(1)

    def bprop(self, x, out, dout):
        return (_log_softmax_backward(x, out, dout),)


class _Softmax(nn.Cell):
    """exp(log_prob), as the function of x that it is."""

    def construct(self, x, log_prob):
        return ops.exp(log_prob)

    def bprop(self, x, log_prob, out, dout):
        p = ops.exp(log_softmax(x))
        return p * (dout - class_sum(p * dout).expand_dims(1)), zeros_like(log_prob)


class _LogSumExp(nn.Cell):
    """lse over axis 1, read off the largest log-probability: max log p = max x - lse."""

    def construct(self, x, log_prob):
        return largest(x, 1) - largest(log_prob, 1)

    def bprop(self, x, log_prob, out, dout):
        return _softmax(x, log_prob) * dout.expand_dims(1), zeros_like(log_prob)


class _Place(DifferentiableCell):
    """Zeros of `like`'s shape with `values` at class `index` of each row: the transpose of _Pick."""

    def __init__(self):
        super().__init__()
        # GatherD's own transpose: vmap refuses TensorScatterElements and is wrong with NLLLossGrad.
        self.scatter = G.GatherDGradV2()

    def construct(self, values, index, like):
        return self.scatter(like, 1, index.expand_dims(1), values.expand_dims(1))

    def bprop(self, values, index, like, out, dout):
        return pick(dout, index), zeros_like(index), zeros_like(like)


class _Pick(DifferentiableCell):
    """log_prob[n, index[n]]."""

    def __init__(self):
        super().__init__()
        self.gather = P.GatherD()

    def construct(self, log_prob, index):
        return self.gather(log_prob, 1, index.expand_dims(1)).squeeze(1)

    def bprop(self, log_prob, index, out, dout):
        return place(dout, index, log_prob), zeros_like(index)


class _WeightOf(DifferentiableCell):
    """weight[index]. vmap's rules fail for Gather where neither of the two is mapped, for GatherD where only the index
    is."""

    def __init__(self):
        super().__init__()
        self.gather = P.GatherNd()

    def construct(self, weight, index):
        return self.gather(weight, index.expand_dims(-1))

    def bprop(self, weight, index, out, dout):
        return weight_totals(dout, index, weight), zeros_like(index)


class _WeightTotals(DifferentiableCell):
    """The sum of `values` of each class, like the weight: the transpose of _WeightOf."""

    def __init__(self):
        super().__init__()
        self.add = P.UnsortedSegmentSum()

    def construct(self, values, index, like):
        return self.add(values, index, like.shape[0])

    def bprop(self, values, index, like, out, dout):
        return weight_of(dout, index), zeros_like(index), zeros_like(like)


class _ScaledSquare(nn.Cell):
    """factor·x², where neither value nor derivative overflows before it has to."""

    def construct(self, factor, x):
        return factor * x * x

    def bprop(self, factor, x, out, dout):
        return factor * 0.0, 2.0 * factor * x * dout


class _Faithful(nn.Cell):
    """Row losses as they are; where one is nan, so is all of its row's gradient, also where the upstream is 0."""

    def construct(self, rows):
        return rows

    def bprop(self, rows, out, dout):
        return (select(rows == rows, dout, np.nan),)


class_sum, total = plain_in_graphs(_ClassSum()), plain_in_graphs(_Total())
by_class, class_totals = plain_in_graphs(_ByClass()), plain_in_graphs(_ClassTotals())
scaled_square = plain_in_graphs(_ScaledSquare())
log_softmax, _softmax = differentiable(_LogSoftmax()), differentiable(_Softmax())
_log_softmax_backward = differentiable(_LogSoftmaxBackward())
log_sum_exp, faithful = differentiable(_LogSumExp()), differentiable(_Faithful())
weight_of, weight_totals = differentiable(_WeightOf()), differentiable(_WeightTotals())
# MindSpore has no derivative of GatherDGradV2 that it could leave out.
pick, place = differentiable(_Pick()), _Place()
