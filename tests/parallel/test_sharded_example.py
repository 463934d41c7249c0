"""The sharded example, as a reader runs it, only smaller. It ends with an error where its curve is not that of one
process."""

from pathlib import Path

import pytest

from tests.parallel.processes import run_msrun

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_sharded.py"
SMALL = "--steps=3 --batch-size=4 --context=8 --width=16 --layers=1"
SPLIT = "--data-parallel=2 --vocabulary-parallel=2"


@pytest.mark.mindspore(
    ">=2.8", reason="AllReduce on CPU takes the group of all ranks only", run=False
)
def test_train_sharded(tmp_path):
    finished = run_msrun(EXAMPLE, 4, f"{SPLIT} {SMALL}".split(), tmp_path)
    assert finished.code == 0, finished.output[-4000:]
    assert "the loss curves are equal" in finished.output
