"""The device may be set after ms_ce is imported, and after Cells are made: operators depend on neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.rig.target import PIN, WHY_PINNED

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("import_order_worker.py")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.mindspore(PIN, reason=WHY_PINNED, run=False)
@pytest.mark.parametrize("cells_are_made", ["before", "after"])
def test_the_cpu_is_chosen_after_the_import(cells_are_made):
    """On a machine whose first device is Ascend: the fused kernel serves in both modes, with the same numbers."""
    result = python(str(WORKER), cells_are_made)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert "needs device target CPU, and MindSpore runs on Ascend" in report["elsewhere"]
    assert report["chosen"] == report["named"] == "cpu"
    for name, values in report["values"].items():
        mode = name.rpartition(" ")[2]
        twin = name.replace(mode, "graph" if mode == "pynative" else "pynative")
        assert values == pytest.approx(report["values"][twin], rel=1e-5), name
        assert values[1] > 0, name
    loss, _ = report["values"]["CrossEntropyLoss graph"]
    # Σ_c exp(c - 4) for every row, whose target lies 4, 3, 2, 1 below the largest logit.
    assert loss == pytest.approx(2.5 + 0.4519144, rel=1e-6)


def test_a_white_list_that_leaves_the_library_out():
    """MindSpore refuses to make such operators; the import must not fail for it, and the choice says so."""
    code = (
        "import ms_ce; row = ms_ce.available_backends()[0]; print(row.reason)\n"
        "import mindspore as ms\n"
        "print(ms_ce.cross_entropy(ms.Tensor([[0.0, 0.0]]), ms.Tensor([1])))"
    )
    result = python("-c", code, MS_CUSTOM_AOT_WHITE_LIST="/nowhere")
    assert result.returncode == 0, result.stderr
    reason, loss = result.stdout.splitlines()
    assert reason.startswith("MS_CUSTOM_AOT_WHITE_LIST=/nowhere leaves out")
    assert float(loss) == pytest.approx(0.6931472, rel=1e-5)
    inside = python("-c", code, MS_CUSTOM_AOT_WHITE_LIST=str(ROOT))
    assert inside.stdout.splitlines()[0] == "None"


THREADS = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from ms_ce import backend
from ms_ce.ops.table import KERNELS

imports = [*KERNELS.values(), *(row.forms for row in backend.TABLE)]
start = threading.Barrier(len(imports))


def is_whole(imported):
    start.wait()
    found = imported()
    modules = vars(found).values() if isinstance(found, backend.Forms) else (found,)
    return not any(module.__spec__._initializing for module in modules)


sys.setswitchinterval(1e-6)
assert "ms_ce.ops.cpu" not in sys.modules
with ThreadPoolExecutor(len(imports)) as threads:
    assert all(threads.map(is_whole, imports))
"""


def test_threads_that_import_backends_at_once():
    """Each gets a whole module."""
    result = python("-c", THREADS)
    assert result.returncode == 0, result.stderr


def test_a_child_process_that_calls_first():
    code = (
        "import os, mindspore as ms, ms_ce\n"
        "child = os.fork()\n"
        "print(ms_ce.cross_entropy(ms.Tensor([[0.0, 0.0]]), ms.Tensor([1])), flush=True)\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert [float(loss) for loss in result.stdout.split()] == pytest.approx([0.6931472] * 2)
