"""The table of backends says what partitioned graphs use, in `available_backends()` and in `python -m ms_ce`."""

import mindspore as ms
import pytest

import ms_ce
from ms_ce import __main__ as command
from ms_ce import backend
from ms_ce.ops import ascend, cpu_operators, linear_cpu
from ms_ce.ops.options import ClassBlock, Options


def test_every_backend_says_what_a_partitioned_graph_uses():
    table = {row.name: row.partitioned for row in ms_ce.available_backends()}
    assert set(table) == {"cpu", "ascend", "composed"}
    assert table["cpu"] == "nothing: MindSpore partitions no graphs on CPU"
    assert table["ascend"].startswith("the fused kernel for class indices (self_define_shard)")
    assert table["composed"] == "primitives with sharding strategies"


def test_the_first_fields_of_a_row_are_what_they_were():
    assert ms_ce.available_backends()[0]._fields[:5] == (
        "name",
        "device",
        "dtypes",
        "description",
        "reason",
    )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (None, "'ascend': the fused kernel for class indices"),
        ("no hands", "'composed': primitives with sharding strategies, since 'ascend' cannot be"),
    ],
)
def test_the_choice_follows_the_kernel(monkeypatch, reason, expected):
    monkeypatch.setattr(backend, "_reason", lambda row: reason)
    assert backend.partitioned().startswith(expected)
    assert (reason or "the fused kernel") in backend.partitioned()


def test_the_command_prints_the_choice(capsys):
    command.describe()
    printed = capsys.readouterr().out
    assert "a partitioned graph (semi_auto_parallel, auto_parallel, AutoParallel)" in printed
    assert backend.partitioned() in printed


@pytest.mark.parametrize(
    "make",
    [
        lambda: cpu_operators.packed_options(Options(), ClassBlock(), False, False),
        lambda: cpu_operators.no_weight(ms.float32),
        lambda: cpu_operators.no_weight(ms.bfloat16),
        lambda: linear_cpu._plan(0, False, False),
        lambda: ascend._no_weight(),
    ],
)
def test_calls_share_no_tensor(make):
    """Several threads may call at once."""
    first, second = make(), make()
    assert first is not second
    assert first.dtype == second.dtype
    assert (first.float().asnumpy() == second.float().asnumpy()).all()
