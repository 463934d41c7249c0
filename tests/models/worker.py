"""Training steps of one library's network in one form; runs in the library's environment.

python worker.py LIBRARY FORM STEPS VOCABULARY SEQUENCES LENGTH
"""

from __future__ import annotations

import gc
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import mindspore as ms
import numpy as np

import ms_ce
from tests.models import networks
from tests.models.libraries import LIBRARIES
from tests.support import docstrings


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def main(name: str, form: str, steps: int, *size: int) -> None:
    """Writes results.json and the gradients of the first step."""
    ms.set_device("CPU")
    results: dict = {"mindspore": ms.__version__, "version": metadata.version(name)}
    step = getattr(networks, name)(size)
    options = LIBRARIES[name].forms[form]
    if options is not None:
        patched = getattr(ms_ce.patch, name)(**options)
        results["replaced"] = patched.replaced
        if name in docstrings.NEED_LIBRARIES:
            docstrings.check(docstrings.NEED_LIBRARIES[name])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    before = memory("VmRSS")
    losses, seconds = [], []
    for number in range(steps):
        start = time.perf_counter()
        loss, gradients = step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss)
        if number == 0:
            np.savez("gradients.npz", *gradients)
        del gradients
    results |= {"losses": losses, "seconds": seconds, "bytes": memory("VmHWM") - before}
    if options is not None:
        patched.undo()
    Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
