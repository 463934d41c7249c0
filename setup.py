"""Builds the CPU kernel with CMake and puts it into the package; everything else is in pyproject.toml.

Without a C++ compiler, and where MindSpore runs no custom operator (anywhere but on Linux), the package installs all
the same and works on the `composed` backend; its version then ends in +composed. A kernel that fails to compile is an
error: nobody should lose it unawares.

`bdist_wheel --plat-name manylinux_2_24_aarch64` makes a wheel for other systems than this one (`make wheels`): its
kernel binds to an older glibc and libstdc++, and is cross-compiled where the tag names another processor.
"""

from __future__ import annotations

import gzip
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(ROOT / "ms_ce/_version.py"))["__version__"]


def cxx_compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of the usual names."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((path for name in names if (path := shutil.which(name.split()[0]))), None)


def no_kernel() -> str | None:
    """Why no kernel is built, or None."""
    if sys.platform != "linux":
        return "MindSpore runs custom operators on Linux only"
    if cxx_compiler() is None:
        return "no C++ compiler was found (looked for $CXX, g++, clang++, c++)"
    return None


def build_kernel(output: Path, work: Path, target: str) -> None:
    """Compiles ops/csrc into output/libms_ce.so, for a manylinux tag or, if `target` is empty, for this machine."""
    configure = ["cmake", "-S", str(ROOT / "ops/csrc"), "-B", str(work)]
    configure += ["-DCMAKE_BUILD_TYPE=Release", f"-DMS_CE_OUTPUT_DIR={output.resolve()}"]
    if shutil.which("ccache"):
        configure.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    if target:
        configure.append("-DMS_CE_MANYLINUX=ON")
    if target and not target.endswith(platform.machine()):
        machine = target.split("_", maxsplit=3)[3]
        configure.append(f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'ops/csrc' / machine}.cmake")
    elif not os.environ.get("CXX"):
        configure.append(f"-DCMAKE_CXX_COMPILER={cxx_compiler()}")
    subprocess.run(configure, check=True)
    # CMake copies what it has linked, and nothing where that is up to date.
    (work / "lib" / "libms_ce.so").unlink(missing_ok=True)
    command = ["cmake", "--build", str(work), "--target", "ms_ce", "--parallel"]
    subprocess.run(command, check=True)


class BuildPy(build_py):
    """Python files, then the kernel into ops/."""

    def run(self) -> None:
        if not self.editable_mode:  # a wheel would hold what earlier builds have left there
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if (reason := no_kernel()) is not None:
            print(
                f"ms_ce: {reason}: installing without the cpu kernel; losses will run on the composed backend",
                file=sys.stderr,
            )
            if not self.editable_mode:
                (Path(self.build_lib) / "ms_ce" / "_version.py").write_text(
                    f'"""The version of ms_ce, built without a kernel."""\n\n__version__ = "{version()}"\n'
                )
            return
        output = ROOT / "ops" if self.editable_mode else Path(self.build_lib) / "ms_ce" / "ops"
        work = Path(self.get_finalized_command("build").build_base) / (self.target() or "kernel")
        build_kernel(output, work, self.target())

    def target(self) -> str:
        """The manylinux tag that is asked for, or the empty string."""
        wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
        name = getattr(wheel, "plat_name", None) or ""
        return name if name.startswith("manylinux_") else ""


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: the kernel depends on the machine, not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, tag = super().get_tag()
        return "py3", "none", tag


class KernelDistribution(Distribution):
    """Belongs to one platform wherever the kernel is built."""

    def has_ext_modules(self) -> bool:
        return no_kernel() is None


class Sources(sdist):
    """An archive that depends on the sources and $SOURCE_DATE_EPOCH alone, not on who packs it, when and where."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))

        def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = epoch
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        path = Path(f"{base_name}.tar.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=epoch) as compressed,
            tarfile.open(fileobj=compressed, mode="w") as archive,
        ):
            archive.add(base_dir, filter=anonymous)
        return str(path)


def version() -> str:
    """The package's; of what is built without a kernel a local one, which no index takes."""
    sources_only = "sdist" in sys.argv
    return VERSION if sources_only or no_kernel() is None else f"{VERSION}+composed"


setup(
    version=version(),
    cmdclass={"build_py": BuildPy, "bdist_wheel": PlatformWheel, "sdist": Sources},
    distclass=KernelDistribution,
)
