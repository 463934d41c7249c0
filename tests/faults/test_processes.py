"""The kernel while its process forks, is interrupted, ends, or has few cores and threads; its memory fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import watched

PRELOADED = {
    "forks": {},
    "signals": {},
    "ends": {},
    "one_core": {},
    "many_threads": {},
    "no_threads": {"preload": True},
    "no_proc": {"preload": True, "MS_CE_NO_PROC": "1", "OMP_NUM_THREADS": "1"},
}


@pytest.mark.parametrize("what", PRELOADED)
def test_the_kernel_is_right(what):
    ended = watched.python("-m", "tests.faults.processes", what, **PRELOADED[what])
    assert ended.status == 0, ended.output


@pytest.mark.parametrize(
    ("what", "least"), [("calls", 5000), ("first", 200), ("interface", 1000), ("shapes", 1000)]
)
def test_every_allocation_fails_in_its_turn(what, least):
    """Our sentence or a right result, and the next call is right; `least` says that allocations did fail."""
    ended = watched.python("-m", "tests.faults.allocations", what, preload=True)
    assert ended.status == 0, ended.output
    assert int(ended.output) >= least


def test_every_allocation_of_onednn_fails_in_its_turn():
    """MindSpore's, which multiplies bfloat16 where the processor has the instructions."""
    import mindspore

    library = next((Path(mindspore.__file__).parent / "lib").glob("libdnnl.so*"))
    ended = watched.python("-m", "tests.faults.allocations", "onednn", str(library), preload=True)
    assert ended.status == 0, ended.output
