"""MindSpore's own ops.Custom over the kernels of the host model.

The operators are made as on an Ascend host, as far as ops.Custom can tell; MindSpore's parsers, inference and
autograd are the real ones, in PyNative and in graphs. On CPU MindSpore runs what lies beside the shape inference in
the same library: the kernels of the host model.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

from mindspore.ops.operations import custom_ops

from ms_ce.ops import ascend
from ms_ce.ops.ascend import cells, rows
from ms_ce.ops.ascend import operators as ascend_operators
from tests.ascend.host_model import (
    CORES,
    PROJECT,
    UB_BYTES,
    HostModel,
    compile_library,
    kernel_name,
)

CACHES = (cells.cells, rows.built)


@functools.cache
def library(inference: str) -> Path:
    """The inference of a source of custom_aicore/infer, with kernels."""
    operators = " ".join(
        f"OPERATOR(aclnn{name}, {kernel_name(name)}, {kernel_name(name).upper()}, {len(operator.inputs)}, "
        f"{len(operator.inputs) + len(operator.outputs)})"
        for name, operator in ascend_operators.OPERATORS.items()
    )
    defines = {
        "INFERENCE": f'"{PROJECT / "infer" / inference}"',
        "OPERATORS": operators,
        "UB_BYTES": UB_BYTES,
        "CORES": CORES,
        "_GLIBCXX_USE_CXX11_ABI": 0,  # as MindSpore is compiled
        **{d.upper(): f'"{HostModel(d).path}"' for d in ("float32", "float16", "bfloat16")},
    }
    options = [f"-D{name}={value}" for name, value in defines.items()]
    return compile_library(Path(__file__).with_name("aot_kernels.cpp"), options, "-O1")


def compiled(source: str) -> str:
    """Stands for MindSpore's compiler: all but the call of a kernel on a device, which needs CANN's headers."""
    return f"{source}.so" if source.endswith("_callback.cc") else str(library(Path(source).name))


def target(name: str):
    return "Ascend" if name == "device_target" else REAL(name)


REAL = custom_ops.context.get_context


def install(monkeypatch, folder: Path) -> None:
    """Until the test ends, operators are made for Ascend."""
    monkeypatch.setattr(custom_ops, "context", SimpleNamespace(get_context=target))
    monkeypatch.setattr(custom_ops, "_compile_aot", compiled)
    monkeypatch.setenv("ASCEND_OPP_PATH", str(folder / "opp"))
    monkeypatch.chdir(folder)
    for cache in CACHES:
        cache.cache_clear()
    ascend.forget_targets()


def remove() -> None:
    """Forgets the operators that were made."""
    for cache in CACHES:
        cache.cache_clear()
    ascend.forget_targets()
