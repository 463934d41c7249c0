"""Builds the CPU kernel with CMake and puts it into the package; everything else is in pyproject.toml.

Without a C++ compiler the package still installs and works on the `composed` backend. A kernel that fails to
compile is an error: nobody should lose it unawares.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def cxx_compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of the usual names."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((path for name in names if (path := shutil.which(name.split()[0]))), None)


def build_kernel(output: Path, work: Path) -> None:
    """Compiles ops/csrc into output/libms_ce.so."""
    source = next(path for path in (ROOT / "ops/csrc", ROOT / "ms_ce/ops/csrc") if path.is_dir())
    configure = ["cmake", "-S", str(source), "-B", str(work), "-DCMAKE_BUILD_TYPE=Release"]
    configure.append(f"-DMS_CE_OUTPUT_DIR={output.resolve()}")
    if shutil.which("ccache"):
        configure.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    if not os.environ.get("CXX"):
        configure.append(f"-DCMAKE_CXX_COMPILER={cxx_compiler()}")
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(work), "--parallel"], check=True)


class BuildPy(build_py):
    """Python files, then the kernel beside ops/library.py."""

    def run(self) -> None:
        super().run()
        if cxx_compiler() is None:
            print(
                "ms_ce: no C++ compiler found (looked for $CXX, g++, clang++, c++): installing without "
                "the cpu kernel; losses will run on the composed backend",
                file=sys.stderr,
            )
            return
        output = ROOT / "ops" if self.editable_mode else Path(self.build_lib) / "ms_ce" / "ops"
        build_kernel(output, Path(self.get_finalized_command("build").build_temp) / "kernel")


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: the kernel depends on the machine, not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class KernelDistribution(Distribution):
    """Belongs to one platform wherever the kernel is built."""

    def has_ext_modules(self) -> bool:
        return cxx_compiler() is not None


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": PlatformWheel}, distclass=KernelDistribution)
