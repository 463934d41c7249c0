"""Read and copy bandwidth of two threads, measured by bandwidth.cc between the peers' rounds."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path

import environment

SOURCE = Path(__file__).resolve().with_name("bandwidth.cc")


class Bandwidth:
    """Samples of one case: a buffer as large as its logits, read and copied."""

    def __init__(self, folder: str) -> None:
        program = environment.compiled(SOURCE, folder)
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
