"""What holds the house together: import rules, the fixed folder, one version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ms_ce
from ms_ce.ops.cpu import library

ROOT = Path(__file__).resolve().parents[2]


def _python(code: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_folder_ops_is_not_imported_by_that_name():
    result = _python("import ops")
    assert result.returncode != 0
    assert "ms_ce.ops" in result.stderr


def _lint_imports(folder: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path) -> Path:
    """The Python files of the package, where the contract of imports is read."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    kernels = shutil.ignore_patterns("csrc", "custom_aicore", "*.so", "__pycache__")
    shutil.copytree(ROOT / "ms_ce", tmp_path / "ms_ce", ignore=kernels)
    return tmp_path


def test_imports_point_downwards(copy):
    result = _lint_imports(copy)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("ops/graph.py", "from ms_ce import functional"),
        ("ops/graph.py", "from ms_ce.ops import options"),
        ("ops/options.py", "import ms_ce"),
        ("ops/__init__.py", "from ms_ce.primitives import NLLLoss"),
        ("_checks.py", "from ms_ce import backend"),
        ("linear.py", "from ms_ce.parallel import mean"),
        ("parallel/config.py", "from ms_ce.parallel import blocks"),
        ("functional.py", "from ms_ce import reference"),
        ("reference.py", "import mindspore"),
        ("new_module.py", ""),
        ("parallel/loss.py", "from ms_ce.patch import engine"),
        ("patch/engine.py", "from ms_ce.patch import mindspore_losses"),
        ("patch/new_module.py", ""),
        ("ops/new_module.py", ""),
        ("ops/cpu/operators.py", "from ms_ce.ops.cpu import losses"),
        ("ops/composed/losses.py", "from ms_ce.ops import cpu"),
        ("ops/cpu/new_module.py", ""),
        ("ops/ascend/new_module.py", ""),
        ("ops/composed/new_module.py", ""),
        ("ops/linear/new_module.py", ""),
        ("parallel/new_module.py", ""),
    ],
)
def test_a_wrong_import_is_refused(copy, module, line):
    """Also what no layer names: a module without a place could import anything."""
    with (copy / "ms_ce" / module).open("a") as file:
        file.write(f"\n\ndef late():\n    {line}\n" if line else "\n")
    result = _lint_imports(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert name in result.stdout.partition("Broken contracts")[2]


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


def test_command_line_prints_the_version():
    result = subprocess.run(
        [sys.executable, "-m", "ms_ce", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"ms_ce {ms_ce.__version__}\n"


def test_command_line_prints_the_table():
    result = subprocess.run(
        [sys.executable, "-m", "ms_ce"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for text in (ms_ce.__version__, library.instruction_set(), "composed", "usable"):
        assert text in result.stdout


def test_includes_of_the_kernel_point_downwards():
    """Folders of ops/csrc, from the ground up; kernels.cc may include all of them."""
    kernel, layers = ROOT / "ops" / "csrc", ["platform", "loss", "linear", "interface"]
    files = [path for layer in layers for path in (kernel / layer).iterdir()]
    upward = [
        (path.name, included)
        for path in files
        for included in re.findall(r'#include "(\w+)/', path.read_text())
        if layers.index(included) > layers.index(path.parent.name)
    ]
    assert files
    assert not upward


def test_prose_is_wrapped():
    """Outside of code, tables and pictures no document has a line over 120 characters."""
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    documents = [each for each in tracked.stdout.split() if "results/" not in each]
    assert len(documents) > 20
    wide = []
    for document in documents:
        in_code = False
        for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
            in_code ^= line.lstrip().startswith("```")
            table = line.lstrip().startswith(("|", "<", "!["))
            if len(line) > 120 and not in_code and not table:
                wide.append(f"{document}:{number}")
    assert not wide
