"""macOS and Windows, for which MindSpore has wheels and this project no machine: ms_ce runs on composed there."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging import archives

PROGRAM = Path(__file__).with_name("other_system.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    copy = archives.copy_repository(tmp_path_factory.mktemp("sources"), links=False)
    return archives.build("wheel", copy, CXX="no-such-compiler")


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
@pytest.mark.parametrize("copied", [False, True], ids=["composed", "with a library"])
def test_composed_runs(system, copied, wheel, tmp_path):
    """Also with a library in its place: from a folder of another machine, say."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    if copied:
        (site / "ms_ce/ops/libms_ce.so").write_bytes(b"no library of this system")
    settings = {**archives.CLEAN, "PYTHONPATH": str(site), "GLOG_v": "3"}
    output = archives.run(sys.executable, PROGRAM, system, cwd=tmp_path, env=settings)
    assert "+composed" in output
    assert "kernel: none: MindSpore runs custom operators on Linux only" in output
