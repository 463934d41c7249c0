"""What instructions, copies and a launch cost on Ascend 910B, as the vendor publishes it. No figure here is fitted to
ms_ce's kernels.

Two sources. The package msopmodeling (PyPI, the vendor's performance-modelling tool) has tables of cycles for each
vector instruction, bandwidths by number of cores, and profiles of the vendor's operators on chips. The public
repository asc-devkit prints profiles of its samples (examples/01_simd_cpp_api/05_best_practices); those that are used
stand below.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

PACKAGE, VERSION = "msopmodeling", "1.0.9"
CHIPS = ("910B1", "910B4")
# Profiles count 1800 cycles a µs on 910B1 (aiv_total_cycles by block and aiv_time of HcPreInvRms), where the package's
# configuration says 1850.
PROFILED_CLOCK = {"910B1": 1800.0}

# add_high_performance: 8192 x 8192 float16 on 48 cores, µs of a task and of its vector instructions. Case 0 adds with
# three scalar accesses an element on one core.
ADD_ELEMENTS = 8192 * 8192
ADD_SCALAR_MICROSECONDS = 1233742.494
ADD_TILES = {"two sources in one bank group": 16384, "in two": 16256}  # elements of a tile
ADD_VECTOR = {"two sources in one bank group": 12.846, "in two": 6.954}
ADD_TASK, ADD_TASK_PAST_CACHE = 264.02, 187.68
# data_copy: 12288 x 12288 float16 read by 48 cores, µs of a task. Blocks of 2048 bytes; the same where rows of 12287
# leave them unaligned; 64 blocks of 128 bytes in a copy; one block of 128 bytes in a copy.
COPY_BYTES, COPY_ALIGNED, COPY_UNALIGNED, COPY_SMALL, COPY_LONE = (
    12288 * 12288 * 2,
    215.82,
    275.3,
    233.54,
    564.84,
)
COPY_BLOCK, COPY_SMALL_BLOCK = 2048, 128
# bank_conflict_ub: ticks of 50 MHz (GetSystemCycle) for 1000 additions of 64 repeats, scenarios by name.
BANK_TICKS = {
    "no conflict": 2390,
    "two sources in one bank group": 4167,
    "one block a repeat, moving": 3584,
    "one block a repeat, apart": 2389,
}

# The package's name of each instruction by that of the Ascend C API. Maxs has no row; Mins is the same unit's.
INSTRUCTIONS = {
    "Add": "VADD",
    "Sub": "VSUB",
    "Mul": "VMUL",
    "Div": "VDIV",
    "Max": "VMAX",
    "Adds": "VADDS",
    "Muls": "VMULS",
    "Maxs": "VMINS",
    "Mins": "VMINS",
    "Exp": "VEXP",
    "Ln": "LOG",
    "Sqrt": "VSQRT",
    "Axpy": "AXPY",
    "Duplicate": "VECTOR_DUP",
    "Cast": "VCONV",
    "Brcb": "BRCB",
    "WholeReduceMax": "VCMAX",
    "WholeReduceSum": "VCADD",
    "BlockReduceMax": "VCGMAX",
    "BlockReduceSum": "VCGADD",
    "Compare": "CMPV_EQ",
    "Select": "VSEL",
    "GatherMask": "VREDUCEV2",
}


@dataclass(frozen=True)
class Instruction:
    """Cycles of a repeat; before the first repeat where the pipe was idle; until the result may be read."""

    repeat: float
    head: float
    interval: float


@dataclass(frozen=True)
class Chip:
    """Cores, cycles a µs, bytes a µs over all cores: read alone, both ways, and both ways with reads past the cache."""

    name: str
    cores: int
    clock: float
    read: float
    both: float
    past_cache: float


def root() -> Path:
    """The package's folder in the environment that runs this."""
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != VERSION:
        raise SystemExit(
            f"ascend_model: needs {PACKAGE} {VERSION} beside numpy, found {found}; make an environment and "
            f"`pip install {PACKAGE}=={VERSION}` there (it wants numpy 2, MindSpore does not)"
        )
    return Path(str(importlib.metadata.distribution(PACKAGE).locate_file("tilesim")))


