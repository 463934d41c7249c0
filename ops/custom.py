"""One way to register an ahead-of-time compiled operator with MindSpore."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from mindspore import ops
from mindspore.ops import CustomRegOp

from ms_ce.ops import eager


def registration(
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dtypes: Iterable[Sequence[str]],
    target: str,
) -> dict:
    """Registration info of an operator; `dtypes` lists each accepted combination, inputs then outputs."""
    info = CustomRegOp(name)
    for index, argument in enumerate(inputs):
        info = info.input(index, argument)
    for index, result in enumerate(outputs):
        info = info.output(index, result)
    registered = info.target(target).get_op_info()
    # Not by `dtype_format`, which looks at each of some thousand names: milliseconds of `import ms_ce`.
    registered["dtype_format"] = [tuple(map(_with_format, combination)) for combination in dtypes]
    return registered


@functools.cache
def _with_format(dtype: str) -> tuple[str, str]:
    """One pair for each dtype, not eleven thousand."""
    return dtype, "DefaultFormat"


# Elements of an input from which on an operation takes a good part of a millisecond.
_LONG = 1 << 20


class _CpuOperator(ops.Custom):
    """A Custom that is made for the CPU whatever MindSpore's device is at that moment.

    ops.Custom takes every ahead-of-time operator that is made while the device is Ascend for one of Ascend C.
    """

    derivative: eager.Derivative | None = None
    waiting: Callable[[], AbstractContextManager]

    def __call__(self, *inputs: Any) -> Any:
        return eager.call(self.run, self.derivative, inputs)

    def run(self, *inputs: Any) -> Any:
        """As MindSpore does, except that a long operation is waited for: MindSpore's own waiting spins, on a core that
        the operation could use."""
        # Not `size`, which is a method where mindtorch has put torch's names on tensors.
        if all(math.prod(each.shape) < _LONG for each in inputs):
            return super().__call__(*inputs)
        with self.waiting():
            return super().__call__(*inputs)

    @property
    def is_ascend_c(self) -> bool:
        return False

    @is_ascend_c.setter
    def is_ascend_c(self, value: bool) -> None:
        """The constructor's answer, which goes by the device, is not taken."""


def compiled(
    library: str,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dtypes: Iterable[Sequence[str]],
    out_dtype: Callable,
    waiting: Callable[[], AbstractContextManager],
    bprop: Callable | None = None,
    derivative: eager.Derivative | None = None,
) -> ops.Custom:
    """The CPU operator `name` of `library`; shapes are inferred by the library's `<name>InferShape`.

    `waiting()` is a context that ends when an operation called in it has. `derivative` is that of PyNative, where it is
    another than `bprop`.
    """
    operator = _CpuOperator(
        f"{library}:{name}",
        out_shape=None,
        out_dtype=out_dtype,
        func_type="aot",
        bprop=bprop,
        reg_info=registration(name, inputs, outputs, dtypes, "CPU"),
    )
    operator.waiting = waiting
    if bprop is not None:
        operator.derivative = derivative or eager.Derivative(bprop)
    return operator
