"""Of the rare tests CI runs one part for each commit, and no part is left out."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import rare

ROOT = Path(__file__).resolve().parents[2]


def test_every_part_has_its_turn():
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    parts = {int(n) for source in sources for n in re.findall(r"mark\.rare\(part=(\d+)\)", source)}
    turns = re.search(
        r"^rare=\$\(\(commits % (\d+) \+ 1\)\)$", (ROOT / ".ci" / "run").read_text(), re.M
    )
    assert turns is not None
    assert int(turns[1]) == rare.PARTS
    assert parts == set(range(1, rare.PARTS + 1))


def test_the_cases_of_a_large_test_are_spread_over_make_test_and_every_part():
    found = [rare.part_of(f"case-{number}") for number in range(600)]
    assert 150 < found.count(None) < 250
    assert all(90 < found.count(part) < 180 for part in range(1, rare.PARTS + 1))
