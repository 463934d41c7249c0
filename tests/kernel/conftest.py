"""The library under test, and every instruction set of it that this CPU runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.library import Library


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", Library().isas(), scope="session")


@pytest.fixture(scope="session")
def default_library() -> Library:
    return Library()


@pytest.fixture
def library(default_library: Library) -> Iterator[Library]:
    """With the default instruction set and threads, whatever a test leaves behind."""
    yield default_library
    default_library.set_isa("auto")
    default_library.set_threads(0)


@pytest.fixture
def isa_library(library: Library, isa: str) -> Library:
    library.set_isa(isa)
    return library
