"""The gradients of the linear loss from the logits of its chunks: the backend's `partial_backward` and two products."""

from __future__ import annotations

import numpy as np
from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops import operations as P

from ms_ce._versions import zeros_like
from ms_ce.ops.derivative import RefusesDerivative
from ms_ce.ops.eager import wanted
from ms_ce.ops.graph import compiling, is_class_index, select
from ms_ce.ops.linear.sweep import Sweep, over_chunks, write_rows
from ms_ce.ops.options import ClassBlock, Gradients, Options
from ms_ce.ops.rows import with_padding

_product, _product_of_transpose = P.MatMul(), P.MatMul(transpose_a=True)
_sum, _add_in_place = P.ReduceSum(), P.AssignAdd()


_ONCE = (
    "ms_ce: in chunks the linear loss is differentiated once; for second derivatives (jvp and jacfwd are such) take "
    "backend='composed' and a chunk_bytes that holds all logits"
)


class _Once(nn.Cell):
    """Ends a second derivative: the saved statistics are functions of the inputs, which nothing below knows."""

    def construct(self, gradient):
        return gradient

    def bprop(self, gradient, out, dout):
        raise NotImplementedError(_ONCE)


# In a graph, of which MindSpore compiles no second derivative of a loop.
_once_in_graph = RefusesDerivative(_ONCE)
_once_where_python_runs = _Once()


def _once(gradient):
    return _once_in_graph(gradient) if compiling() else _once_where_python_runs(gradient)


def not_made(values):
    """nan, which whoever asks for the gradient of `values` gets, and nobody else: a graph drops it; 0 for integers.
    A product, since MindSpore 2.7 makes 0 of zeros and nan."""
    if values is None:
        return None
    if is_class_index(values.dtype):
        return zeros_like(values)
    return (values.astype(mstype.float32) * np.nan).astype(values.dtype)


def _added(total, part):
    """total + part; where Python runs in the place of `total`, of which there would be two beside the part."""
    return total + part if compiling() else _add_in_place(total, part)


def _scaled(gradient, factor):
    return gradient if factor is None else gradient * factor


