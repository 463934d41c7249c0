"""Fixtures that all tests share. MindSpore is imported only by the tests that need it."""

from __future__ import annotations

import os

import pytest

from tests import leaks

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings would bury a failure


def pytest_itemcollected(item):
    """Under `--dist loadgroup` a module with costly fixtures stays on one worker; the integration tests spread.

    Not in pytest_collection_modifyitems: there xdist has read the groups before any conftest is asked.
    """
    if item.path.parent.name != "integration" or item.path.stem == "test_examples":
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def nothing_leaks():
    """What a test changes in MindSpore's context or in the environment, it restores, also when it fails."""
    before = leaks.settings()
    yield
    leaked = leaks.restore(before)
    assert not leaked, f"left for the tests after this one: {leaked}"
