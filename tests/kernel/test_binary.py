"""Builds the stand-alone kernel test and runs it: exp, log and tanh over the floats, shapes, the floating-point
environment, and every operation against ms_ce/reference.py. The same binary serves sanitizers, valgrind and aarch64
under qemu (docs/kernel.md)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.library import ROOT
from tests.kernel.replay import write


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "calls"
    write(path)
    return path


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ready = os.environ.get("MS_CE_KERNEL_TEST")
    if ready:
        return Path(ready)
    build = tmp_path_factory.mktemp("build")
    subprocess.run(
        [
            "cmake",
            "-S",
            ROOT / "ops" / "csrc",
            "-B",
            build,
            "-DMS_CE_TEST_BINARY=ON",
            "-DMS_CE_WERROR=ON",
            f"-DMS_CE_OUTPUT_DIR={build}",
        ],
        check=True,
    )
    subprocess.run(["cmake", "--build", build, "--target", "ms_ce_kernel_test", "-j2"], check=True)
    return build / "ms_ce_kernel_test"


def test_kernels_without_python(binary: Path) -> None:
    run = subprocess.run([binary], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "0 failures" in run.stdout


def test_every_operation_is_replayed(binary: Path, calls: Path) -> None:
    run = subprocess.run([binary, "--replay", calls], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "0 failures" in run.stdout


def test_a_replay_notices_the_end(binary: Path, calls: Path, tmp_path: Path) -> None:
    """A file that ends early, and so lacks operations, is not taken for one that passed."""
    cut = tmp_path / "calls"
    with calls.open("rb") as whole:
        cut.write_bytes(whole.read(5000))
    run = subprocess.run([binary, "--replay", cut], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "the file ends within a call" in run.stdout
