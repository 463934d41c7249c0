"""Waiting for other processes and threads without a clock: what works or writes may take as long as it likes.

Only a standstill ends it: no output and next to no processor time in QUIET_SECONDS. On a busy machine everything is
slow, and yet a process that has work gets far more than that.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

QUIET_SECONDS = 600.0
QUIET_SHARE = 0.002  # of one processor: what heartbeats and waiting loops take
_TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(processes: Iterable[int]) -> float:
    """The time that processes and their ended children have used."""
    ticks = 0
    for process in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / _TICKS


class Watch:
    """Says when what it watches has come to a standstill."""

    def __init__(
        self,
        processes: Callable[[], Iterable[int]],
        written: Callable[[], int] = lambda: 0,
        quiet_seconds: float = QUIET_SECONDS,
    ):
        self._state = lambda: (processor_seconds(processes()), written())
        self.quiet_seconds = quiet_seconds
        self._begin()

    def _begin(self) -> None:
        self._since, (self._used, self._written) = time.monotonic(), self._state()

    def stands_still(self) -> bool:
        seconds = time.monotonic() - self._since
        if seconds < self.quiet_seconds:
            return False
        used, written = self._state()
        if written == self._written and abs(used - self._used) <= QUIET_SHARE * seconds:
            return True
        self._begin()
        return False


def wait(ended: Callable[[float], bool], watch: Watch) -> bool:
    """Calls ended(seconds), which waits that long at most, until it is true; False after a standstill."""
    while not ended(1.0):
        if watch.stands_still():
            return False
    return True
