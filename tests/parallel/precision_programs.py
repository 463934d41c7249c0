"""Vocabulary-parallel losses in networks under MindSpore's mixed precision, on two ranks: `PROGRAMS[name]()`."""

from __future__ import annotations

import os
import tempfile

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import get_rank
from spmd_programs import message_of

import ms_ce
from ms_ce import reference
from ms_ce.parallel import (
    GlobalMean,
    VocabParallelCrossEntropyLoss,
    VocabParallelLinearCrossEntropyLoss,
)
from tests.support.precision_levels import LEVELS, precision_outside

ROWS, FEATURES, CLASSES = 8, 16, 32
HELD = CLASSES // 2
RANDOM = np.random.default_rng(3)
HIDDEN = RANDOM.normal(size=(ROWS, FEATURES)).astype(np.float32)
TABLE = RANDOM.normal(size=(CLASSES, FEATURES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES, ROWS).astype(np.int32)
# Graphs take seconds to compile: one of a level that sets flags, one of the level that names operators.
IN_GRAPHS = ("O2", "auto")
HALF = {"rtol": 2e-2, "atol": 2e-3}  # of the product that MindSpore makes in 16 bits


class _Model(nn.Cell):
    """A layer computed in 16 bits, and this rank's block of a table."""

    def __init__(self, loss):
        super().__init__()
        identity = Tensor(np.eye(FEATURES, dtype=np.float32))
        self.body = nn.Dense(FEATURES, FEATURES, weight_init=identity, has_bias=False)
        first = get_rank() * HELD
        self.table = Parameter(Tensor(TABLE[first : first + HELD]), name="table")
        self.product, self.loss = ops.MatMul(transpose_b=True), loss


class _OfLogits(_Model):
    def construct(self, hidden, labels):
        return self.loss(self.product(self.body(hidden), self.table), labels)


class _OfHidden(_Model):
    def construct(self, hidden, labels):
        return self.loss(self.body(hidden), self.table, labels)


class _OwnRows(nn.Cell):
    """Each rank has half of the rows and all classes."""

    def __init__(self):
        super().__init__()
        table = Tensor(TABLE)
        self.head = nn.Dense(FEATURES, CLASSES, weight_init=table, has_bias=False)
        self.loss, self.mean = ms_ce.CrossEntropyLoss(reduction="sum"), GlobalMean()
        self.count = Tensor(ROWS / 2, ms.float32)

    def construct(self, hidden, labels):
        return self.mean(self.loss(self.head(hidden), labels), self.count)


def _check(make, backend: str) -> None:
    """Value and gradient of the table's part; nothing is left behind."""
    slope = reference.cross_entropy_grad(HIDDEN @ TABLE.T, LABELS).logits
    first, half = get_rank() * HELD, slice(get_rank() * ROWS // 2, (get_rank() + 1) * ROWS // 2)
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        for name in LEVELS if mode == ms.PYNATIVE_MODE else IN_GRAPHS:
            ms.set_context(mode=mode)
            net, inputs = make(backend), [Tensor(HIDDEN), Tensor(LABELS)]
            wanted = (slope.T @ HIDDEN)[first : first + HELD]
            if isinstance(net, _OwnRows):
                inputs = [Tensor(HIDDEN[half]), Tensor(LABELS[half])]
                wanted = slope[half].T @ HIDDEN[half]
            table = net.head.weight if isinstance(net, _OwnRows) else net.table
            loss, gradients = ms.value_and_grad(LEVELS[name](net), None, [table])(*inputs)
            what = f"{name} in mode {mode}"
            expected = reference.cross_entropy(HIDDEN @ TABLE.T, LABELS).loss
            np.testing.assert_allclose(loss.asnumpy(), expected, rtol=5e-3, err_msg=what)
            assert gradients[0].dtype == ms.float32, what
            np.testing.assert_allclose(gradients[0].asnumpy(), wanted, err_msg=what, **HALF)
            assert precision_outside() == ms.float32, what


def _accumulates(loss, cast_rows) -> None:
    """The input is rounded to the dtype of `to_float`, the sums are not: 4,096 rows of 20 overflow float16."""
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        result = loss(*cast_rows())
        assert result.dtype == ms.float16
        np.testing.assert_allclose(result.asnumpy(), 20.0, rtol=1e-3)
    ms.set_context(mode=ms.PYNATIVE_MODE)


def _many_rows():
    logits = np.zeros((4096, 2), np.float32)
    logits[:, 0] = 20.0 * (1 - get_rank())
    return Tensor(logits), ops.ones(4096, ms.int32)


def _many_hidden():
    table = np.array([[20.0 * (1 - get_rank())], [0.0]], np.float32)
    return ops.ones((4096, 1)), Tensor(table), ops.ones(4096, ms.int32)


def _in_scratch(check) -> None:
    """Level O1 writes the network that it makes into the working folder."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            check()
        finally:
            os.chdir(before)
            ms.set_context(mode=ms.PYNATIVE_MODE)


def _of_kind(make) -> None:
    for backend in ("cpu", "composed"):
        _check(make, backend)


def _logits(backend):
    return _OfLogits(VocabParallelCrossEntropyLoss(backend=backend))


def _hidden(backend):
    return _OfHidden(VocabParallelLinearCrossEntropyLoss(backend=backend, chunk_bytes=200))


def _refused() -> None:
    """What raises leaves no mixed precision behind."""
    for loss in (VocabParallelCrossEntropyLoss(), VocabParallelLinearCrossEntropyLoss()):
        short = Tensor(LABELS[:3])
        tensors = [Tensor(HIDDEN), short]
        if isinstance(loss, VocabParallelLinearCrossEntropyLoss):
            tensors.insert(1, Tensor(TABLE[:HELD]))
        loss.to_float(ms.float16)
        message = message_of(lambda loss=loss, tensors=tensors: loss(*tensors))
        assert "target must have shape" in message, message
        assert precision_outside() == ms.float32


def _each_alone() -> None:
    _accumulates(VocabParallelCrossEntropyLoss().to_float(ms.float16), _many_rows)
    _accumulates(VocabParallelLinearCrossEntropyLoss().to_float(ms.float16), _many_hidden)


PROGRAMS = {
    "mixed precision: logits": lambda: _in_scratch(lambda: _of_kind(_logits)),
    "mixed precision: linear": lambda: _in_scratch(lambda: _of_kind(_hidden)),
    "mixed precision: global mean": lambda: _in_scratch(lambda: _check(lambda _: _OwnRows(), "")),
    "mixed precision: sums": _each_alone,
    "mixed precision: a refusal": _refused,
}
