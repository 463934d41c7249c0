"""build.sh: one clear sentence for everything that is missing, and the right call of MindSpore's custom_compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ascend.host_model import PROJECT

# Stands for MindSpore's setup.py: notes its arguments and installs what the real one would.
COMPILER = """
import pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(options["--install_path"])
(folder / "arguments").write_text("\\n".join(sys.argv[1:]))
(folder / "place").write_text(str(pathlib.Path.cwd()) + ' "/cmake/util/"')
(folder / "files").write_text("\\n".join(p.name for p in pathlib.Path.cwd().iterdir()))
library = folder / "vendors" / options["--vendor_name"] / "op_api" / "lib" / "libcust_opapi.so"
library.parent.mkdir(parents=True)
library.touch()
"""


def build(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    base = {k: v for k, v in os.environ.items() if not k.startswith("ASCEND_")}
    return subprocess.run(
        ["bash", str(PROJECT / "build.sh"), *arguments],
        env={**base, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
    )


def refusal(environment: dict[str, str], *arguments: str) -> str:
    done = build(environment, *arguments)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_without_cann():
    assert "ASCEND_HOME_PATH is not set" in refusal({})


def test_cann_that_is_not_there(tmp_path):
    assert "is not a directory" in refusal({"ASCEND_HOME_PATH": str(tmp_path / "nothing")})


def test_without_a_place(tmp_path):
    assert "ASCEND_OPP_PATH is not set" in refusal({"ASCEND_HOME_PATH": str(tmp_path)})


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """A CANN, a place to install to, and a MindSpore that holds only its custom_compiler."""
    for name in ("cann", "opp", "packages"):
        (tmp_path / name).mkdir()
    package = tmp_path / "packages" / "mindspore"
    compiler = package / "lib" / "plugin" / "ascend" / "custom_compiler"
    compiler.mkdir(parents=True)
    (package / "__init__.py").touch()
    (compiler / "setup.py").write_text(COMPILER)
    (compiler / "start.sh").touch()
    return {
        "ASCEND_HOME_PATH": str(tmp_path / "cann"),
        "ASCEND_OPP_PATH": str(tmp_path / "opp"),
        "PYTHONPATH": str(tmp_path / "packages"),
    }


def test_call_of_the_compiler(environment):
    done = build(environment)
    assert done.returncode == 0, done.stderr
    opp = Path(environment["ASCEND_OPP_PATH"])
    arguments = (opp / "arguments").read_text().splitlines()
    pairs = dict(zip(arguments[::2], arguments[1::2], strict=False))
    assert pairs["-o"] == str(PROJECT / "op_host")
    assert pairs["-k"] == str(PROJECT / "op_kernel")
    assert pairs["--soc_version"] == "ascend910b;ascend910_93"
    assert pairs["--ascend_cann_package_path"] == environment["ASCEND_HOME_PATH"]
    assert pairs["--vendor_name"] == "ms_ce"
    assert arguments[-1] == "-i"
    place, mended = (opp / "place").read_text().split(" ")
    assert mended == '"cmake/util"'  # the leading slash is taken out of the copy
    assert not Path(place).exists()  # the work folder is gone
    assert set((opp / "files").read_text().splitlines()) == {"setup.py", "start.sh"}
    assert f"export ASCEND_CUSTOM_OPP_PATH={opp}/vendors/ms_ce" in done.stdout


def test_build_that_installs_nothing(environment):
    compiler = (
        Path(environment["PYTHONPATH"]) / "mindspore/lib/plugin/ascend/custom_compiler/setup.py"
    )
    compiler.write_text("")
    assert "ended without" in refusal(environment)


def test_mindspore_without_a_compiler(environment):
    compiler = (
        Path(environment["PYTHONPATH"]) / "mindspore/lib/plugin/ascend/custom_compiler/setup.py"
    )
    compiler.unlink()
    assert "no custom_compiler" in refusal(environment)


@pytest.mark.parametrize("folder", ["op_host", "op_kernel"])
def test_folders_are_flat(folder):
    """custom_compiler copies the .cpp and .h files of the two folders themselves, nothing below them."""
    assert all(p.is_file() and p.suffix in (".cpp", ".h") for p in (PROJECT / folder).iterdir())