def rows(path: str) -> list[dict[str, str]]:
    """A table of the package."""
    with (root() / path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def instructions() -> dict[str, Instruction]:
    """By the names of the Ascend C API, for 32-bit elements without bank conflicts, which are counted."""
    table: dict[str, Instruction] = {}
    for file in ("vec_cycle_910B1.csv", "vec_cycle_no_bank_conflict_910B1.csv"):
        for row in rows(f"core/config/arc_config/910B1/{file}"):
            if row["d_type"] == "FP32":
                cycles = (row["computing_cycles"], row["head_cycles"], row["interval_cycles"])
                table[row["intrinsic"]] = Instruction(*map(float, cycles))
    known = {name: table[intrinsic] for name, intrinsic in INSTRUCTIONS.items()}
    # The table has 0 cycles for a repeat of BRCB; no instruction is free.
    known["Brcb"] = Instruction(1.0, known["Adds"].head, known["Brcb"].interval)
    return known


def scalar_access() -> float:
    """Cycles of a scalar access to the unified buffer."""
    return ADD_SCALAR_MICROSECONDS * PROFILED_CLOCK["910B1"] / (3 * ADD_ELEMENTS)


def _configured(chip: str, key: str) -> float:
    text = (root() / f"core/config/arc_config/{chip}/{chip}.yaml").read_text(encoding="utf-8")
    return float(re.search(rf"{key}: *([\d.]+)", text).group(1))


def _table_bandwidth(chip: str, cores: int) -> float:
    """Bytes a µs that all cores read by the package's table."""
    for row in rows(f"core/config/arc_config/{chip}/bandwidth_{chip}.csv"):
        if (row["src_mem"], row["dst_mem"], row["core_num"]) == ("GM", "UB", str(cores)):
            return float(row["bandwidth(GB/s)"]) * 1e3 * cores
    raise SystemExit(f"ascend_model: {PACKAGE} has no bandwidth of {chip} with {cores} cores")


@functools.cache
def chip(name: str) -> Chip:
    """910B1 as the samples measure it; another chip by the ratio of the package's bandwidths."""
    cores = int(_configured(name, "vec_core_num"))
    ratio = _table_bandwidth(name, cores) / _table_bandwidth("910B1", 48)
    hidden = launch_start(48)
    added = 3 * ADD_ELEMENTS * 2
    return Chip(
        name,
        cores,
        PROFILED_CLOCK.get(name, _configured(name, "clock_freq")),
        ratio * COPY_BYTES / (COPY_ALIGNED - hidden),
        ratio * added / (ADD_TASK - hidden),
        ratio * added / (ADD_TASK_PAST_CACHE - hidden),
    )


def _between(chip: str, source: str, destination: str) -> float:
    """Bytes a µs of a core between two memories."""
    for row in rows(f"core/config/arc_config/{chip}/bandwidth_{chip}.csv"):
        if (row["src_mem"], row["dst_mem"]) == (source, destination):
            return float(row["bandwidth(GB/s)"]) * 1e3
    raise SystemExit(
        f"ascend_model: {PACKAGE} has no bandwidth of {chip}, {source} to {destination}"
    )


def cache_bytes(name: str) -> float:
    return _configured(name, "L2") * 1024


def cache_read(name: str) -> float:
    """Bytes a µs of all vector cores from the L2 cache."""
    return _between(name, "L2", "UB") * chip(name).cores


def cache_write(name: str) -> float:
    return _between(name, "UB", "L2") * chip(name).cores


def cube_rate(name: str) -> float:
    """16-bit operations a µs of all cube cores: 16³ products with their sums in a cycle."""
    return _configured(name, "cube_core_num") * 2 * 16**3 * PROFILED_CLOCK[name]


# ---- a launch ----
CASTS = "tests/st/ops_accuracy/theo_ops/cast/dtypecast_dpsk-v4-a3_zhanlu_profiling_910B1.csv"
SMALL_CAST_BYTES = 1 << 20


@dataclass(frozen=True)
class Cast:
    bytes: int
    blocks: int
    microseconds: float


def _tensor_bytes(shapes: str, dtypes: str) -> int:
    sizes = {"bool": 1, "bfloat16": 2, "float16": 2, "float32": 4, "int32": 4, "int64": 8}
    total = 0
    kinds = re.findall(r"torch\.(\w+)", dtypes)
    for shape, dtype in zip(re.findall(r"\[([\d, ]+)\]", shapes), kinds, strict=True):
        elements = 1
        for extent in shape.split(","):
            elements *= int(extent)
        total += elements * sizes[dtype]
    return total


@functools.cache
def casts() -> tuple[Cast, ...]:
    """The vendor's Cast on 910B1, medians by size and number of blocks."""
    measured: dict[tuple[int, int], list[float]] = {}
    for row in rows(CASTS):
        size = _tensor_bytes(row["inputs_shape"], row["inputs_dtype"])
        size += _tensor_bytes(row["outputs_shape"], row["outputs_dtype"])
        measured.setdefault((size, int(row["block_dim"])), []).append(float(row["profiling_time"]))
    return tuple(Cast(*key, statistics.median(times)) for key, times in sorted(measured.items()))


@functools.cache
def launch() -> tuple[float, float]:
    """µs of a launch of no blocks and of each block, a line through the Casts of less than a megabyte."""
    small = [c for c in casts() if c.bytes < SMALL_CAST_BYTES]
    mean_blocks = statistics.mean(c.blocks for c in small)
    mean_time = statistics.mean(c.microseconds for c in small)
    slope = sum((c.blocks - mean_blocks) * (c.microseconds - mean_time) for c in small)
    slope /= sum((c.blocks - mean_blocks) ** 2 for c in small)
    return mean_time - slope * mean_blocks, slope


def launch_all(blocks: int) -> float:
    """µs until the last block has begun: what work that a core does alone is added to."""
    first, each = launch()
    return first + each * blocks


def launch_start(blocks: int) -> float:
    """µs of a launch that shared work is added to: blocks begin one after another, and those that have begun already
    use the memory that all share."""
    first, each = launch()
    return first + each * blocks / 2
