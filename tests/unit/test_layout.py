"""What holds the house together: import rules, the fixed folder, one version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ms_ce
from ms_ce.ops import library

ROOT = Path(__file__).resolve().parents[2]


def _python(code: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_folder_ops_is_not_imported_by_that_name():
    result = _python("import ops")
    assert result.returncode != 0
    assert "ms_ce.ops" in result.stderr


def test_modules_stay_on_one_worker(request):
    """Otherwise every worker makes every costly fixture: versions of pytest-xdist and pytest must fit."""
    grouped = request.config.getoption("loadgroup", False)
    assert request.node.nodeid.endswith("@test_layout") == grouped


def test_one_version():
    assert library.load().MsCeVersion().decode() == ms_ce.__version__


def test_import_changes_nothing():
    """Importing the package leaves the environment and MindSpore's context as they were."""
    code = (
        "import os, mindspore; before = dict(os.environ), mindspore.get_context('mode')\n"
        "import ms_ce; assert before == (dict(os.environ), mindspore.get_context('mode'))"
    )
    result = _python(code)
    assert result.returncode == 0, result.stderr


def test_reference_needs_numpy_only():
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('reference', 'ms_ce/reference.py')\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['reference'] = module\n"
        "spec.loader.exec_module(module); assert 'mindspore' not in sys.modules"
    )
    result = _python(code)
    assert result.returncode == 0, result.stderr


def test_command_line_prints_the_table():
    result = subprocess.run(
        [sys.executable, "-m", "ms_ce"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for text in (ms_ce.__version__, library.instruction_set(), "composed", "usable"):
        assert text in result.stdout
