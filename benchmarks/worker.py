"""A library in a process of its own: reads one JSON command a line, writes one JSON answer a line.

Started by pool.py with the peer's settings as its argument. It needs numpy and the library alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from inputs import take_rows

SETTLED_WITHIN = 2.0  # seconds


def _memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _is_asleep() -> bool:
    """Whether no thread of this process runs but the one that asks."""
    states = [
        task.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        for task in Path("/proc/self/task").iterdir()
    ]
    return states.count("R") <= 1


def _settle() -> None:
    """Waits until threads are asleep that spin after what they did before: MindSpore's, after one of its own operators,
    take half a core from whatever is timed next."""
    end = time.monotonic() + SETTLED_WITHIN
    asleep = 0
    while asleep < 3 and time.monotonic() < end:
        asleep = asleep + 1 if _is_asleep() else 0
        time.sleep(0.002)


class Worker:
    def __init__(self, settings: dict[str, str]) -> None:
        self.losses = importlib.import_module(settings["adapter"]).Losses(settings)

    def versions(self) -> dict[str, Any]:
        return self.losses.versions()

    def load(self, folder: str, case: dict[str, Any], ignore_index: int) -> dict[str, Any]:
        logits, target = (np.load(Path(folder) / f"{name}.npy") for name in ("logits", "target"))
        self.losses.load(logits, target, case, ignore_index)
        return {}

    def answer(self, computation: str, folder: str) -> dict[str, Any]:
        """The loss, and the gradient's judged rows in a file beside the inputs."""
        loss, gradient = self.losses.answer(self.losses.run(computation))
        if gradient is not None:
            rows = np.load(Path(folder) / "rows.npy")
            np.save(Path(folder) / "gradient.npy", take_rows(gradient, rows))
        return {"loss": loss, "has_gradient": gradient is not None}

    def time(self, computation: str, warm_up: float, seconds: float) -> dict[str, Any]:
        """Calls for `warm_up` seconds that do not count, then calls for `seconds` that do."""
        _settle()
        return {
            "warm_up": self._calls(computation, warm_up, 20) if warm_up else [],
            "seconds": self._calls(computation, seconds, 300),
        }

    def _calls(self, computation: str, limit: float, most: int) -> list[float]:
        """What each call took: as many as fit, at least one."""
        seconds: list[float] = []
        while not seconds or (sum(seconds) < limit and len(seconds) < most):
            start = time.perf_counter()
            result = self.losses.run(computation)
            seconds.append(time.perf_counter() - start)
            del result  # else two gradients would be alive in the next call
        return seconds

    def peak_memory(self, computation: str) -> dict[str, Any]:
        """Growth of the resident memory over what was held once the inputs were loaded."""
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
        for _ in range(2):
            result = self.losses.run(computation)
            del result
        return {"bytes": _memory("VmHWM") - before}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    # Where a peer needs more memory than there is, it goes, and no other process of this machine.
    Path("/proc/self/oom_score_adj").write_text("900")
    worker = Worker(json.loads(sys.argv[1]))
    print(json.dumps(worker.versions()), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:  # any peer may refuse any case: the reason goes into the table
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
