"""`python -m tests.soak --steps N [--only pynative-loss]`: training steps without end, in each mode.

Prints for each of CASES, every minute and at its end, losses and how much memory its process has taken and not given
back. Fails where a loss is not finite, losses do not fall, or that is more than GROWTH after the first steps, in which
each shape is met: a tenth of all, and 2,000 at most. Memory is what the allocator counts as in use: the resident memory
also holds what is free between, which grows for a while where one thread frees what another has allocated.

In PyNative MindSpore's own operators give back less than they take, at each step. There steps without the loss, one for
every five, are taken in turn with those that have it, and what as many would keep is subtracted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import subprocess
import sys
import time

from tests.soak import training

# Bytes: a leak of 200 bytes a step passes it in 100,000.
GROWTH = 16 << 20
# The first steps: as many of a long run, and at least so many.
_SETTLED, _FEWEST = 2000, 2 * len(training.SHAPES)
# Steps after which the memory is looked at, seconds after which it is told.
_PART, _TELL_EVERY = 500, 60.0
# Of so many steps with the loss one is taken without it.
_BARE = 5


class _AllocatorCounts(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _AllocatorCounts


def in_use() -> int:
    """Bytes that this process has allocated and not freed."""
    gc.collect()
    counts = _mallinfo2()
    return counts.uordblks + counts.hblkhd


class Steps:
    """Steps of one kind, and the bytes that they have kept."""

    def __init__(self, case: str, bare: bool):
        self.run, self.kept = training.Training(case, bare), 0

    def some(self, count: int) -> float:
        before = in_use()
        loss = self.run.steps(count)
        self.kept += in_use() - before
        return loss


def soak(case: str, steps: int) -> None:
    run = Steps(case, bare=False)
    others = [Steps(case, bare=True)] if case.startswith("pynative") else []
    settled = min(max(steps // 10, _FEWEST), _SETTLED)
    first = run.some(settled)
    for other in others:
        other.some(settled)
    for each in (run, *others):
        each.kept = 0
    done, total, told = settled, 0.0, time.monotonic()
    while done < steps:
        part = min(_PART, steps - done)
        total, done = total + part * run.some(part), done + part
        for other in others:
            other.some(part // _BARE)
        last, without = total / (done - settled), _BARE * sum(other.kept for other in others)
        line = (
            f"{case}: {done} steps, loss {first:.4f} over the first {settled} and {last:.4f} over the others, "
            f"{run.kept / 2**20:+.1f} MB"
        )
        if others:
            line += f", {without / 2**20:+.1f} MB of as many steps without the loss"
        assert run.kept - without <= GROWTH, f"{line}: more than {GROWTH >> 20} MB of the loss"
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
