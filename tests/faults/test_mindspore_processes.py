"""Losses while MindSpore's process is interrupted, when it ends, and where nothing may be written."""

from __future__ import annotations

import pytest

from tests.faults import preloaded, watched

WORKER = ("-m", "tests.faults.mindspore_worker")


@pytest.mark.parametrize("what", ["interrupted", "ends"])
def test_interrupted_or_ending(what):
    ended = watched.python(*WORKER, what)
    assert ended.status == 0, ended.output


def test_nothing_of_ms_ce_may_be_written():
    """A folder that was installed by someone else."""
    refused = {"preload": True, "MS_CE_READ_ONLY": str(preloaded.ROOT)}
    probe = watched.python("-c", f"open('{preloaded.ROOT}/ops/written', 'w')", **refused)
    assert "Read-only file system" in probe.output
    ended = watched.python(*WORKER, "computes", **refused)
    assert ended.status == 0, ended.output
