"""Calls of the Ascend operators through MindSpore's own ops.Custom and its parsers; only the kernels are missing.

On CPU MindSpore takes the library that infers their shapes for the one with their kernels, and says which it misses:
by then it has taken the call with all its attributes.
"""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, ops
from mindspore.ops.operations import custom_ops

from ms_ce.ops.ascend import operators as ascend_operators
from ms_ce.ops.ascend.operators import OPERATORS

ROWS, CLASSES = 4, 8
VALUES = {"int": 0, "double": 0.0, "bool": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MindSpore compiles the inference library once for each working directory."""
    return tmp_path_factory.mktemp("ascend")


@pytest.fixture(autouse=True)
def working_directory(monkeypatch, folder):
    monkeypatch.chdir(folder)


@pytest.fixture
def made(monkeypatch, folder):
    """made(name): an operator that was made on an Ascend host, as far as ops.Custom can tell."""
    real, compile_aot = custom_ops.context.get_context, custom_ops._compile_aot

    def device(name):
        return "Ascend" if name == "device_target" else real(name)

    def compiled(source):
        """All but what calls the kernel, for which CANN's headers are needed."""
        return f"{source}.so" if source.endswith("_callback.cc") else compile_aot(source)

    def make(name):
        with monkeypatch.context() as host:
            host.setattr(custom_ops.context, "get_context", device)
            host.setattr(custom_ops, "_compile_aot", compiled)
            host.setenv("ASCEND_OPP_PATH", str(folder / "opp"))
            operator = ascend_operators.custom(name, False)
        assert operator.is_ascend_c
        return operator

    return make


def arguments(name: str) -> tuple:
    shapes = {"F": (ROWS, CLASSES), "C": (ROWS,), "W": (1,), "E": (8,)}
    dtypes = {"F": np.float32, "C": np.int32, "W": np.float32, "E": np.int32}
    operator = OPERATORS[name]
    tensors = [Tensor(np.zeros(shapes[kind], dtypes[kind])) for _, kind in operator.inputs]
    return (*tensors, *(VALUES[kind] for _, kind in operator.attributes))


def first_value(operator, name: str):
    result = operator(*arguments(name))
    return (result[0] if isinstance(result, tuple) else result).asnumpy()


@pytest.mark.parametrize("name", OPERATORS)
def test_every_call_reaches_the_kernel(name, made):
    operator = made(name)
    with pytest.raises(RuntimeError, match=f"fetching function 'aclnn{name}'"):
        first_value(operator, name)


def test_mindspore_itself_takes_tensors_only(made):
    """Why the call is compiled."""
    operator = made("MsCeForward")
    with pytest.raises(TypeError, match="Failed calling CustomExt"):
        ops.Custom.__call__(operator, *arguments("MsCeForward"))
