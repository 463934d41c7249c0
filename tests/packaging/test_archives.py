"""What is shipped: the archive of sources, and a wheel that was built without a compiler."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

import ms_ce
from tests.packaging import archives

NO_COMPILER = {"CXX": "no-such-compiler"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return archives.build("sdist", archives.copy_repository(tmp_path_factory.mktemp("sources")))


@pytest.fixture(scope="module")
def composed(tmp_path_factory) -> Path:
    """A wheel made where there is neither a compiler nor a symbolic link."""
    copy = archives.copy_repository(tmp_path_factory.mktemp("windows"), links=False)
    return archives.build("wheel", copy, **NO_COMPILER)


def test_sdist_holds_what_a_wheel_is_made_of(sdist):
    sources = {
        *archives.tracked("ms_ce/*.py", "ms_ce/parallel", "ops", "custom_aicore"),
        *("ms_ce/py.typed", "pyproject.toml", "setup.py", "LICENSE", "README.md", "CHANGELOG.md"),
    }
    held = {name for name in archives.names(sdist) if not name.startswith("ms_ce.egg-info/")}
    assert held == sources | {"MANIFEST.in", "PKG-INFO", "SECURITY.md", "setup.cfg"}
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]


def test_sdist_does_not_depend_on_the_place_the_hour_or_the_umask(sdist, tmp_path):
    copy = archives.copy_repository(tmp_path / "elsewhere")
    for path in copy.rglob("*.py"):
        if not path.is_symlink():
            path.chmod(0o600)
            os.utime(path, (0, 1_000_000_000))
    assert archives.build("sdist", copy).read_bytes() == sdist.read_bytes()


def test_wheel_without_a_compiler(composed):
    """Of every platform, and of a local version, which no index takes."""
    version = f"{ms_ce.__version__}+composed"
    assert composed.name == f"ms_ce-{version}-py3-none-any.whl"
    files = {name for name in archives.names(composed) if ".dist-info/" not in name}
    assert files == archives.package_files()
    wheel = zipfile.ZipFile(composed)
    assert f'"{version}"' in wheel.read("ms_ce/_version.py").decode()
    metadata = wheel.read(f"ms_ce-{version}.dist-info/METADATA").decode()
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "License-File: LICENSE\n" in metadata
    assert f"ms_ce-{version}.dist-info/licenses/LICENSE" in wheel.namelist()


def test_wheel_of_a_folder_with_an_earlier_build(tmp_path, composed):
    copy = archives.copy_repository(tmp_path / "again")
    for name in ("lib", "lib.linux-x86_64-cpython-311"):
        stale = copy / "build" / name / "ms_ce" / "removed.py"
        stale.parent.mkdir(parents=True)
        stale.touch()
    wheel = archives.build("wheel", copy, **NO_COMPILER)
    assert archives.names(wheel) == archives.names(composed)
    assert wheel.read_bytes() == composed.read_bytes(), "a wheel depends on where it is built"


SETUP = """
import runpy, setuptools, sys
setuptools.setup = lambda **_: None
setup = runpy.run_path("setup.py")
sys.platform = sys.argv[1]
print(setup["no_kernel"](), setup["version"](), setup["KernelDistribution"]().has_ext_modules(), sep="|")
"""


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_no_kernel_is_tried_where_mindspore_has_no_custom_operators(system):
    """A compiler that is found there must not stop the installation."""
    command = [archives.BUILDER, "-c", SETUP, system]
    answers = archives.run(*command, cwd=archives.ROOT).strip().split("|")
    reason, local = "MindSpore runs custom operators on Linux only", f"{ms_ce.__version__}+composed"
    expected = [reason, local, "False"]
    assert answers == (["None", ms_ce.__version__, "True"] if system == "linux" else expected)
