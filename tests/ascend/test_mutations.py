"""The list of mutations fits the sources it is about. The run itself is mutation_run.py, which takes minutes."""

from __future__ import annotations

import pytest

from tests.ascend.host_model import PROJECT
from tests.ascend.mutations import MUTATIONS


def test_there_are_enough():
    assert len(MUTATIONS) >= 20
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_mutation_applies(mutation):
    source = (PROJECT / "op_kernel" / mutation.file).read_text()
    assert source.count(mutation.old) == 1
    assert mutation.old != mutation.new
