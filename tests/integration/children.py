"""Programs that need a process of their own, run to their end: however busy the machine is, none is cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def package_parent() -> Path:
    """Where the tests found ms_ce: the repository, or the environment where it is installed."""
    origin = find_spec("ms_ce").origin
    assert origin is not None
    return Path(origin).parents[1]


def run(
    module: str, arguments: Sequence[str], directory: Path, search_path: Sequence[Path] = ()
) -> Any:
    """What the program `module` printed last, as JSON; it finds ms_ce on `search_path` first.

    Run as a file: MindSpore's trace reads the source of every caller, and `python -m` has some without one.
    """
    program = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    folders = [*search_path, package_parent(), ROOT]
    finished = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, f"{module} {arguments}: {finished.stdout}{finished.stderr}"
    return json.loads(finished.stdout.strip().splitlines()[-1])
