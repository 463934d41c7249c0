"""A few cases of a fixed seed; `make fuzz` draws others."""

from __future__ import annotations

import pytest

from tests.fuzz import kernel, public
from tests.kernel.library import Library

SEED = 1


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_operations(first: int) -> None:
    library = Library()
    for number in range(first, first + 100):
        assert kernel.one(SEED, number, library) > 0


def test_functions() -> None:
    for number in range(60):
        assert public.one(SEED, number, compiled=False) == 1


def test_compiled_functions() -> None:
    for number in range(4):
        assert public.one(SEED, number, compiled=True) == 1
