"""docs/hardening.md names tests: they are there."""

from __future__ import annotations

import re

from tests.faults.preloaded import ROOT

DOCUMENT = (ROOT / "docs/hardening.md").read_text()
SOURCES = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]


def test_the_tests_that_the_document_names_are_there():
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", DOCUMENT))
    assert len(named) > 20
    missing = {name for name in named if not any(f"def {name}(" in text for text in SOURCES)}
    assert missing == set()


def test_the_files_that_the_document_names_are_there():
    paths = re.findall(r"\btests/[\w/]+\.py\b", DOCUMENT)
    assert paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []
