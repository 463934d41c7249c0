"""Functions with a derivative of their own, and values without one.

Where Python runs, that is a Cell with a bprop. In a graph MindSpore cannot differentiate a function that holds a tensor
of its caller's and calls such a Cell (docs/graphs.md). There a primitive is it, MindSpore's InsertGradientOf, which
passes its argument on, and is gone before the graph runs: like every primitive made in Python it is asked for its
derivative, and for how vmap vectorises it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from mindspore import nn, ops
from mindspore.ops.primitive import Primitive

from ms_ce._versions import zeros_like
from ms_ce.ops.graph import compiling


def _unchanged(mapped):
    """vmap's rule: what is passed on is mapped where it was."""
    return mapped


class PassedOn(Primitive):
    """Its argument, a tensor or a tuple, with `bprop(argument, out, dout)` for its derivative."""

    def __init__(self, name: str, bprop: Callable):
        super().__init__("InsertGradientOf")
        self.derivative = bprop
        # Of primitives with equal attributes a graph takes one derivative for all.
        self.add_prim_attr("ms_ce", name)

    def __call__(self, given):
        return given

    def get_bprop(self):
        return self.derivative

    def get_vmap_rule(self):
        return _unchanged


def _no_gradient(given, out, dout):
    return (zeros_like(given),)


_constant = PassedOn("constant", _no_gradient)


def without_gradient(x):
    """stop_gradient, after which vmap mistakes tensors that are not mapped for mapped ones, in a form it takes."""
    return _constant(x) if compiling() else ops.stop_gradient(x)


def _same_gradient(given, out, dout):
    return (dout,)


class RefusesVmap(PassedOn):
    """Its argument, where vmap must not come: it raises `message`, while the graph is compiled."""

    def __init__(self, message: str):
        super().__init__(message, _same_gradient)
        self.message = message

    def get_vmap_rule(self):
        raise ValueError(self.message)


class RefusesDerivative(PassedOn):
    """Its argument, in a graph where no derivative must be taken: it raises `message`, while that is compiled."""

    def __init__(self, message: str):
        super().__init__(message, _same_gradient)
        self.message = message

    def get_bprop(self):
        raise NotImplementedError(self.message)


class _Piece(nn.Cell):
    """What a Cell with a bprop computes; in a graph (`construct`) without one. An `if` would be lost there."""

    def __init__(self, cell: nn.Cell):
        super().__init__()
        self.where_python_runs, self.formula = cell, cell.construct

    def __call__(self, *inputs):
        return self.where_python_runs(*inputs)


class _Differentiable(_Piece):
    def __init__(self, cell: nn.Cell):
        super().__init__(cell)
        derivative = cell.bprop

        def bprop(given, out, dout):
            value, inputs = given
            return ((zeros_like(value), derivative(*inputs, value, dout[0])),)

        self.passed_on = PassedOn(type(cell).__name__, bprop)


class _OfOne(_Differentiable):
    def construct(self, x):
        return self.passed_on((self.formula(_constant(x)), (x,)))[0]


class _OfTwo(_Differentiable):
    def construct(self, x, y):
        return self.passed_on((self.formula(_constant(x), _constant(y)), (x, y)))[0]


class _OfThree(_Differentiable):
    def construct(self, x, y, z):
        fixed = self.formula(_constant(x), _constant(y), _constant(z))
        return self.passed_on((fixed, (x, y, z)))[0]


def differentiable(cell: nn.Cell) -> nn.Cell:
    """The function of up to three tensors that `cell.construct` computes, with `cell.bprop` for its derivative."""
    inputs = len(inspect.signature(cell.construct).parameters)
    return (_OfOne, _OfTwo, _OfThree)[inputs - 1](cell)


class _PlainInGraphs(_Piece):
    def construct(self, *inputs):
        return self.formula(*inputs)


def plain_in_graphs(cell: nn.Cell) -> nn.Cell:
    """The same function; in a graph, where MindSpore's own derivative is right, with that one: it compiles faster."""
    return _PlainInGraphs(cell)
