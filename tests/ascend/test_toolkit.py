"""With a CANN toolkit the operators must build; without one there is nothing that this file could show."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.ascend.host_model import PROJECT


@pytest.mark.skipif(
    "ASCEND_HOME_PATH" not in os.environ, reason="needs a CANN toolkit: ASCEND_HOME_PATH is not set"
)
def test_operators_build(tmp_path):
    done = subprocess.run(
        ["bash", str(PROJECT / "build.sh"), str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert (tmp_path / "vendors" / "ms_ce" / "op_api" / "lib" / "libcust_opapi.so").exists()
