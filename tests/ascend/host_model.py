"""Builds the host model of the Ascend C kernels and runs them from numpy.

The kernels of custom_aicore/op_kernel are compiled unchanged against custom_aicore/host_model with g++, one shared
library per dtype of logits. The structs shared with the kernels are read from ms_ce_tiling.h, so their layout
is written
down once.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

# The two variables serve mutation_run.py: another copy of the sources, compiled without waiting for the optimiser.
PROJECT = Path(
    os.environ.get("MS_CE_CUSTOM_AICORE", Path(__file__).resolve().parents[2] / "custom_aicore")
)
OPTIMISE = os.environ.get("MS_CE_HOST_MODEL_OPTIMISE", "-O3")
# The unified buffer of a vector core as PlatformAscendC reports it: 192 KB less the 256 bytes that CANN reserves on
# ascend910b and ascend910_93.
UB_BYTES = 192 * 1024 - 256
CORES = 48  # vector cores of 910B1
C_TYPES = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "float": ctypes.c_float}
CPP_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat16_t"}
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LAZY_VECTOR, LAZY_LOAD, LAZY_STORE = 2, 4, 8
ADVERSARIAL = (LAZY_VECTOR, LAZY_LOAD, LAZY_STORE, LAZY_VECTOR | LAZY_STORE, LAZY_LOAD | LAZY_STORE)


class HostModelError(AssertionError):
    """What the hardware would have punished, in the model's words."""


def _struct_fields(header: str, name: str) -> list[tuple[str, str]]:
    body = re.search(rf"struct {name} {{(.*?)\n}};", header, re.S).group(1)
    return re.findall(r"^\s+(\w+) (\w+);", body, re.M)


def _structs() -> tuple[type, type]:
    header = (PROJECT / "op_kernel" / "ms_ce_tiling.h").read_text()
    problem = type(
        "MsCeProblem",
        (ctypes.Structure,),
        {"_fields_": [(n, C_TYPES[t]) for t, n in _struct_fields(header, "MsCeProblem")]},
    )
    known = {**C_TYPES, "MsCeProblem": problem}
    tiling = type(
        "MsCeTiling",
        (ctypes.Structure,),
        {"_fields_": [(n, known[t]) for t, n in _struct_fields(header, "MsCeTiling")]},
    )
    return problem, tiling


def enum_values(name: str) -> dict[str, int]:
    """Members of an enum of ms_ce_tiling.h, without their prefix, in lower case."""
    header = (PROJECT / "op_kernel" / "ms_ce_tiling.h").read_text()
    body = re.search(rf"enum {name} : int32_t {{(.*?)}};", header, re.S).group(1)
    return {n.lower(): int(v) for n, v in re.findall(r"MS_CE_(\w+) = (\d+)", body)}


