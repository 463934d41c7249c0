"""MindSpore's mixed precision where Python runs.

It casts what goes into each operator, one by one, and stays switched on for the process when something raises under it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore._c_expression import MixedPrecisionType
from mindspore.ops import operations as P
from mindspore.ops.primitive import PrimitiveWithInfer

from ms_ce import _versions
from ms_ce.ops.graph import OfKnown, compiling

DTYPES = {
    "fp16": mstype.float16,
    "fp32": mstype.float32,
    "bf16": mstype.bfloat16,
}  # by flag of a Cell

_operator = P.Add()  # takes every dtype in every version


class UncastCell(nn.Cell):
    """A Cell inside a loss: flags of mixed precision pass it by, in a graph too, so that statistics stay exact."""

    def add_flags(self, **flags):
        return super().add_flags(**{name: flags[name] for name in flags if name not in DTYPES})


def off() -> None:
    """No casts until `on_again`; after an exception, which none follows, until another Cell asks for some."""
    _versions.pynative_executor.set_mixed_precision_type(MixedPrecisionType.NOTSET)


def on_again() -> None:
    """As before the latest `off`."""
    _versions.pynative_executor.set_mixed_precision_type(MixedPrecisionType.NOTSET, False)


def begin_as(dtype):
    """The dtype that mixed precision would cast one to, where Python runs; what follows is not cast, until `end`."""
    one = Tensor(1, dtype)
    cast = _operator(one, one).dtype
    off()
    return cast


def _cast_once(input: Tensor) -> Tensor:
    dtype = begin_as(input.dtype)
    return input if dtype == input.dtype else ops.cast(input, dtype)


def begin(input):
    """A loss's input in the dtype that mixed precision would cast it to; what follows is not cast, until `end`."""
    return input if compiling() else _cast_once(input)


class _WherePythonRuns(PrimitiveWithInfer):
    """What Python does and a graph leaves out."""

    def __init__(self, function: Callable):
        super().__init__(f"ms_ce_{function.__name__}")
        self.function = function

    def __call__(self):
        self.function()

    def __infer__(self):
        return {"shape": (), "dtype": mstype.bool_, "value": True}


# What follows is not cast, from `pause` to `end`.
pause, end = _WherePythonRuns(off), _WherePythonRuns(on_again)


@contextlib.contextmanager
def _off_where_it_raises():
    try:
        yield
    except Exception:
        off()
        raise


def constexpr(check: Callable) -> Callable:
    """mindspore.ops.constexpr for what may raise: mixed precision is off then."""
    # By a decorator of contextlib: bytecode capture ends the process in a `try` of ours.
    return ops.constexpr(_off_where_it_raises()(check))


def of_known(check: Callable) -> OfKnown:
    """The same for a function of tensors."""
    return OfKnown(_off_where_it_raises()(check))
