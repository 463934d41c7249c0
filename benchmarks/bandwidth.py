"""Read and copy bandwidth of two threads, measured by bandwidth.cc between the peers' rounds."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().with_name("bandwidth.cc")


class Bandwidth:
    """Samples of one case: a buffer as large as its logits, read and copied."""

    def __init__(self, folder: str) -> None:
        program = Path(folder) / "bandwidth"
        names = (os.environ.get("CXX", ""), "g++", "clang++")
        compiler = next((found for name in names if name and (found := shutil.which(name))), None)
        if compiler is None:
            raise SystemExit("benchmarks/run.py: needs g++ or clang++ to measure the bandwidth")
        options = ["-O3", "-march=native", "-pthread", "-std=c++17", "-o", str(program)]
        subprocess.run([compiler, *options, str(SOURCE)], check=True)
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds: dict[str, list[float]] = {"read": [], "copy": []}

    def start_case(self) -> None:
        self.seconds = {"read": [], "copy": []}

    def sample(self, size: int, calls: int) -> None:
        for what, seconds in self.seconds.items():
            print(what, size, calls, file=self.process.stdin, flush=True)
            seconds += map(float, self.process.stdout.readline().split())

    def result(self, size: int) -> dict[str, float]:
        """GB/s of the median call. A copy of n bytes moves 2n."""
        return {
            what: passes * size / statistics.median(self.seconds[what]) / 1e9
            for what, passes in (("read", 1), ("copy", 2))
        }

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
