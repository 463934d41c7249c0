"""What a figure depends on beside the code: the machine, the versions, the commit."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEER_ENVIRONMENT = ROOT / ".venv-benchmarks"
PEER_PACKAGES = ("torch==2.13.0", "jax", "optax", "numpy", "expecttest")


def _output(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


def machine() -> dict[str, str]:
    """Processor and memory, as lscpu and the kernel describe them."""
    fields = dict(line.split(":", 1) for line in _output("lscpu").splitlines() if ":" in line)
    wanted = ("Model name", "CPU(s)", "L2 cache", "L3 cache", "Hypervisor vendor")
    facts = {name: fields[name].strip() for name in wanted if name in fields}
    total = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
    return {
        **facts,
        "memory": f"{int(total) / 1e6:.1f} GB",
        "system": platform.platform(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }


def commit() -> str:
    """The commit, marked where files that the figures depend on differ from it."""
    changed = _output("git", "status", "--porcelain", "--", "ms_ce", "ops", "benchmarks")
    changed = "\n".join(x for x in changed.splitlines() if "benchmarks/results/" not in x)
    return _output("git", "rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")


def date() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def load_average() -> float:
    return os.getloadavg()[0]


def compiled(source: Path, folder: str) -> str:
    """A program made of `source` for this processor."""
    program = str(Path(folder) / source.stem)
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise SystemExit(f"benchmarks: needs g++ or clang++ to compile {source.name}")
    options = ["-O3", "-march=native", "-pthread", "-std=c++17", "-o", program]
    subprocess.run([compiler, *options, str(source)], check=True)
    return program


def peer_python() -> str:
    """The Python of .venv-benchmarks, which is made and filled where it is missing."""
    python = PEER_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        print(f"installing {' '.join(PEER_PACKAGES)} into {PEER_ENVIRONMENT.name} …", flush=True)
        import venv

        venv.create(PEER_ENVIRONMENT, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES]
        subprocess.run(pip, check=True)
    return str(python)
