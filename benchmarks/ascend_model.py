"""Time of the Ascend operators by a cost model that the vendor's measured kernels confirm. A model, not a measurement.

    python benchmarks/ascend_model.py [--shape ROWS CLASSES] [--dtype bfloat16] [--chip 910B1] [--markdown | --json]

The real kernels run on the host model (custom_aicore/host_model), which counts; ascend_cost.py turns counts into µs by
the vendor's published figures (ascend_tables.py), and ascend_validation.py prints the model's error on the vendor's own
kernels. It runs in an environment with numpy and msopmodeling; MindSpore is not needed.

Beside them stands the vendor's pair: forward 3 reads and 1 write of N·C elements, backward 1 read and 1 write, memory
only (its forward makes 9.3 repeats per 64 elements beside that).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import ascend_tables as tables
import numpy as np
from ascend_cost import Cost, cost, memory_microseconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.ascend.host_model import ELEMENT_BYTES
from tests.ascend.operators import Run, backward, encode, forward, forward_grad

VENDOR_PASSES = {"vendor forward": (3, 1), "vendor backward": (1, 1)}  # reads and writes of N·C
# A language model's micro-batch, a large vocabulary, a classifier, a wide batch of few classes.
SHAPES = ((2048, 32000), (512, 128256), (4096, 1000), (65536, 64))
ROWS_OF_A_CORE = 8  # that are counted where rows are long; the counts are proportional


def costs(rows: int, classes: int, dtype: str, chip: tables.Chip) -> dict[str, Cost]:
    """Of ms_ce's operators: class targets, mean."""
    long = classes > 2048
    sample = min(rows, ROWS_OF_A_CORE * chip.cores) if long else rows
    logits = encode(np.zeros((sample, classes), np.float32), dtype)
    target = np.arange(sample, dtype=np.int32) % classes
    lse = np.full(sample, np.log(classes), np.float32)
    run = Run(cores=chip.cores)
    counted = {
        "MsCeForward": forward(logits, target, None, dtype, run=run)[1],
        "MsCeBackward": backward(np.ones(1), logits, target, None, lse, np.ones(1), dtype, run=run)[
            1
        ],
        "MsCeForwardGrad": forward_grad(logits, target, None, dtype, run=run)[1],
    }
    blocks = min(chip.cores, rows)
    return {name: cost(c, chip, rows, sample, blocks) for name, c in counted.items()}


def vendor_microseconds(rows: int, classes: int, dtype: str, chip: tables.Chip) -> dict[str, float]:
    """Memory time of the vendor's pair."""
    size = rows * classes * ELEMENT_BYTES[dtype]
    return {
        name: tables.launch_start(chip.cores)
        + memory_microseconds(chip, reads * size, writes * size)
        for name, (reads, writes) in VENDOR_PASSES.items()
    }


def times(rows: int, classes: int, dtype: str, chip: tables.Chip) -> dict[str, float]:
    result = {name: c.total() for name, c in costs(rows, classes, dtype, chip).items()}
    result |= vendor_microseconds(rows, classes, dtype, chip)
    return {name: round(value, 1) for name, value in result.items()}


def print_table(rows: int, classes: int, dtype: str, chip: tables.Chip, markdown: bool) -> None:
    title = f"{rows} × {classes} {dtype} on {chip.name}"
    print(f"\n**{title}**\n" if markdown else f"\n{title}, µs by model, not measured")
    size = rows * classes * ELEMENT_BYTES[dtype]
    lines = [
        ("operator", "reads", "writes", "memory", "repeats", "conflicts", "waits", "scalar", "time")
    ]
    for name, c in costs(rows, classes, dtype, chip).items():
        numbers = (c.memory, c.repeats, c.conflicts, c.waits, c.scalar)
        total = f"{c.total():.0f}"
        if name != "MsCeForward" and c.read < 1.5 * size:
            total += f" ({c.total(past_cache=True):.0f})"
        lines.append(
            (
                name,
                f"{c.read / size:.2f}",
                f"{c.written / size:.2f}",
                *(f"{n:.1f}" for n in numbers),
                total,
            )
        )
    for name, microseconds in vendor_microseconds(rows, classes, dtype, chip).items():
        reads, writes = VENDOR_PASSES[name]
        memory = microseconds - tables.launch_start(chip.cores)
        lines.append(
            (name, f"{reads}", f"{writes}", f"{memory:.1f}", *("",) * 4, f"{microseconds:.0f}")
        )
    for i, line in enumerate(lines):
        if markdown:
            print("| " + " | ".join(line) + " |" + ("\n|" + "---|" * len(line) if i == 0 else ""))
        else:
            print(f"{line[0]:16}" + "".join(f"{value:>11}" for value in line[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs=2, type=int, metavar=("ROWS", "CLASSES"))
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(ELEMENT_BYTES))
    parser.add_argument("--chip", choices=tables.CHIPS, help="default: 910B1, all with --json")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as docs/ascend.md shows it")
    form.add_argument(
        "--json", action="store_true", help="{chip: {shape and dtype: {operator: µs}}}"
    )
    arguments = parser.parse_args()
    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    if arguments.json:
        chips = [arguments.chip] if arguments.chip else tables.CHIPS
        found = {
            name: {
                f"{rows}x{classes} {arguments.dtype}": times(
                    rows, classes, arguments.dtype, tables.chip(name)
                )
                for rows, classes in shapes
            }
            for name in chips
        }
        print(json.dumps(found, indent=1))
        return
    for rows, classes in shapes:
        chip = tables.chip(arguments.chip or "910B1")
        print_table(rows, classes, arguments.dtype, chip, arguments.markdown)


if __name__ == "__main__":
    main()
