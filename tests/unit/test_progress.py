"""A wait ends with what it waits for, or with a standstill; never because time has passed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import progress

BUSY = "while True: pass"
IDLE = "import signal; signal.pause()"


@pytest.fixture
def start():
    started = []

    def popen(code: str) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.wait()


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def used(monkeypatch) -> dict[int, float]:
    """Processor seconds of pretended processes."""
    seconds = {1: 0.0, 2: 0.0}
    monkeypatch.setattr(progress, "processor_seconds", lambda some: sum(seconds[i] for i in some))
    return seconds


def test_what_works_never_stands_still(clock, used):
    watch = progress.Watch(lambda: [1, 2])
    for _ in range(5):
        clock.now += progress.QUIET_SECONDS
        used[2] += 2 * progress.QUIET_SHARE * progress.QUIET_SECONDS
        assert not watch.stands_still()


def test_what_writes_never_stands_still(clock, used):
    written = [0]
    watch = progress.Watch(lambda: [1, 2], lambda: written[0])
    for _ in range(5):
        clock.now += progress.QUIET_SECONDS
        written[0] += 1
        assert not watch.stands_still()


def test_heartbeats_are_no_work(clock, used):
    watch = progress.Watch(lambda: [1, 2], lambda: 7)
    clock.now += 0.99 * progress.QUIET_SECONDS
    assert not watch.stands_still()
    clock.now += 0.01 * progress.QUIET_SECONDS
    used[1] += 0.5 * progress.QUIET_SHARE * progress.QUIET_SECONDS
    assert watch.stands_still()


def test_work_is_read_from_the_system(start):
    process = start(BUSY)

    def has_worked(seconds: float) -> bool:
        return progress.processor_seconds([process.pid]) > 0.1

    assert progress.wait(has_worked, progress.Watch(lambda: [process.pid]))
    assert progress.processor_seconds([]) == 0
    process.kill()
    process.wait()
    assert progress.processor_seconds([process.pid]) == 0  # gone, and no error


def test_a_wait_ends_at_a_standstill(start):
    """With any patience: a process that waits for a signal has none to lose."""
    process = start(IDLE)

    def ended(seconds: float) -> bool:
        return process.poll() is not None

    assert not progress.wait(ended, progress.Watch(lambda: [process.pid], quiet_seconds=0.0))
    process.kill()
    process.wait()
    assert progress.wait(ended, progress.Watch(lambda: [process.pid]))
