"""Targets that the Ascend kernels found outside [0, C): remembered without waiting for the device, raised on
request."""

from __future__ import annotations

import collections

from mindspore import Tensor, get_context
from mindspore.ops import constexpr

_pending: collections.deque = collections.deque(maxlen=64)


def check_targets() -> None:
    """Raises for the first target outside [0, C) of the calls since the last check (PyNative mode; at most 64 calls).

    A bad target makes its row's loss NaN at once; reading which one it was waits for the device, so it is left to this
    function, or done at every call where MindSpore's `pynative_synchronize` is set.

    Raises:
        ValueError: naming operation, target, row and valid range.
    """
    while _pending:
        op, error, classes = _pending.popleft()
        words = [int(word) for word in error.asnumpy()]
        if words[0]:
            row, target = _joined(words[1], words[2]), _joined(words[3], words[4])
            raise ValueError(
                f"ms_ce: {op}: target {target} in row {row} is outside [0, {classes}); {words[0]} rows are affected"
            )


def forget_targets() -> None:
    """Drops the targets that check_targets has not looked at."""
    _pending.clear()


def _joined(low: int, high: int) -> int:
    return high << 32 | (low & 0xFFFFFFFF)


@constexpr
def _synchronous() -> bool:
    """A graph's parser refuses get_context even where it stands in a branch that is not compiled."""
    return get_context("pynative_synchronize")


def remember(op: str, error: Tensor, classes: int) -> None:
    """Keeps the error record of a call; raises at once where MindSpore runs synchronously."""
    _pending.append((op, error, classes))
    if _synchronous():
        check_targets()
