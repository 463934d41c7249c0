"""Explicit SPMD losses under msrun: every mode, mesh and option equals the single-process reference.

One launch for two workers and one for four; spmd_worker.py runs what is asked for and writes a verdict for each.
"""

import functools
import json
from pathlib import Path

import pytest

from tests.parallel.distillation_cases import distillation_names
from tests.parallel.linear_cases import linear_names
from tests.parallel.processes import HERE, run_msrun
from tests.parallel.spmd_cases import PROGRAMS, cases
from tests.parallel.token_cases import token_names
from tests.parallel.top_k_cases import top_k_names
from tests.support.docstrings import NEED_RANKS


def lost_a_rank(printed: str) -> bool:
    """msrun says so at once, and then waits for its scheduler to notice."""
    return "exit with exception" in printed


def launch(ranks: int, wanted: list[str], directory: Path) -> list[dict[str, str]]:
    """The verdicts of every rank."""
    worker = HERE / "spmd_worker.py"
    (directory / "wanted.json").write_text(json.dumps(wanted))
    finished = run_msrun(worker, ranks, [str(directory)], directory, enough=lost_a_rank)
    assert finished.code == 0, finished.output
    return [json.loads((directory / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory, asked_for):
    """verdicts(ranks): one launch for each number of ranks, of all cases that are asked for."""

    @functools.cache
    def launched(ranks):
        wanted = [case["name"] for case in asked_for if case["ranks"] == ranks and "name" in case]
        return launch(ranks, wanted, tmp_path_factory.mktemp(f"msrun{ranks}"))

    return launched


def names(ranks: int) -> list[str]:
    computed = [case.name for case in cases(ranks)] + list(PROGRAMS[ranks]) + linear_names(ranks)
    distilled = distillation_names(ranks) + top_k_names(ranks)
    return computed + token_names(ranks) + distilled + NEED_RANKS


@pytest.mark.parametrize("ranks", (2, 4))
def test_every_verdict_has_a_name_of_its_own(ranks):
    assert len(set(names(ranks))) == len(names(ranks))


@pytest.mark.mindspore(
    ">=2.8", reason="AllReduce on CPU takes the group of all ranks only", run=False
)
@pytest.mark.parametrize(
    ("ranks", "name"), [(ranks, name) for ranks in (2, 4) for name in names(ranks)]
)
def test_every_rank_agrees_with_the_reference(verdicts, ranks, name):
    assert [rank[name] for rank in verdicts(ranks)] == ["passed"] * ranks
