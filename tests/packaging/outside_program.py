"""python outside_program.py: what the documents show, with an installed ms_ce and without the repository.

Runs in a folder that holds README.md, docs and examples and nothing else: every block of Python, every example and
notebook, only smaller, and the tools. Prints what it ran; fails at the first that fails.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path.cwd()
SMALL = {
    "compare_losses.py": "--rows 64 --classes 500",
    "digits.py": "--epochs 1 --pictures 300",
    "segmentation.py": "--steps 4 --width 4",
    "train_language_model.py": "--steps 4 --evaluate-every 2 --batch-size 4 --context 16 --width 16 --layers 1"
    " --heads 2 --sample-length 4 --comparison-rows 64 --comparison-classes 500",
}
# Under msrun, with two ranks.
SHARDED = "train_sharded.py"
SMALL_SHARDED = "--data-parallel 1 --vocabulary-parallel 2 --steps 3 --batch-size 4 --context 8 --width 16 --layers 1"
TOOLS = (
    "doctor",
    "table",
    "bench --shape 8,20 --seconds 1 --mode pynative --json",
    "bench --help",
    "build-ascend --help",
)


def run(*command: str, program: str = "python") -> None:
    """A program of this environment, which msrun too starts by its name."""
    print("run", *command[:3], flush=True)
    programs = Path(sys.executable).parent
    settings = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    finished = subprocess.run(
        [str(programs / program), *command], capture_output=True, text=True, env=settings
    )
    assert finished.returncode == 0, (
        f"{command}: {finished.stdout[-1000:]}{finished.stderr[-3000:]}"
    )


def blocks() -> list[str]:
    """The blocks of all documents, each a program of its own."""
    documents = [HERE / "README.md", *sorted((HERE / "docs").rglob("*.md"))]
    found = []
    for document in documents:
        for block in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.S):
            if ">>>" in block:
                block = "".join(one.source for one in doctest.DocTestParser().get_examples(block))
            found.append(block)
    return found


def sharded() -> None:
    """The example of several ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = ["--worker_num=2", "--local_worker_num=2", f"--master_port={port}", "--join=True"]
    script = [str(HERE / "examples" / SHARDED), *SMALL_SHARDED.split()]
    run(*ranks, "--log_dir=ranks", *script, program="msrun")


def main() -> None:
    import ms_ce

    assert not Path(ms_ce.__file__).is_relative_to(HERE)
    # In one process, as MindSpore takes seconds to import; from files, since it compiles what has one.
    programs = HERE / "blocks"
    programs.mkdir()
    texts = blocks()
    for number, text in enumerate(texts):
        (programs / f"block_{number}.py").write_text(text, encoding="utf-8")
    every = "import pathlib, runpy\nfor one in pathlib.Path('blocks').iterdir():\n    runpy.run_path(str(one))\n"
    (HERE / "every_block.py").write_text(every, encoding="utf-8")
    run("every_block.py")
    print(f"{len(texts)} blocks")
    for script in sorted((HERE / "examples").glob("*.py")):
        if script.name != SHARDED:
            run(str(script), *SMALL.get(script.name, "").split())
    if ms_ce._versions.MINDSPORE.release < (2, 8):
        print("not run:", SHARDED, "(docs/versions.md: AllReduce)")
    else:
        sharded()
    for notebook in sorted((HERE / "examples").glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        script = HERE / f"{notebook.stem}.py"
        text = "\n".join(["import matplotlib", 'matplotlib.use("Agg")', *sources])
        script.write_text(text, encoding="utf-8")
        run(str(script))
    for tool in TOOLS:
        run("-m", "ms_ce", *tool.split())


if __name__ == "__main__":
    main()
