"""Derivatives that the kernel does not have: refused by a sentence, in a graph when it is run.

A graph may hold a derivative that it does not use, so compiling it must not fail. And nan would not do for an answer:
MindSpore's compiler takes x + nan and x * nan for x where the nan is known (docs/graphs.md).
"""

from __future__ import annotations

import numpy as np
from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops import operations as P

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.operators import kept, make_operator
from ms_ce.ops.derivative import PassedOn
from ms_ce.ops.graph import compiling, is_class_index

_depend = P.Depend()


@kept
def _characters(sentence: str) -> np.ndarray:
    return np.array([ord(character) for character in sentence], np.int64)


def _amount(arriving):
    return ops.abs(arriving.astype(mstype.float64)).sum()


def _refuse_bprop(arriving, reason, out, dout):
    """Of a higher order: by the same sentence."""
    return _refuse(dout, reason), zeros_like(reason)


_refuse = make_operator("RefuseDerivative", _refuse_bprop)


def refused(sentence: str, *arriving):
    """0, for `none_of`, where nothing arrives at any of the tensors `arriving`; else the sentence is raised."""
    if not compiling():
        raise NotImplementedError("ms_ce: " + sentence)
    amount = _amount(arriving[0])
    for each in arriving[1:]:
        amount = amount + _amount(each)
    return _refuse(amount, _characters(sentence))


def _after_bprop(given, out, dout):
    """What arrives at a gradient that there is none of arrives at the refusal: its own derivative is none either."""
    return ((zeros_like(given[0]), _amount(dout[0])),)


_none_of = PassedOn("none of", _after_bprop)


def none_of(nothing, *values):
    """Gradients 0 of the values, likewise."""
    return tuple([_none_of((_depend(zeros_like(each), nothing), nothing))[0] for each in values])


def none_of_target(nothing, target):
    """The same of a target: class indices have no gradient."""
    return target if is_class_index(target.dtype) else none_of(nothing, target)[0]


class _Ended(nn.Cell):
    def __init__(self, sentence: str):
        super().__init__()
        self.sentence = sentence

    def construct(self, gradient):
        return gradient

    def bprop(self, gradient, out, dout):
        raise NotImplementedError("ms_ce: " + self.sentence)


class Once(PassedOn):
    """What three gradients that the forward pass has made, to MindSpore constants, are passed through, with the sources
    that they were made of: a derivative of theirs is refused.

    In a graph what arrives would be lost at an output of the forward operator, so that it is refused at the sources.
    """

    def __init__(self, sentence: str):
        def bprop(given, out, dout):
            nothing = refused(sentence, dout[0], dout[1], dout[2])
            made = (zeros_like(given[0]), zeros_like(given[1]), zeros_like(given[2]))
            return ((*made, *none_of(nothing, *given[3:])),)

        super().__init__(sentence, bprop)
        self.where_python_runs = _Ended(sentence)

    def __call__(self, given):
        return tuple([self.where_python_runs(each) for each in given[:3]])
