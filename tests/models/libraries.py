"""The model libraries that `make test-models` runs, each in an environment of its own.

    python -m tests.models.libraries FOLDER [NAME…]   makes the environments that are missing

Nothing is downloaded but packages; networks have random weights.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"


class Library(NamedTuple):
    """forms: what a run patches, as keywords of the library's function; None without the patch."""

    name: str
    version: str
    mindspore: str
    network: str
    forms: dict[str, dict | None]


PLAIN: dict[str, dict | None] = {"without": None, "patched": {}}
LINEAR: dict[str, dict | None] = PLAIN | {"linear": {"linear": True}}

LIBRARIES = {
    library.name: library
    for library in (
        Library("mindcv", "0.3.0", "2.10.0", "resnet18, smoothing 0.1", PLAIN),
        Library("mindone", "0.5.0", "2.7.1", "LlamaForCausalLM", LINEAR),
        Library("mindnlp", "0.5.1", "2.7.0", "LlamaForCausalLM", LINEAR),
        Library("mindformers", "2.1.0", "2.10.0", "GPTModel, another decoder", LINEAR),
    )
}


def python_of(folder: Path, name: str) -> Path:
    return folder / name / "bin" / "python"


def make(folder: Path, name: str) -> None:
    """An environment with what `requirements/NAME.txt` lists: first with dependencies, then `--no-deps` below a line
    that says so."""
    if (folder / name / ".ready").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    split = wanted.index("--no-deps") if "--no-deps" in wanted else len(wanted)
    pip = [python_of(folder, name), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *wanted[:split]], check=True)
    if wanted[split + 1 :]:
        subprocess.run([*pip, *wanted[split:]], check=True)
    (folder / name / ".ready").touch()


if __name__ == "__main__":
    for each in sys.argv[2:] or LIBRARIES:
        make(Path(sys.argv[1]).resolve(), each)
