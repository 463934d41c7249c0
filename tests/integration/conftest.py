"""Ways to run a loss: PyNative, ms.jit, and a Cell under GRAPH_MODE."""

from __future__ import annotations

import os
import warnings

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

MODES = ("pynative", "jit", "graph")
DTYPES = ("float16", "bfloat16", "float32", "float64")


def to_tensor(values: np.ndarray | None, dtype: str | None = None) -> Tensor | None:
    """A Tensor of `dtype`; labels keep their own."""
    if values is None:
        return None
    tensor = Tensor(np.array(values, order="C"))
    if dtype is None or np.issubdtype(values.dtype, np.integer):
        return tensor
    return tensor.astype(getattr(ms, dtype))


def to_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == ms.bfloat16:
        tensor = tensor.astype(ms.float32)
    return tensor.asnumpy()


def times(value: Tensor, factor: Tensor) -> Tensor:
    """value * factor, which MindSpore before 2.9 cannot do in bfloat16 on CPU."""
    if value.dtype == ms.bfloat16:
        value = value.astype(ms.float32)
    return value * factor.astype(value.dtype)


class _Network(nn.Cell):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def construct(self, *args):
        return self.function(*args)


# MindSpore calls this an "unexpected error" of its own. Seen once in thousands of graphs, in the loop over chunks of
# backend composed, on a busy machine; the same graph compiles the next time (docs/linear.md).
_COMPILER_FAILURE = "func_graph->get_return()] is null"
_lost: list[str] = []


def _compiled_again_once(compute):
    """compute(), and once more where its graph was lost; the second lost graph of a test run is a failure."""
    try:
        return compute()
    except RuntimeError as error:
        if _COMPILER_FAILURE not in str(error) or _lost:
            raise
        _lost.append(os.environ["PYTEST_CURRENT_TEST"])
        warnings.warn(f"compiled again after MindSpore's {_COMPILER_FAILURE}", stacklevel=2)
        return compute()


@pytest.fixture
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(params=("cpu", "composed"))
def backend(request) -> str:
    return request.param


@pytest.fixture(params=MODES)
def run(request):
    """run(function, *tensors) computes function in one of the modes.

    `composed_loop` says that its graph may hold the loop that MindSpore's compiler has lost once.
    """

    def compute(function, *args):
        if request.param == "pynative":
            return function(*args)
        if request.param == "jit":
            return ms.jit(function)(*args)
        ms.set_context(mode=ms.GRAPH_MODE)
        return _Network(function)(*args)

    def call(function, *args, composed_loop=False):
        if composed_loop and call.compiles:
            return _compiled_again_once(lambda: compute(function, *args))
        return compute(function, *args)

    call.compiles = request.param != "pynative"
    yield call
    ms.set_context(mode=ms.PYNATIVE_MODE)
