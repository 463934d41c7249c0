"""What MindSpore itself cannot do, shown without ms_ce: a test that fails here says that documents can promise more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

WORKER = Path(__file__).with_name("limits_worker.py")
OPERATOR = """
#include <cstdint>
#include <vector>
namespace mindspore { class AotExtra; }
extern "C" int Twice(int, void** data, int* ndims, int64_t** shapes, const char**, void*, void*) {
  int64_t count = 1;
  for (int i = 0; i < ndims[0]; ++i) count *= shapes[0][i];
  for (int64_t i = 0; i < count; ++i) static_cast<float*>(data[1])[i] = 2 * static_cast<float*>(data[0])[i];
  return 0;
}
extern "C" std::vector<int64_t> TwiceInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
  return std::vector<int64_t>(shapes[0], shapes[0] + ndims[0]);
}
"""


@pytest.fixture(scope="module")
def operator(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("operator")
    source, library = folder / "twice.cc", folder / "libtwice.so"
    source.write_text(OPERATOR)
    compiler = os.environ.get("CXX") or shutil.which("g++") or "clang++"
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    return library


def _run(action, library, file, shape):
    command = [sys.executable, WORKER, action, library, file, shape]
    return subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)


def test_a_custom_operator_of_unknown_shape_does_not_run_from_a_file(operator, tmp_path):
    for shape in ("static", "dynamic"):
        exported = _run("export", operator, tmp_path / shape, shape)
        assert exported.returncode == 0, exported.stderr[-2000:]
    static = _run("load", operator, tmp_path / "static.mindir", "static")
    assert "[[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]" in static.stdout, static.stderr[-2000:]
    dynamic = _run("load", operator, tmp_path / "dynamic.mindir", "dynamic")
    assert dynamic.returncode != 0
    assert "PrimitivePy" in dynamic.stderr


class _OwnDerivative(nn.Cell):
    def construct(self, x):
        return x * 2

    def bprop(self, x, out, dout):
        return (dout * 2,)


def _with_a_branch(x):
    return x * 2 if x.sum() > 0 else x * 3


@pytest.mark.parametrize("called", (_OwnDerivative(), _with_a_branch), ids=("bprop", "branch"))
def test_a_closure_over_a_function_that_stays_a_call_is_not_differentiated(called):
    """Inside a graph; with the tensor as an argument it is."""

    @ms.jit
    def with_a_closure(x, factor):
        def loss(x):
            return (called(x) * factor).sum()

        return ms.grad(loss)(x)

    @ms.jit
    def with_an_argument(x, factor):
        def loss(x, factor):
            return (called(x) * factor).sum()

        return ms.grad(loss)(x, factor)

    x, factor = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    with pytest.raises(TypeError, match="The parameters number of the function is 2"):
        with_a_closure(x, factor)
    assert with_an_argument(x, factor).asnumpy().tolist() == [6.0, 8.0]


def test_a_loop_reads_a_view_from_the_wrong_place():
    """Silently. After an operator that makes a tensor of its own it is right."""

    def sums(own):
        @ms.jit
        def twice(x):
            x = ops.maximum(x, x) if own else x
            count, result = Tensor(0, ms.int32), ops.zeros((4,), ms.float32)
            while count < 2:
                result = result + ops.gather(x, ops.arange(4), 0)
                count = count + 1
            return result

        rows = Tensor(np.arange(1, 25, dtype=np.float32).reshape(3, 8))
        return [twice(rows[row]).asnumpy().tolist() for row in range(3)]

    right = [[2 * (8 * row + place) for place in range(1, 5)] for row in range(3)]
    assert sums(own=True) == right
    assert sums(own=False) != right


def test_a_graph_drops_a_known_nan():
    """What is added to or multiplied by a constant nan comes out unchanged: no answer of ours in a graph may be one."""
    nan = Tensor(np.float32(np.nan))

    @ms.jit
    def added(x):
        return x + nan

    @ms.jit
    def multiplied(x):
        return x * nan

    x = Tensor(np.array([2.0, 3.0], np.float32))
    for function in (added, multiplied):
        np.testing.assert_array_equal(function(x).asnumpy(), x.asnumpy())
