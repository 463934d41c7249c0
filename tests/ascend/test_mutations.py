"""The list of mutations fits the sources it is about. The run itself is mutation_run.py, an eighth of it in CI."""

from __future__ import annotations

import pytest

from tests.ascend.host_model import PROJECT
from tests.ascend.mutations import MUTATIONS, part


def test_there_are_enough():
    assert len(MUTATIONS) >= 20
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("parts", [1, 8])
def test_the_parts_are_the_whole(parts):
    chosen = [part(MUTATIONS, f"{number}/{parts}") for number in range(1, parts + 1)]
    assert sorted(m.name for one in chosen for m in one) == sorted(m.name for m in MUTATIONS)
    assert max(map(len, chosen)) - min(map(len, chosen)) <= 1
    for number in (0, parts + 1):
        with pytest.raises(ValueError, match="a part must be"):
            part(MUTATIONS, f"{number}/{parts}")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_mutation_applies(mutation):
    source = (PROJECT / "op_kernel" / mutation.file).read_text()
    assert source.count(mutation.old) == 1
    assert mutation.old != mutation.new
