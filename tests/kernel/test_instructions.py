"""The calls whose instructions benchmarks/instructions.py counts are calls that the library takes."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.kernel.library import PATH, ROOT, Library

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("instructions")


def test_counted_calls(instructions: ModuleType, tmp_path: Path) -> None:
    program = tmp_path / "kernel_calls"
    source = str(BENCHMARKS / "kernel_calls.cc")
    subprocess.run(["g++", "-std=c++17", "-o", program, source, "-ldl"], check=True)
    isa = Library().isas()[-1]
    for operation, name in instructions.OPERATIONS.items():
        for dtype in instructions.DTYPES:
            call = [name, *instructions.tensors(operation, dtype)]
            done = subprocess.run([program, PATH, isa, "1", *call], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
