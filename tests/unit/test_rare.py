"""Of the rare tests CI runs one part for each commit, and no part is left out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_part_has_its_turn():
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    parts = {int(n) for source in sources for n in re.findall(r"mark\.rare\(part=(\d+)\)", source)}
    turns = re.search(
        r"^rare=\$\(\(commits % (\d+) \+ 1\)\)$", (ROOT / ".ci" / "run").read_text(), re.M
    )
    assert turns is not None
    assert parts == set(range(1, int(turns[1]) + 1))
