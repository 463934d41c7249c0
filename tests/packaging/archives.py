"""Builds what is shipped, from a copy of the repository's files."""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILDER = (
    ROOT / ".venv-release" / "bin" / "python"
)  # `make test` makes it, or `make .venv-release/.installed`
# What ms_ce declares at its lowest, beside the oldest MindSpore: the first numpy with a wheel for the oldest Python.
LOWEST = ("numpy==1.21.2", "packaging==20.0")
# Test runs of this repository are no part of what a user's machine offers.
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GLOG_v")}


def run(*command, **keywords) -> str:
    """The command's output; fails with what it printed."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **keywords
    )
    assert result.returncode == 0, f"{command}: {result.stdout[-2000:]}{result.stderr[-4000:]}"
    return result.stdout


def tracked(*folders: str) -> list[str]:
    """The files of git below these folders; links are files."""
    return run("git", "ls-files", *folders, cwd=ROOT).splitlines()


def copy_repository(folder: Path, links: bool = True) -> Path:
    """The files of git in another folder; without `links` as git leaves them on Windows, a link being a text file."""
    for name in tracked():
        path, source = folder / name, ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and links:
            path.symlink_to(os.readlink(source))
        elif source.is_symlink():
            path.write_text(os.readlink(source))
        else:
            path.write_bytes(source.read_bytes())
            path.chmod(source.stat().st_mode)
    return folder


def build(kind: str, folder: Path, epoch: int = 1_600_000_000, **environment: str) -> Path:
    """The sdist or wheel of a copy, in its folder dist."""
    settings = {**CLEAN, "SOURCE_DATE_EPOCH": str(epoch), **environment}
    command = [BUILDER, "-m", "build", "--no-isolation", f"--{kind}"]
    run(*command, "--outdir", folder / "dist", folder, env=settings)
    return next((folder / "dist").glob("*.tar.gz" if kind == "sdist" else "*.whl"))


def names(archive: Path) -> list[str]:
    """Names of an archive's files, and of its links."""
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).namelist()
    with tarfile.open(archive) as members:
        return [member.name.partition("/")[2] for member in members if not member.isdir()]


def package_files() -> set[str]:
    """What every wheel holds beside its kernel and its metadata."""
    modules = [name for name in tracked("ms_ce") if name.endswith((".py", "py.typed"))]
    modules += [f"ms_ce/{name}" for name in tracked("ops") if name.endswith(".py")]
    ascend = ("README.md", "build.sh", "op_host/", "op_kernel/", "infer/")
    kernels = [f"custom_aicore/{part}" for part in ascend]
    return {*modules, *(f"ms_ce/{name}" for name in tracked(*kernels))}
