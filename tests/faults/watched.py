"""Programs that must end: a standstill is a failure, time is none (tests/support/progress.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import NamedTuple

from tests.faults.preloaded import ROOT, library
from tests.support import progress


class Ended(NamedTuple):
    """How a program ended, and what it wrote."""

    status: int
    output: str


def python(*arguments: str, preload: bool = False, **environment: str) -> Ended:
    """Runs a Python in the repository; with `preload` under the faults that `environment` names."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3", **environment}
    if preload:
        settings["LD_PRELOAD"] = str(library())
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=settings, stdout=output, stderr=output
        )

        def ended(seconds: float) -> bool:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            return True

        try:
            moves = progress.wait(ended, progress.Watch(lambda: [process.pid]))
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        text = output.read()
    assert moves, f"{arguments} stands still: {text[-2000:]}"
    return Ended(process.returncode, text)