class SweepGradients(Sweep):
    """Those of input, weight and bias, as far as `gradients` wants them; and, in sweeps of their own since most calls
    want neither, those of probability targets and of the class weight."""

    def __init__(self, kernels, place, options: Options, chunk_bytes: int, gradients: Gradients):
        super().__init__(kernels, place, options, chunk_bytes)
        self.of_input, self.of_weight, self.of_bias = gradients[1:]
        self.target_grad = kernels.partial_target_grad
        self.weight_grad = kernels.partial_weight_grad

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
        (_, _, _, _, weight, row_weight), _, _, (offset, total), _ = sweep
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
            of_entropy = self.entropy_backward(
                entropies[1], logits, lse, entropies[0], self.options
            )
            of_entropy = select(valid.expand_dims(1), of_entropy, 0.0)
            slope = slope + of_entropy.astype(slope.dtype)
        return self.add_products(sweep, place, hidden, slope, sums)

    def add_products(self, sweep, place, hidden, slope, sums):
        """`sums` with a chunk's part, from the gradient of its logits."""
        matrix, bias = sweep[0][1], sweep[0][3]
        grad_hidden, grad_weight, grad_bias = sums
        if self.of_input:
            part = _product(slope, matrix).astype(matrix.dtype)
            grad_hidden = write_rows(grad_hidden, place.expand_dims(1), part)
        if self.of_weight:
            part = _product_of_transpose(slope, hidden).astype(matrix.dtype)
            grad_weight = _added(grad_weight, part)
        if self.of_bias and bias is not None:
            grad_bias = grad_bias + _sum(slope, 0)
        return grad_hidden, grad_weight, grad_bias

    def completed(self, grads, others):
        """The gradients of a sweep that makes the rest beside this one's."""
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

    def of_rows(self, sweep, saved, chunk):
        """(what arrives at the losses of a chunk's rows, their lse) from those of all rows."""
        (_, _, _, _, _, row_weight), _, _, _, _ = sweep
        (_, index, valid), (_, _, logits) = chunk
        lse, upstream = ops.gather(saved[0], index, 0), ops.gather(saved[1], index, 0)
        if row_weight is not None:
            upstream = self.weighted(ops.gather(row_weight, index, 0), upstream)[0]
        return ops.select(valid, upstream, zeros_like(upstream)).astype(logits.dtype), lse

    def add_target_gradient(self, sweep, saved, first, state):
        (_, _, _, _, weight, _), _, _, (offset, total), _ = sweep
        chunk = self.chunk(sweep, first)
        upstream, lse = self.of_rows(sweep, saved, chunk)
        (place, _, _), (_, target, logits) = chunk
        block = ClassBlock(offset, total)
        part = self.target_grad(upstream, logits, target, weight, lse, self.options, block)
        return (write_rows(state[0], place.expand_dims(1), part),)

    def add_weight_gradient(self, sweep, saved, first, state):
        (_, _, _, _, weight, _), _, _, (offset, total), _ = sweep
        chunk = self.chunk(sweep, first)
        upstream, lse = self.of_rows(sweep, saved, chunk)
        _, target, logits = chunk[1]
        block = ClassBlock(offset, total)
        part = self.weight_grad(upstream, logits, target, weight, lse, self.options, block)
        return (state[0] + part,)

    def target_gradient(self, tensors, lse, upstream):
        """That of probabilities, from the rows' lse and what arrives at their losses."""
        target = tensors[2]
        sweep, position = self.prepared(*tensors)
        matrix, size = sweep[0][1], sweep[-1]
        state = (ops.zeros((position.shape[0] + size, matrix.shape[0]), matrix.dtype),)
        state = over_chunks(self.add_target_gradient, sweep, (lse, upstream), state)
        gradient = with_padding(ops.gather(state[0], position, 0), target, 1)
        return _once(gradient.astype(target.dtype))

    def class_weight_gradient(self, tensors, lse, upstream):
        """That of the class weight, as far as it follows from the rows' losses: 0 for other devices' classes."""
        sweep, _ = self.prepared(*tensors)
        state = (zeros_like(sweep[0][4]),)
        state = over_chunks(self.add_weight_gradient, sweep, (lse, upstream), state)
        return _once(state[0].astype(tensors[4].dtype))

    def data_gradients(self, tensors, lse, upstream):
        """(of the target, of the class weight), as far as they are wanted."""
        target, weight = tensors[2], tensors[4]
        grad_target, grad_weight = target, weight
        if is_class_index(target.dtype):
            grad_target = zeros_like(target)
        elif wanted(2):
            grad_target = self.target_gradient(tensors, lse, upstream)
        if weight is not None and wanted(4):
            grad_weight = self.class_weight_gradient(tensors, lse, upstream)
        return grad_target, grad_weight

    def returned(self, grads, factor, tensors, data):
        """What a bprop returns: gradients times `factor` in the inputs' dtypes, those of the data, and anything for
        what is not made: PyNative wants nothing else."""
        hidden, linear_weight, _, linear_bias, _, row_weight = tensors
        grad_hidden, grad_weight, grad_bias = hidden, linear_weight, linear_bias
        if self.of_input or compiling():
            grad_hidden = self.location.collected(_scaled(grads[0], factor))
            grad_hidden = _once(grad_hidden.astype(hidden.dtype))
        if self.of_weight or compiling():
            grad_weight = _once(_scaled(grads[1], factor).astype(linear_weight.dtype))
        if linear_bias is not None and (self.of_bias or compiling()):
            grad_bias = _once(_scaled(grads[2], factor).astype(linear_bias.dtype))
        return grad_hidden, grad_weight, data[0], grad_bias, data[1], row_weight
