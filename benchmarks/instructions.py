"""Instructions per element of logits that a row of the CPU kernel takes, counted under QEMU.

    python benchmarks/instructions.py                            x86-64-v3 of ops/libms_ce.so
    python benchmarks/instructions.py --isa neon --library build/aarch64-wheel/ms_ce/ops/libms_ce.so

A count, no time: the same on every machine, loaded or not, and for processors that are not at hand. It needs QEMU's
user mode, a C compiler, and for aarch64 the cross compiler of `make test-aarch64`. QEMU does not run AVX-512.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import ROOT

sys.path.insert(0, str(ROOT))

from tests.kernel.library import options

HERE = Path(__file__).resolve().parent
DTYPES = ("float32", "bfloat16", "float16")
OPERATIONS = {
    "forward": "CrossEntropyForward",
    "backward": "CrossEntropyBackward",
    "value and grad": "CrossEntropyValueAndGrad",
}
ROWS, CLASSES, CALLS = 4, 32000, 3
AARCH64 = ("neon", "sve")


def tensor(dtype: str, shape: tuple[int, ...], *values: object) -> str:
    """As kernel_calls.cc reads it."""
    return f"{dtype}:{','.join(map(str, shape))}:{','.join(map(str, values))}"


def tensors(operation: str, dtype: str) -> list[str]:
    """Arguments, then results."""
    rows = (ROWS,)
    by_name = {
        "logits": tensor(dtype, (ROWS, CLASSES), "random"),
        "target": tensor("int64", rows, 5),
        "absent": tensor(dtype, (1,), 1),
        "row_weight": tensor("float64", (), 1),
        "options": tensor("int64", (len(options()),), *options()),
        "scalar": tensor(dtype, (), 1),
        "total_weight": tensor("float64", (), ROWS),
        "lse": tensor("float64", rows, 14),
    }
    forward = "logits target absent row_weight options scalar total_weight lse"
    names = {
        "forward": forward,
        "backward": "scalar absent logits target absent row_weight lse total_weight options logits",
        "value and grad": forward + " logits",
    }
    return [by_name[name] for name in names[operation].split()]


class Counter:
    """A library under QEMU, one instruction set of it."""

    def __init__(self, library: Path, isa: str, folder: Path) -> None:
        cross = isa in AARCH64
        self.library, self.isa = library, isa
        self.program, self.plugin = folder / "kernel_calls", folder / "count_instructions.so"
        compiler = "aarch64-linux-gnu-g++" if cross else "g++"
        source = str(HERE / "kernel_calls.cc")
        self._run(compiler, "-O2", "-std=c++17", "-o", str(self.program), source, "-ldl")
        source = str(HERE / "count_instructions.c")
        self._run("gcc", "-O2", "-shared", "-fPIC", "-o", str(self.plugin), source)
        self.qemu = ["qemu-x86_64", "-cpu", "max"]
        if cross:
            self.qemu = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]

    @staticmethod
    def _run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        return done.stderr

    def instructions(self, operation: str, dtype: str) -> float:
        """Of a call per element: what the later calls of a run take."""
        counts = []
        for calls in (1, CALLS):
            program = [str(self.program), str(self.library), self.isa, str(calls)]
            call = [OPERATIONS[operation], *tensors(operation, dtype)]
            output = self._run(*self.qemu, "-plugin", str(self.plugin), *program, *call)
            counts.append(int(output.split("instructions ")[1]))
        return (counts[1] - counts[0]) / ((CALLS - 1) * ROWS * CLASSES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", type=Path, default=ROOT / "ops" / "libms_ce.so")
    parser.add_argument("--isa", default="x86-64-v3", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(given.library.resolve(), given.isa, Path(folder))
        counts = {
            operation: {dtype: counter.instructions(operation, dtype) for dtype in DTYPES}
            for operation in OPERATIONS
        }
    if given.json:
        print(json.dumps(counts, indent=1))
        return
    print(f"{given.isa:16}" + "".join(f"{dtype:>10}" for dtype in DTYPES))
    for operation, by_dtype in counts.items():
        print(f"{operation:16}" + "".join(f"{by_dtype[dtype]:10.2f}" for dtype in DTYPES))


if __name__ == "__main__":
    main()
