"""The library of tests/faults/faults.cc, to be preloaded."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("faults.cc")


@functools.lru_cache(maxsize=1)
def library() -> Path:
    """faults.cc, compiled; once for each process that asks."""
    compiler = next(
        found
        for name in (os.environ.get("CXX", ""), "g++", "clang++")
        if (found := shutil.which(name))
    )
    made = Path(tempfile.mkdtemp(prefix="ms_ce_faults_")) / "libfaults.so"
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", "-o", made]
    subprocess.run([compiler, *options, SOURCE, "-ldl"], check=True)
    return made
