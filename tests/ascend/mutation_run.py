"""Every fault of mutations.py must be caught by the tests that it names: `make test-mutations`.

Each fault is applied to a copy of custom_aicore/, which must still compile; then the tests must fail. All of them take
ten minutes; MS_CE_MUTATION_PART="2/8" names an eighth of them, as .ci/run does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ascend.host_model import PROJECT
from tests.ascend.mutations import MUTATIONS, part

FOLDER = Path(__file__).parent
CHOSEN = part(MUTATIONS, os.environ.get("MS_CE_MUTATION_PART") or "1/1")
TESTS_FAILED = 1  # pytest's exit status; 2 and more are errors of the run itself


def run_tests(project: Path, arguments: tuple[str, ...]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [str(FOLDER / a) if a.startswith("test_") else a for a in arguments]
    environment = {
        **os.environ,
        "MS_CE_CUSTOM_AICORE": str(project),
        "MS_CE_HOST_MODEL_OPTIMISE": "-O0",
    }
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=FOLDER.parents[1]
    )


@pytest.mark.parametrize("mutation", CHOSEN, ids=lambda m: m.name)
def test_caught(mutation, tmp_path):
    project = tmp_path / "custom_aicore"
    shutil.copytree(PROJECT, project)
    path = project / "op_kernel" / mutation.file
    path.write_text(path.read_text().replace(mutation.old, mutation.new))
    done = run_tests(project, mutation.tests)
    assert "does not compile" not in done.stdout, done.stdout[-2000:]
    assert done.returncode == TESTS_FAILED, f"{mutation.name} is not caught:\n{done.stdout[-2000:]}"


@pytest.mark.parametrize("arguments", sorted({m.tests for m in CHOSEN}), ids=" ".join)
def test_nothing_is_caught_in_the_sources_themselves(arguments, tmp_path):
    """The same tests pass on an unchanged copy, so that a failure above is the mutation's."""
    project = tmp_path / "custom_aicore"
    shutil.copytree(PROJECT, project)
    done = run_tests(project, arguments)
    assert done.returncode == 0, done.stdout[-2000:]
