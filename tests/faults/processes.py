"""`python -m tests.faults.processes WHAT`: the kernel, through ctypes, while something happens to its process."""

from __future__ import annotations

import os
import signal
import sys
import threading

from tests.kernel.library import Library
from tests.kernel.operations import Loss
from tests.kernel.test_threads import everything, make


def forks() -> None:
    """Children of a process whose pool computes at that moment."""
    library = Library()
    assert library.set_threads(3) == 3
    loss, ended = Loss(library, *make(0)), threading.Event()
    expected = everything(loss)

    def compute() -> None:
        while not ended.is_set():
            everything(loss)

    busy = threading.Thread(target=compute)
    busy.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0 if everything(loss) == expected else 3)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"a child ended with {status}"
    ended.set()
    busy.join()
    assert everything(loss) == expected


def signals() -> None:
    """A timer interrupts callers and workers, where they compute and where they wait."""
    library = Library()
    library.set_threads(3)
    loss, came = Loss(library, *make(0)), []
    expected = everything(loss)
    signal.signal(signal.SIGALRM, lambda *_: came.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    while len(came) < 200:
        assert everything(loss) == expected
    signal.setitimer(signal.ITIMER_REAL, 0)


def ends() -> None:
    """The interpreter ends while callers and workers compute."""
    library = Library()
    library.set_threads(3)
    loss = Loss(library, *make(0))
    started = [threading.Event(), threading.Event()]

    def compute(event: threading.Event) -> None:
        while True:
            everything(loss)
            event.set()

    for event in started:
        threading.Thread(target=compute, args=(event,), daemon=True).start()
    for event in started:
        event.wait()


def one_core() -> None:
    """By affinity, whatever the machine has."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    library = Library()
    assert library.set_threads(0) == 1
    loss = Loss(library, *make(0))
    expected = everything(loss)
    assert library.set_threads(8) == 8
    assert everything(loss) == expected


def many_threads() -> None:
    library = Library()
    loss = Loss(library, *make(0))
    library.set_threads(1)
    expected = everything(loss)
    for asked in (256, 10**6, 2**31 - 1):
        assert library.set_threads(asked) == 256
        assert everything(loss) == expected


def no_threads() -> None:
    """The system starts two more, or none."""
    library = Library()
    loss = Loss(library, *make(0))
    library.set_threads(1)
    expected = everything(loss)
    library.set_threads(256)
    for most in ("0", "2"):
        os.environ["MS_CE_NO_THREADS"] = most
        assert everything(loss) == expected


def no_proc() -> None:
    """Where the number of threads that the process was started with is read."""
    assert not os.path.exists("/proc/self/environ") or not _opens("/proc/self/environ")
    library = Library()
    assert library.set_threads(0) == len(os.sched_getaffinity(0))
    loss = Loss(library, *make(0))
    expected = everything(loss)
    library.set_threads(1)
    assert everything(loss) == expected


def _opens(path: str) -> bool:
    try:
        open(path).close()
    except FileNotFoundError:
        return False
    return True


if __name__ == "__main__":
    globals()[sys.argv[1]]()
