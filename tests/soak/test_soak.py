"""A short part of `make soak`: losses are finite and fall, and no step leaves a Python object behind."""

from __future__ import annotations

import collections
import gc

import pytest

from tests.soak import training


def objects() -> collections.Counter:
    gc.unfreeze()
    gc.collect()
    return collections.Counter(type(each).__name__ for each in gc.get_objects())


@pytest.mark.parametrize("case", training.CASES)
def test_some_hundred_steps(case):
    run = training.Training(case)
    first = run.steps(100)  # in which each shape is met: the order is always the same
    before = objects()
    assert run.steps(200) < first
    left = objects() - before
    assert max(left.values(), default=0) < 50, left.most_common(5)
