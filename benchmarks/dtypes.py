"""Time of the CPU kernel's rows in each dtype, beside float32: processor time of one thread, in turn, the least of all.

    python benchmarks/dtypes.py                       x86-64-v3 and what else this processor runs
    python benchmarks/dtypes.py --isa x86-64-v3 --shape 256,32000 --beside <another libms_ce.so>

Least times of a thread are what a loaded machine changes least; memory that two threads wait for is not in them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import thread_time

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.kernel.library import NO_ROW_WEIGHT, Library, cast, empty, options  # noqa: E402

DTYPES = ("float32", "bfloat16", "float16")
ROUNDS = 15


def in_pages(shape: tuple[int, int], dtype: str) -> np.ndarray:
    """As MindSpore's memory lies: rows at the beginning of a page."""
    size = shape[0] * shape[1]
    room = empty((size + 4096,), dtype)
    first = -room.ctypes.data % 4096 // room.itemsize
    return room[first : first + size].reshape(shape)


def calls(rows: int, classes: int, dtype: str) -> dict[str, tuple[str, list, list]]:
    """What is timed: an operation with its inputs and outputs."""
    random = np.random.default_rng(0)
    logits, gradient = in_pages((rows, classes), dtype), in_pages((rows, classes), dtype)
    logits[...] = cast(2 * random.standard_normal((rows, classes), np.float32), dtype)
    target = random.integers(0, classes, rows)
    absent = cast(np.zeros(1), dtype)
    given = [target, absent, NO_ROW_WEIGHT, options()]
    one, loss = cast(np.ones(1), dtype).reshape(()), empty((1,), dtype).reshape(())
    total, lse = np.zeros(()), np.zeros(rows)
    made = [loss, total, lse]
    backward = [one, absent, logits, *given[:3], lse, total, given[3]]
    return {
        "forward": ("CrossEntropyForward", [logits, *given], made),
        "backward": ("CrossEntropyBackward", backward, [gradient]),
        "value and grad": ("CrossEntropyValueAndGrad", [logits, *given], [*made, gradient]),
    }


def least_seconds(
    libraries: list[Library], shape: tuple[int, int]
) -> dict[tuple[str, str, int], float]:
    """By operation, dtype and library."""
    least: dict[tuple[str, str, int], float] = {}
    by_dtype = {dtype: calls(*shape, dtype) for dtype in DTYPES}
    for _ in range(ROUNDS):
        for dtype, of_dtype in by_dtype.items():
            for name, call in of_dtype.items():
                for place, library in enumerate(libraries):
                    start = thread_time()
                    library.call(*call)
                    seconds = thread_time() - start
                    key = name, dtype, place
                    least[key] = min(seconds, least.get(key, seconds))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", action="append", metavar="NAME")
    parser.add_argument("--shape", default="256,32000", metavar="ROWS,CLASSES")
    parser.add_argument("--beside", type=Path, action="append", default=[], metavar="LIBRARY")
    given = parser.parse_args()
    shape = tuple(int(size) for size in given.shape.split(","))
    paths = [ROOT / "ops" / "libms_ce.so", *given.beside]
    libraries = [Library(path) for path in paths]
    for isa in given.isa or libraries[0].isas():
        for library in libraries:
            library.set_isa(isa)
            library.set_threads(1)
        least = least_seconds(libraries, shape)
        for place, path in enumerate(paths):
            print(f"\n{isa}, {shape[0]} x {shape[1]}, {path}")
            for name in ("forward", "backward", "value and grad"):
                cells = [f"{least[name, dtype, place] * 1e3:7.2f} ms" for dtype in DTYPES]
                ratios = [least[name, d, place] / least[name, DTYPES[0], place] for d in DTYPES]
                row = zip(DTYPES, cells, ratios, strict=True)
                print(f"{name:16}" + "".join(f"{d:>10} {c} {r:5.2f} x" for d, c, r in row))


if __name__ == "__main__":
    main()
