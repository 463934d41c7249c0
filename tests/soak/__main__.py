"""`python -m tests.soak --steps N [--only pynative-loss]`: training steps without end, in each mode.

Prints a line for each of CASES: its losses, and how much its process grew. Fails where a loss is not finite, losses
do not fall, or the process grows by more than GROWTH after the first tenth of the steps, in which each shape is met.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.soak import training

# Bytes. Allocators keep what they have taken, in parts of some MB; a leak of 200 bytes a step passes it in 100,000.
GROWTH = 16 << 20


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(case: str, steps: int) -> str:
    run, settled = training.Training(case), max(steps // 10, 2 * len(training.SHAPES))
    first = run.steps(settled)
    before = resident()
    last = run.steps(steps - settled)
    grown = resident() - before
    told = (
        f"{case}: {steps} steps, loss {first:.4f} over the first {settled} and {last:.4f} over the others, "
        f"{grown / 2**20:+.1f} MB"
    )
    assert last < first, f"{told}: the loss does not fall"
    assert grown <= GROWTH, f"{told}: more than {GROWTH >> 20} MB"
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--only", choices=training.CASES)
    given = parser.parse_args()
    if given.only is not None:
        print(soak(given.only, given.steps), flush=True)
        return 0
    # Each in a process of its own, whose memory is measured.
    command = [sys.executable, "-m", "tests.soak", "--steps", str(given.steps), "--only"]
    return max(subprocess.run([*command, case], check=False).returncode for case in training.CASES)


if __name__ == "__main__":
    sys.exit(main())
