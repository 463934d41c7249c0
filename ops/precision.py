"""MindSpore's mixed precision where Python runs.

It casts what goes into each operator, one by one, and stays switched on for the process when something raises under it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mindspore import Tensor, ops
from mindspore._c_expression import MixedPrecisionType
from mindspore.ops import operations as P

from ms_ce import _versions
from ms_ce.ops.graph import compiling

_operator = P.Add()  # takes every dtype in every version


def off() -> None:
    """No casts until `on_again`; after an exception, which none follows, until another Cell asks for some."""
    _versions.pynative_executor.set_mixed_precision_type(MixedPrecisionType.NOTSET)


def on_again() -> None:
    """As before the latest `off`."""
    _versions.pynative_executor.set_mixed_precision_type(MixedPrecisionType.NOTSET, False)


def _cast_once(input: Tensor) -> Tensor:
    one = Tensor(1, input.dtype)
    dtype = _operator(one, one).dtype
    off()
    return input if dtype == input.dtype else ops.cast(input, dtype)


def begin(input):
    """A loss's input in the dtype that mixed precision would cast it to; what follows is not cast, until `end`."""
    return input if compiling() else _cast_once(input)


def end() -> None:
    if not compiling():
        on_again()


def constexpr(check: Callable) -> Callable:
    """mindspore.ops.constexpr for what may raise: mixed precision is off then."""

    @functools.wraps(check)
    def checked(*values, **named):
        try:
            return check(*values, **named)
        except Exception:
            off()
            raise

    return ops.constexpr(checked)
