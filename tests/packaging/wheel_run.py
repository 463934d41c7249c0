"""The wheels of `make wheels`, as someone without a compiler gets them; `make test-wheels` runs this.

MS_CE_MINDSPORE and MS_CE_PYTHON choose the MindSpore and the Python of the fresh environment. The oldest MindSpore
stands beside the lowest of the other dependencies.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

import ms_ce
from ms_ce import _versions
from tests.packaging import archives

DIST = archives.ROOT / "dist"
PROGRAM = Path(__file__).with_name("installed_program.py")
WHEELS = sorted(DIST.glob("*.whl"))


def test_one_wheel_for_each_processor():
    assert [wheel.name.rpartition("_2_")[0] for wheel in WHEELS] == [
        f"ms_ce-{ms_ce.__version__}-py3-none-manylinux"
    ] * 2
    assert [wheel.stem.rpartition("_2_24_")[2] for wheel in WHEELS] == ["aarch64", "x86_64"]


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.stem.rpartition("_2_24_")[2])
def test_contents(wheel):
    info = f"ms_ce-{ms_ce.__version__}.dist-info"
    metadata = ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt")
    expected = archives.package_files() | {"ms_ce/ops/libms_ce.so"}
    assert set(archives.names(wheel)) == expected | {f"{info}/{name}" for name in metadata}
    assert all(not item.is_dir() for item in zipfile.ZipFile(wheel).infolist())


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A fresh environment with the x86-64 wheel, whose PATH leads nowhere."""
    folder = tmp_path_factory.mktemp("environment")
    archives.run(os.environ.get("MS_CE_PYTHON") or sys.executable, "-m", "venv", folder)
    wanted = os.environ.get("MS_CE_MINDSPORE")
    requirements = [f"mindspore=={wanted}"] if wanted else []
    requirements += archives.LOWEST if wanted == str(_versions.OLDEST) else ()
    wheel = next(wheel for wheel in WHEELS if wheel.stem.endswith("x86_64"))
    install = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel, *requirements]
    archives.run(folder / "bin/python", *install, env=archives.CLEAN)
    return folder


def _python(environment: Path, *arguments) -> str:
    settings = {**archives.CLEAN, "PATH": str(environment / "nothing"), "GLOG_v": "3"}
    return archives.run(environment / "bin/python", *arguments, cwd=environment, env=settings)


def test_installed_wheel_needs_no_compiler(environment):
    output = _python(environment, PROGRAM, "cpu")
    print(output)
    assert f"of {environment}" in output


def test_command_line_of_the_installed_wheel(environment):
    output = _python(environment, "-m", "ms_ce")
    assert f"ms_ce {ms_ce.__version__}," in output
    assert "kernel: x86-64-v" in output


def test_what_the_documents_show_runs_without_the_repository(environment, tmp_path):
    """Every block, example, notebook and tool, with what the extra `demo` installs."""
    demo = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", "matplotlib", "tqdm"]
    demo.append("numpy<2")  # pip forgets what MindSpore asked for
    archives.run(environment / "bin/python", *demo, env=archives.CLEAN)
    for name in archives.tracked("README.md", "docs", "examples"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((archives.ROOT / name).read_bytes())
    program = PROGRAM.with_name("outside_program.py")
    settings = {**archives.CLEAN, "GLOG_v": "3"}
    archives.run(environment / "bin/python", program, cwd=tmp_path, env=settings)


def test_environment_with_a_wheel_without_a_kernel(environment, tmp_path):
    """Made last: it takes the place of the other wheel."""
    copy = archives.copy_repository(tmp_path / "sources")
    wheel = archives.build("wheel", copy, CXX="no-such-compiler")
    install = ["-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel]
    archives.run(environment / "bin/python", *install, env=archives.CLEAN)
    assert "+composed" in _python(environment, PROGRAM, "composed")
    output = _python(environment, "-m", "ms_ce")
    assert f"ms_ce {ms_ce.__version__}+composed," in output
    assert "without a C++ compiler" in output
