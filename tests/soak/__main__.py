"""`python -m tests.soak --steps N [--only pynative-loss]`: training steps without end, in each mode.

Prints for each of CASES, every minute and at its end, losses and how much its process grew. Fails where a loss is not
finite, losses do not fall, or the process grows by more than GROWTH after the first steps, in which each shape is met:
a tenth of all, and 2,000 at most.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.soak import training

# Bytes. Allocators keep what they have taken, in parts of some MB; a leak of 200 bytes a step passes it in 100,000.
GROWTH = 16 << 20
# The first steps: as many of a long run, and at least so many.
_SETTLED, _FEWEST = 2000, 2 * len(training.SHAPES)
# Steps after which the growth is looked at, seconds after which it is told.
_PART, _TELL_EVERY = 500, 60.0


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(case: str, steps: int) -> None:
    run, settled = training.Training(case), min(max(steps // 10, _FEWEST), _SETTLED)
    first, before = run.steps(settled), resident()
    done, total, told = settled, 0.0, time.monotonic()
    while done < steps:
        part = min(_PART, steps - done)
        total, done = total + part * run.steps(part), done + part
        last, grown = total / (done - settled), resident() - before
        line = (
            f"{case}: {done} steps, loss {first:.4f} over the first {settled} and {last:.4f} over the others, "
            f"{grown / 2**20:+.1f} MB"
        )
        assert grown <= GROWTH, f"{line}: more than {GROWTH >> 20} MB"
        if done == steps or time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            print(line, flush=True)
    assert last < first, f"{line}: the loss does not fall"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--only", choices=training.CASES)
    given = parser.parse_args()
    if given.only is not None:
        soak(given.only, given.steps)
        return 0
    # Each in a process of its own, whose memory is measured.
    command = [sys.executable, "-m", "tests.soak", "--steps", str(given.steps), "--only"]
    return max(subprocess.run([*command, case], check=False).returncode for case in training.CASES)


if __name__ == "__main__":
    sys.exit(main())
