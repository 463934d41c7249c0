"""Stop at the first loss or gradient that is not finite, and say on which rank."""

from __future__ import annotations

from mindspore import nn, ops
from mindspore.communication import get_rank


def this_rank() -> int:
    """The rank in the world; 0 where nothing is distributed."""
    try:
        return get_rank()
    except (RuntimeError, ValueError):
        return 0


class FiniteGradient(nn.Cell):
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


class FiniteValue(nn.Cell):
    """The identity, which raises ValueError when its input is not finite; arguments as FiniteGradient."""

    def __init__(self, op: str, value: str):
        super().__init__()
        self.message = _message(op, value)

    def construct(self, x):
        return _raise_unless_finite(x, self.message)


def _message(op: str, value: str) -> str:
    return f"{op}: rank {this_rank()}: {value} is not finite (check_for_nan_in_loss_and_grad=True)"


def _raise_unless_finite(x, message):
    if ops.logical_not(ops.isfinite(x)).any():
        raise ValueError(message)
    return x