def kernel_name(operator: str) -> str:
    """ms_ce_forward_grad for MsCeForwardGrad: the entry point of an operator's kernel, as CANN names it."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", operator).lower()


class _LaunchRequest(ctypes.Structure):
    _fields_ = [
        ("blocks", ctypes.c_int32),
        ("unified_buffer_bytes", ctypes.c_uint32),
        ("lazy_pipes", ctypes.c_uint32),
        ("control", ctypes.c_uint64),
        ("maximum_drops_nan", ctypes.c_int32),
        ("falling_order", ctypes.c_int32),
        ("buffers", ctypes.c_int32),
        ("bases", ctypes.POINTER(ctypes.c_void_p)),
        ("bytes", ctypes.POINTER(ctypes.c_int64)),
        ("writable", ctypes.POINTER(ctypes.c_int32)),
        ("names", ctypes.POINTER(ctypes.c_char_p)),
        ("tiling", ctypes.c_void_p),
        ("bytes_read", ctypes.POINTER(ctypes.c_int64)),
        ("bytes_written", ctypes.POINTER(ctypes.c_int64)),
        ("copies", ctypes.POINTER(ctypes.c_int64)),
        ("smallest_copy", ctypes.POINTER(ctypes.c_int64)),
        ("counts", ctypes.c_char * 4096),
        ("message", ctypes.c_char * 512),
    ]


class KindCounts(NamedTuple):
    """Instructions of one kind, their repeats, and how often the vector or the scalar pipe waits for one of them."""

    instructions: int
    repeats: int
    waited: int


@dataclass
class Counters:
    """Traffic of one launch per tensor, in bytes, and what all blocks together did in the unified buffer."""

    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    smallest_copy: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, KindCounts] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=list)
    """Repeats by operand (destination, first and second source) and the bank group of their first block."""
    vector_repeats: int = 0
    starts: int = 0
    """Vector instructions before which the vector pipe waits for another pipe."""
    bank_conflicts: int = 0
    scalar_reads: int = 0
    scalar_writes: int = 0
    cache_hints: int = 0
    bypassing_bytes: int = 0
    unaligned_blocks: int = 0
    """Blocks of copies that start inside a 512-byte line of global memory; shorter ones are counted below."""
    small_block_bytes: int = 0
    """Bytes of copies of several blocks shorter than a line."""
    lone_blocks: int = 0
    """Copies of one block shorter than a line."""

    @property
    def waits(self) -> int:
        """Waits for a vector instruction to complete, of one that reads or overwrites its result or of the scalar pipe.
        Behind one wait all earlier instructions are complete."""
        return sum(kind.waited for kind in self.kinds.values())


@dataclass(frozen=True)
class Chip:
    """What a kernel may find and must not depend on: bit 48 of the control register is 0 where conversions to 16 bits
    saturate, and a maximum of NaN and a number may be either."""

    control: int = 0
    maximum_drops_nan: bool = False


AS_FOUND = Chip()
SATURATION_OFF = 1 << 48
CHIPS = tuple(Chip(control, drops) for control in (0, SATURATION_OFF) for drops in (False, True))


def compile_library(source: Path, defines: list[str], optimise: str = OPTIMISE) -> Path:
    """Compiles one translation unit to a shared library; the result is cached by the content of all it may include."""
    digest = hashlib.sha256(" ".join([source.name, optimise, *defines]).encode())
    for path in sorted(
        [
            *PROJECT.glob("op_*/*"),
            *PROJECT.glob("infer/*"),
            *PROJECT.glob("host_model/**/*"),
            source,
        ]
    ):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    cache = Path(tempfile.gettempdir()) / f"ms_ce_host_model_{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    library = cache / f"{digest.hexdigest()[:24]}.so"
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who needs the same one waits for it
        if not library.exists():
            _compile(source, [optimise, *defines], library)
    return library


def _compile(source: Path, options: list[str], library: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("tests/ascend needs g++ to compile the host model; install g++")
    partial = library.with_suffix(f".{os.getpid()}")
    command = [
        compiler,
        "-std=c++17",
        "-march=native",
        "-fno-gnu-unique",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    command += [
        "-shared",
        "-fPIC",
        *options,
        f"-I{PROJECT / 'host_model'}",
        f"-I{PROJECT / 'op_kernel'}",
    ]
    done = subprocess.run(
        [*command, str(source), "-o", str(partial)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the host model does not compile:\n{done.stderr[-4000:]}")
    partial.rename(library)


def launch(
    entry,
    kernel: str,
    inputs: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    *,
    blocks: int,
    unified_buffer_bytes: int = UB_BYTES,
    workspace_bytes: int = 1,
    tiling: ctypes.Structure | None = None,
    lazy_pipes: int = 0,
    falling_order: bool = False,
    chip: Chip = AS_FOUND,
) -> Counters:
    """Runs a kernel of a library's launch entry; outputs are filled in place. Raises HostModelError for anything the
    model objects to."""
    workspace = np.full(max(workspace_bytes, 1), 0xFF, np.uint8)
    tensors = {**inputs, **outputs, "workspace": workspace}
    count = len(tensors)
    arrays = list(tensors.values())
    assert all(a.flags.c_contiguous for a in arrays)
    numbers = [(ctypes.c_int64 * count)() for _ in range(4)]
    request = _LaunchRequest(
        blocks=blocks,
        unified_buffer_bytes=unified_buffer_bytes,
        lazy_pipes=lazy_pipes,
        falling_order=int(falling_order),
        control=chip.control,
        maximum_drops_nan=int(chip.maximum_drops_nan),
        buffers=count,
        bases=(ctypes.c_void_p * count)(*[a.ctypes.data for a in arrays]),
        bytes=(ctypes.c_int64 * count)(*[a.nbytes for a in arrays]),
        writable=(ctypes.c_int32 * count)(*[int(name not in inputs) for name in tensors]),
        names=(ctypes.c_char_p * count)(*[name.encode() for name in tensors]),
        tiling=None if tiling is None else ctypes.addressof(tiling),
    )
    for name, values in zip(
        ("bytes_read", "bytes_written", "copies", "smallest_copy"), numbers, strict=True
    ):
        setattr(request, name, ctypes.cast(values, ctypes.POINTER(ctypes.c_int64)))
    if entry(kernel.encode(), ctypes.byref(request)):
        raise HostModelError(f"{kernel}: {request.message.decode()}")
    per_tensor = [dict(zip(tensors, values, strict=True)) for values in numbers]
    counts = json.loads(request.counts.decode())
    counts["kinds"] = {kind: KindCounts(*values) for kind, values in counts["kinds"].items()}
    return Counters(*per_tensor, **counts)


class HostModel:
    """The kernels for one dtype of logits."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.Problem, self.Tiling = _structs()
        self.kinds = enum_values("MsCeKind")
        self.reductions = enum_values("MsCeReduction")
        source = PROJECT / "host_model" / "kernels.cpp"
        self.path = compile_library(source, [f"-DDTYPE_LOGITS={CPP_TYPES[dtype]}"])
        self._library = ctypes.CDLL(str(self.path))

    def problem(self, kind: str, rows: int, cols: int, **options):
        """A problem with defaults for all that `options` does not set; names are those of MsCeProblem."""
        values = {
            "rows": rows,
            "cols": cols,
            "ignoreIndex": -100,
            "totalClasses": options.get("totalClasses", cols),
            "ubBytes": UB_BYTES,
            "cores": CORES,
            "kind": self.kinds[kind],
            "reduction": self.reductions["mean"],
            "logitsBytes": ELEMENT_BYTES[self.dtype],
            "targetBytes": 4,
            **options,
        }
        return self.Problem(**values)

    def tiling(self, problem):
        tiling = self.Tiling()
        self._library.host_model_tiling(ctypes.byref(problem), ctypes.byref(tiling))
        return tiling

    def launch(self, kernel: str, inputs, outputs, tiling, **order) -> Counters:
        """Runs a kernel with the blocks, the unified buffer and the workspace that its tiling asks for."""
        return launch(
            self._library.host_model_launch,
            kernel,
            inputs,
            outputs,
            blocks=tiling.usedCores,
            unified_buffer_bytes=tiling.problem.ubBytes,
            workspace_bytes=tiling.workspaceBytes,
            tiling=tiling,
            **order,
        )
