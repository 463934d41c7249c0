"""A test that changes what other tests see is told, and the others do not see it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os
import mindspore as ms
import pytest
from mindspore._c_expression import amp
from tests.conftest import nothing_leaks

CHANGES = {
    "context mode": lambda: ms.set_context(mode=ms.GRAPH_MODE),
    "context jit_syntax_level": lambda: ms.set_context(jit_syntax_level=ms.STRICT),
    "context pynative_synchronize": lambda: ms.set_context(pynative_synchronize=True),
    "context mixed precision": lambda: amp.push_amp_strategy(amp.AmpLevel.AmpO2, ms.float16, [], []),
    "parallel parallel_mode": lambda: ms.set_auto_parallel_context(parallel_mode="data_parallel"),
    "environment MS_CE_ADDED": lambda: os.environ.update(MS_CE_ADDED="1"),
    "environment HOME": lambda: os.environ.pop("HOME"),
}

@pytest.mark.parametrize("fails", (False, True))
@pytest.mark.parametrize("name", CHANGES)
def test_leaks(name, fails):
    CHANGES[name]()
    assert not fails

def test_after_them():
    assert ms.get_context("mode") == ms.PYNATIVE_MODE
    assert ms.get_context("jit_syntax_level") == ms.LAX
    assert not ms.get_context("pynative_synchronize")
    assert amp.get_curr_amp_strategy() is None
    assert ms.get_auto_parallel_context("parallel_mode") == "stand_alone"
    assert "MS_CE_ADDED" not in os.environ
    assert "HOME" in os.environ
"""


def test_a_leak_is_told_and_mended(tmp_path):
    (tmp_path / "test_them.py").write_text(TESTS)
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_them.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
    )
    assert "7 failed, 8 passed, 14 errors" in done.stdout, done.stdout
    told = re.findall(r"AssertionError: left for the tests after this one: \['(.*?):", done.stdout)
    for name in re.findall(r'"(.*)": lambda', TESTS):
        assert told.count(name) >= 2, f"{name}: {told}"
