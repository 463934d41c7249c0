"""Stop at the first loss or gradient that is not finite, and say on which rank.

A graph that is not partitioned raises by itself (`FiniteValue`, `FiniteGradient`). A partitioned graph cannot: it
leaves a number behind (`RecordedValue`, `RecordedGradient`), and the host raises after the step (`RaiseAfterStep`).
"""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Parameter, Tensor, ops
from mindspore.communication import get_rank
from mindspore.train import Callback

from ms_ce.ops.precision import UncastCell


def this_rank() -> int:
    """The rank in the world; 0 where nothing is distributed."""
    try:
        return get_rank()
    except (RuntimeError, ValueError):
        return 0


class FiniteGradient(UncastCell):
    """The identity, which raises ValueError when the gradient that flows back is not finite.

    Args:
        op: name of the loss, for the message.
        value: name of the input.
    """

    def __init__(self, op: str, value: str):
        super().__init__()
        self.message = _message(op, f"the gradient of {value}")

    def construct(self, x):
        return x

    def bprop(self, x, out, dout):
        return (_raise_unless_finite(dout, self.message),)


class FiniteValue(UncastCell):
    """The identity, which raises ValueError when its input is not finite; arguments as FiniteGradient."""

    def __init__(self, op: str, value: str):
        super().__init__()
        self.message = _message(op, value)

    def construct(self, x):
        return _raise_unless_finite(x, self.message)


class _Recorded(UncastCell):
    """A number of this rank that a graph leaves behind; arguments as FiniteGradient."""

    def __init__(self, op: str, value: str):
        super().__init__()
        self.op, self.value = op, value
        self.latest = Parameter(Tensor(0.0, ms.float32), name="latest", requires_grad=False)
        self.assign = ops.Assign()

    def check(self):
        if not math.isfinite(float(self.latest.asnumpy())):
            raise ValueError(_message(self.op, self.value))


class RecordedValue(_Recorded):
    """The identity of `x` (), which records `number` ()."""

    def construct(self, x, number):
        return ops.depend(x, self.assign(self.latest, ops.stop_gradient(number)))


class RecordedGradient(_Recorded):
    """The identity, which records 0 when all of the gradient that flows back is finite, else nan."""

    def __init__(self, op: str, value: str):
        super().__init__(op, value)
        # A bprop may not touch a Parameter; this may.
        self.record_gradient = ops.InsertGradientOf(self.record)

    def construct(self, x):
        return self.record_gradient(x)

    def record(self, gradient):
        # x - x is nan where x is nan or infinite, and 0 elsewhere.
        wide = ops.cast(gradient, ms.float32)
        return ops.depend(gradient, self.assign(self.latest, ops.ReduceSum()(wide - wide)))


class RaiseAfterStep(Callback):
    """For Model.train: `check()` of a loss after every step (with data sinking, after every sink)."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def on_train_step_end(self, run_context):
        self.loss.check()


def _message(op: str, value: str) -> str:
    return f"{op}: rank {this_rank()}: {value} is not finite (check_for_nan_in_loss_and_grad=True)"


def _raise_unless_finite(x, message):
    if ops.logical_not(ops.isfinite(x)).any():
        raise ValueError(message)
    return x
