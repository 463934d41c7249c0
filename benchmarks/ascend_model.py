"""A lower bound for the Ascend operators' time, from what the host model counts. A model, not a measurement.

    python benchmarks/ascend_model.py [--shape ROWS CLASSES] [--dtype bfloat16] [--markdown]

The bytes that cross global memory and the vector repeats of the real kernels are counted by running them on
the host model
(custom_aicore/host_model). Two bounds follow for a 910B1 chip:

    memory bound = bytes / 1.6 TB/s            reads and writes share the bandwidth
    vector bound = repeats / (48 cores · 1.8 GHz)   a repeat takes at least one cycle

and the larger of the two is the bound. Nothing is counted for instruction issue, synchronisation, launch or the last
reduction, so real times are longer. Beside it stands the same bound for the passes that CANN's own pair of
operators makes:
forward 3 reads and 1 write of N·C elements, backward 1 read and 1 write, with 9.3 repeats per 64 elements forward. Time
that is spent on neither is unknown for both.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.ascend.host_model import CORES, ELEMENT_BYTES
from tests.ascend.operators import Run, backward, encode, forward, forward_grad

BYTES_PER_SECOND = 1.6e12  # HBM of 910B
CYCLES_PER_SECOND = 1.8e9  # of a vector core
VENDOR_FORWARD_PASSES, VENDOR_BACKWARD_PASSES = 4, 2  # of N·C elements over global memory
VENDOR_FORWARD_REPEATS = 9.3  # per 64 elements
# The shapes of docs/ascend.md: a language model's micro-batch, a large vocabulary, a classifier, a wide batch
# of few classes.
SHAPES = ((2048, 32000), (512, 128256), (4096, 1000), (65536, 64))


@dataclass(frozen=True)
class Bound:
    """A lower bound in µs and what sets it."""

    name: str
    read: float  # passes over the logits
    written: float
    repeats: float  # per 64 logits
    memory: float
    vector: float

    @property
    def microseconds(self) -> float:
        return max(self.memory, self.vector)


def bound(
    name: str, logits_bytes: float, elements: float, read: float, written: float, repeats: float
) -> Bound:
    """From bytes read and written and vector repeats, all of the whole chip."""
    return Bound(
        name,
        read / logits_bytes,
        written / logits_bytes,
        repeats / (elements / 64),
        (read + written) / BYTES_PER_SECOND * 1e6,
        repeats / (CORES * CYCLES_PER_SECOND) * 1e6,
    )


def counted(name: str, counters, logits_bytes: float, elements: float, scale: float) -> Bound:
    read, written = sum(counters.read.values()), sum(counters.written.values())
    return bound(
        name, logits_bytes, elements, read * scale, written * scale, counters.vector_repeats * scale
    )


def bounds(rows: int, classes: int, dtype: str) -> list[Bound]:
    """Bounds of ms_ce's operators and of the vendor's passes. More than 384 rows of a long vocabulary are
    counted on 384
    rows and scaled: every core then has eight whole rows, and the counts are proportional."""
    sample = min(rows, 384) if classes > 2048 else rows
    scale = rows / sample
    logits = encode(np.zeros((sample, classes), np.float32), dtype)
    target = np.zeros(sample, np.int32)
    elements, logits_bytes = rows * classes, rows * classes * ELEMENT_BYTES[dtype]
    lse = np.full(sample, np.log(classes), np.float32)
    run = Run(cores=CORES)
    calls = {
        "MsCeForward": forward(logits, target, None, dtype, run=run)[1],
        "MsCeBackward": backward(np.ones(1), logits, target, None, lse, np.ones(1), dtype, run=run)[
            1
        ],
        "MsCeForwardGrad": forward_grad(logits, target, None, dtype, run=run)[1],
    }
    rows_of_table = [counted(name, c, logits_bytes, elements, scale) for name, c in calls.items()]
    vendor = (
        ("vendor forward", VENDOR_FORWARD_PASSES - 1, VENDOR_FORWARD_REPEATS),
        ("vendor backward", VENDOR_BACKWARD_PASSES - 1, 0.0),
    )
    for name, reads, repeats in vendor:
        total = repeats * elements / 64
        rows_of_table.append(
            bound(name, logits_bytes, elements, reads * logits_bytes, logits_bytes, total)
        )
    return rows_of_table


def print_table(rows: int, classes: int, dtype: str, markdown: bool) -> None:
    print(f"\n{rows} × {classes} {dtype}: lower bound by model, not measured")
    titles = ("operator", "reads", "writes", "repeats/64", "memory µs", "vector µs", "bound µs")
    lines = [
        (
            b.name,
            f"{b.read:.3f}",
            f"{b.written:.3f}",
            f"{b.repeats:.1f}" if b.repeats else "not known",
            f"{b.memory:.1f}",
            f"{b.vector:.1f}" if b.vector else "not known",
            f"{b.microseconds:.1f}",
        )
        for b in bounds(rows, classes, dtype)
    ]
    if markdown:
        print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
        for line in lines:
            print("| " + " | ".join(line) + " |")
        return
    for line in [titles, *lines]:
        print(f"{line[0]:16}" + "".join(f"{value:>12}" for value in line[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs=2, type=int, metavar=("ROWS", "CLASSES"))
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(ELEMENT_BYTES))
    parser.add_argument("--markdown", action="store_true", help="as docs/ascend.md shows it")
    arguments = parser.parse_args()
    for rows, classes in [tuple(arguments.shape)] if arguments.shape else SHAPES:
        print_table(rows, classes, arguments.dtype, arguments.markdown)


if __name__ == "__main__":
    main()
