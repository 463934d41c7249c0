"""build.sh: one clear sentence for everything that is missing, and the right call of MindSpore's custom_compiler."""

from __future__ import annotations

import json
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


# Stands for CANN's project template: compiles op_host as the template does, at the place where MindSpore's setup.py put
# it, and packs an installer.
TEMPLATE = """
set -e
test -f op_kernel/ms_ce_forward.cpp
g++ -std=c++11 -fsyntax-only -I{headers} op_host/ms_ce_ops.cpp
mkdir -p build_out
cp CMakePresets.json build_out
echo 'mkdir -p "$ASCEND_CUSTOM_OPP_PATH/vendors/ms_ce/op_api/lib"' > build_out/operators.run
echo 'touch "$ASCEND_CUSTOM_OPP_PATH/vendors/ms_ce/op_api/lib/libcust_opapi.so"' >> build_out/operators.run
cp CMakePresets.json {cann}/seen.json
"""
PRESETS = {
    name: {"value": ""}
    for name in ("ASCEND_CANN_PACKAGE_PATH", "ASCEND_COMPUTE_UNIT", "vendor_name")
}


def test_mindspores_own_setup(tmp_path):
    """The custom_compiler of the installed MindSpore takes our call and our folders."""
    cann, opp = tmp_path / "cann", tmp_path / "opp"
    templates = cann / "tools" / "op_project_templates" / "ascendc"
    for name in ("customize/op_host", "customize/op_kernel", "customize/cmake/util", "common"):
        (templates / name).mkdir(parents=True)
    opp.mkdir()
    presets = {"configurePresets": [{"cacheVariables": PRESETS}]}
    (templates / "customize" / "CMakePresets.json").write_text(json.dumps(presets))
    script = TEMPLATE.format(headers=PROJECT / "host_model", cann=cann)
    (templates / "customize" / "build.sh").write_text(script)
    done = build({"ASCEND_HOME_PATH": str(cann), "ASCEND_OPP_PATH": str(opp)})
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads((cann / "seen.json").read_text())["configurePresets"][0]["cacheVariables"]
    assert seen["ASCEND_COMPUTE_UNIT"]["value"] == "ascend910b;ascend910_93"
    assert seen["ASCEND_CANN_PACKAGE_PATH"]["value"] == str(cann)
    assert seen["vendor_name"]["value"] == "ms_ce"


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
