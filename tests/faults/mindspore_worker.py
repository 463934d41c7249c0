"""`python -m tests.faults.mindspore_worker WHAT`: losses while MindSpore's process is interrupted or ends."""

from __future__ import annotations

import signal
import sys

import mindspore as ms
import numpy as np

import ms_ce
from ms_ce import reference

_random = np.random.default_rng(0)
LOGITS, TARGET = _random.normal(size=(64, 20000)).astype(np.float32), _random.integers(0, 20000, 64)
EXPECTED = reference.cross_entropy(LOGITS, TARGET).loss


def right() -> bool:
    loss = ms_ce.cross_entropy(ms.Tensor(LOGITS), ms.Tensor(TARGET))
    return abs(float(loss) - EXPECTED) < 2e-6 * abs(EXPECTED)


def interrupted() -> None:
    """Ctrl-C while losses are called, fifty times."""
    assert right()
    logits, target, caught = ms.Tensor(LOGITS), ms.Tensor(TARGET), 0
    while caught < 50:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0003 * caught)
            while True:
                ms_ce.cross_entropy(logits, target).asnumpy()
        except KeyboardInterrupt:
            caught += 1
        assert right()


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def ends() -> None:
    """With operations that nobody has waited for, of PyNative and of a graph."""
    logits, target = ms.Tensor(LOGITS), ms.Tensor(TARGET)
    compiled = ms.jit(ms_ce.cross_entropy)
    assert right()
    compiled(logits, target)
    for _ in range(20):
        ms_ce.cross_entropy_value_and_grad(logits, target)
        compiled(logits, target)


def computes() -> None:
    """In both modes; where the system hides or forbids something."""
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        assert right()


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, interrupt)
    globals()[sys.argv[1]]()
