"""What ms_ce's Ascend kernels leave to others, by arithmetic: options around a kernel, products of the linear loss.

    python benchmarks/ascend_outside.py [--markdown]

Bytes by the bandwidths of ascend_tables.py, products by the cubes' rate, our kernels by ascend_model.py. No figure is
measured, and a real product reaches less than the cubes' rate. It runs where ascend_model.py runs.
"""

from __future__ import annotations

import argparse
import math

import ascend_tables as tables
from ascend_cost import memory_microseconds
from ascend_model import costs

CHIP, DTYPE, ELEMENT = "910B1", "bfloat16", 2
ROWS, CLASSES = 2048, 32000  # of what stays around a kernel
# Passes over N·C elements: bytes read and written of one element.
CAST, PRODUCT, TRANSPOSE = (2, 4), (4, 4), (2, 2)
AROUND = {
    "logit_scale: a cast and a product in float32": (CAST, PRODUCT),
    "softcap: a cast, a quotient, tanh and a product": (CAST, PRODUCT, PRODUCT, PRODUCT),
    "(N, C, d…): a transposed copy, each way": (TRANSPOSE,),
}
VECTOR_OPERATORS = "row_weight, token log-probabilities: N values, each operator"
TOKENS, FEATURES, VOCABULARY = 8192, 4096, 128256  # of the linear loss
DEFAULT_CHUNK_BYTES = 128 << 20  # ms_ce's largest default, of float32


def around() -> dict[str, float]:
    """µs beside a kernel on ROWS × CLASSES."""
    chip = tables.chip(CHIP)
    found = {}
    for what, passes in AROUND.items():
        bytes_ = [(ROWS * CLASSES * read, ROWS * CLASSES * written) for read, written in passes]
        found[what] = sum(
            tables.launch_start(chip.cores) + memory_microseconds(chip, *b) for b in bytes_
        )
    found[VECTOR_OPERATORS] = tables.launch_all(chip.cores)
    return found


def product_milliseconds(rows: int) -> tuple[float, float]:
    """Of a chunk's three products (logits, gradient of the hidden states, gradient of the table): by the cubes, and by
    memory: the table is read twice, its gradient, float32, is read and written."""
    chip = tables.chip(CHIP)
    cubes = 3 * 2 * rows * FEATURES * VOCABULARY / tables.cube_rate(CHIP)
    table = FEATURES * VOCABULARY
    twice = memory_microseconds(chip, 2 * table * ELEMENT, 0)
    return cubes / 1e3, (twice + memory_microseconds(chip, 4 * table, 4 * table)) / 1e3


def kernel_milliseconds(rows: int, from_cache: bool) -> float:
    """Of MsCeForward and MsCeBackward on a chunk's logits."""
    chip = tables.chip(CHIP)
    counted = costs(rows, VOCABULARY, DTYPE, chip)
    total = 0.0
    for name in ("MsCeForward", "MsCeBackward"):
        c = counted[name]
        cached = c.read / tables.cache_read(CHIP) + c.written / tables.cache_write(CHIP)
        memory = cached if from_cache else c.memory
        total += max(c.launch + c.vector, c.launch_start + memory)
    return total / 1e3


def chunks() -> tuple[int, ...]:
    """Rows of a chunk: what the default chunk_bytes holds, evenly spread; as many as bfloat16 logits in the L2; all."""
    default = math.ceil(TOKENS / (DEFAULT_CHUNK_BYTES // (4 * VOCABULARY)))
    cached = int(tables.cache_bytes(CHIP)) // (ELEMENT * VOCABULARY)
    return math.ceil(TOKENS / default), cached, TOKENS


def linear() -> list[tuple[int, float, float, float, float, float]]:
    """Rows of a chunk and what its logits take in MB; ms of a step: the products by cubes and by memory, whichever is
    slower, and our kernels."""
    found = []
    for rows in chunks():
        times = math.ceil(TOKENS / rows)
        megabytes = rows * VOCABULARY * ELEMENT / 1e6
        cubes, memory = (ms * times for ms in product_milliseconds(rows))
        cubes *= TOKENS / (rows * times)
        kernels = times * kernel_milliseconds(rows, megabytes * 1e6 <= tables.cache_bytes(CHIP))
        found.append((rows, megabytes, cubes, memory, max(cubes, memory), kernels))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="as docs/ascend.md shows it")
    markdown = parser.parse_args().markdown
    tables_ = [
        [(f"around a kernel, {ROWS} × {CLASSES} {DTYPE}", "µs")]
        + [(what, f"{microseconds:.0f}") for what, microseconds in around().items()],
        [("rows of a chunk", "MB", "cubes", "memory", "products", "our kernels", "step")]
        + [
            (f"{rows}", f"{size:.0f}", *(f"{ms:.1f}" for ms in (*times, times[2] + times[3])))
            for rows, size, *times in linear()
        ],
    ]
    for table in tables_:
        for i, line in enumerate(table):
            if markdown:
                rule = "\n|" + "---|" * len(line) if i == 0 else ""
                print("| " + " | ".join(line) + " |" + rule)
            else:
                print(f"{line[0]:60}" + "".join(f"{value:>13}" for value in line[1:]))
        print()


if __name__ == "__main__":
    main()
