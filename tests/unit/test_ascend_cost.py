"""The cost model's arithmetic (benchmarks/ascend_cost.py), with round numbers in the place of the vendor's tables."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ascend_cost
import ascend_tables
import ascend_validation

CHIP = ascend_tables.Chip("x", cores=4, clock=100.0, read=1000.0, both=1500.0, past_cache=2000.0)


@pytest.fixture(autouse=True)
def round_numbers(monkeypatch):
    known = {name: ascend_tables.Instruction(1.0, 10.0, 20.0) for name in ("Add", "Exp")}
    known["Exp"] = ascend_tables.Instruction(2.0, 10.0, 30.0)
    monkeypatch.setattr(ascend_tables, "instructions", lambda: known)
    monkeypatch.setattr(ascend_tables, "launch", lambda: (1.0, 0.5))


def counters(**values):
    given = {
        "kinds": {},
        "bank_conflicts": 0,
        "starts": 0,
        "scalar_reads": 0,
        "scalar_writes": 0,
        "read": {"x": 0},
        "written": {"y": 4},
        "unaligned_blocks": 0,
        "small_block_bytes": 0,
        "lone_blocks": 0,
    }
    return SimpleNamespace(**given | values)


def test_vector_cycles():
    work = {"Add": (100, 3), "Exp": (50, 1)}
    assert ascend_cost.vector_cycles(work, conflicts=7, starts=2) == (200, 7, 3 * 20 + 30 + 2 * 10)


def test_the_slowest_core_has_whole_rows():
    """9 rows on 4 cores: one core has 3. 8 rows were counted, 2 a core, of 400 cycles each."""
    work = {"Add": SimpleNamespace(repeats=8 * 400, waited=0)}
    cost = ascend_cost.cost(counters(kinds=work), CHIP, rows=9, sample=8, blocks=4)
    assert cost.repeats == pytest.approx(3 * 400 / 100)
    assert cost.total() == pytest.approx(1 + 4 * 0.5 + 12)


def test_memory_is_shared_and_hides_half_of_the_launch():
    cost = ascend_cost.cost(
        counters(read={"x": 6000}, written={"y": 6000}), CHIP, rows=8, sample=4, blocks=4
    )
    assert cost.memory == pytest.approx(24000 / 1500)
    assert cost.total() == pytest.approx(1 + 4 * 0.5 / 2 + 16)
    assert cost.total(past_cache=True) == pytest.approx(1 + 1 + 12)
    reads = ascend_cost.memory_microseconds(CHIP, 6000, 0)
    assert reads == pytest.approx(6)


def test_blocks_that_cost_more_than_their_bytes():
    assert ascend_cost.extra_bytes(1, 0) == pytest.approx(2048 * (275.3 / 215.82 - 1))
    assert ascend_cost.extra_bytes(0, 1000) == pytest.approx(82.1, rel=1e-3)


def test_every_instruction_of_the_host_model_has_a_price():
    """A kernel that uses one without would stop the model."""
    folder = Path(__file__).resolve().parents[2] / "custom_aicore" / "host_model"
    text = (folder / "instructions.h").read_text()
    names = set(re.findall(r"MS_CE_MODEL_\w+\((\w+),", text)) - {"NAME"}
    names |= set(re.findall(r'"(\w+)"\);', text)) | {"Duplicate", "Brcb"}
    assert len(names) > 12
    assert names <= set(ascend_tables.INSTRUCTIONS)


def test_a_row_of_the_reduction_kernel():
    """16,384 elements: 256 repeats of cast and square, 256 + 5 of reductions (seven cycles each on the chip)."""
    for name in ("Cast", "Mul", "WholeReduceSum", "Muls", "Adds", "Duplicate", "Sqrt", "Div"):
        ascend_tables.instructions()[name] = ascend_tables.Instruction(1.0, 10.0, 20.0)
    waits = 1 + 1 + 6 + 1 + 1 + 1 + 1
    assert ascend_validation.reduction_row(16384) == 256 * 3 + 5 + 5 + waits * 20 + 10


def test_the_package_is_asked_for_by_name_and_version(monkeypatch):
    def missing(name):
        raise ascend_tables.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(ascend_tables.importlib.metadata, "version", missing)
    with pytest.raises(
        SystemExit, match=r"needs msopmodeling 1\.0\.9 .* found none; .*pip install"
    ):
        ascend_tables.root()
