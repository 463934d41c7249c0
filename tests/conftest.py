"""Fixtures that all tests share. MindSpore is imported only by the tests that need it."""

from __future__ import annotations

import gc
import os
from collections import Counter

import pytest
from packaging.specifiers import SpecifierSet

from tests.support import leaks, rare

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings would bury a failure
COSTLY = ("test_capture", "test_examples")  # integration tests that share what takes minutes


def pytest_itemcollected(item):
    """Under `--dist loadgroup` a module with costly fixtures stays on one worker; the integration tests spread.

    Not in pytest_collection_modifyitems: there xdist has read the groups before any conftest is asked.
    """
    if item.path.parent.name != "integration" or item.path.stem in COSTLY:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
    for mark in item.iter_markers("mindspore"):
        _hold_to(item, *mark.args, **mark.kwargs)


def _hold_to(
    item,
    versions: str,
    *,
    reason: str,
    run: bool = True,
    always: bool = True,
    only: dict | None = None,
) -> None:
    """With another MindSpore than these the test must fail, or the mark is wrong; always=False: it may fail; run=False:
    it is not tried. `only` names the parameters of the tests that are meant."""
    import mindspore

    given = item.callspec.params if only else {}
    if any(given[name] != value for name, value in (only or {}).items()):
        return
    if mindspore.__version__ not in SpecifierSet(versions):
        reason = f"MindSpore {versions}: {reason}"
        item.add_marker(pytest.mark.xfail(reason=reason, strict=always, run=run))


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Marks the cases of large tests that are rare (tests/support/rare.py)."""
    cases = [
        item
        for item in items
        if hasattr(item, "callspec")
        and item.path.parent.name in rare.FOLDERS
        and not item.get_closest_marker("rare")
    ]
    number = Counter((item.path, item.originalname) for item in cases)
    for item in cases:
        part = rare.part_of(item.callspec.id)
        if part and number[item.path, item.originalname] >= rare.MANY:
            item.add_marker(pytest.mark.rare(part=part))


def pytest_collection_finish(session):
    """MindSpore collects garbage each time before it compiles a Cell. That need not look through the modules and tests
    that are loaded by now, which takes a third of a small graph's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_leaks():
    """What a test changes in MindSpore's context or in the environment, it restores, also when it fails."""
    before = leaks.settings()
    yield
    leaked = leaks.restore(before)
    assert not leaked, f"left for the tests after this one: {leaked}"
