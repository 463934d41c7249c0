"""The table of backends says what partitioned graphs use, in `available_backends()` and in `python -m ms_ce`."""

import inspect
import threading

import mindspore as ms
import pytest

import ms_ce
from ms_ce import backend
from ms_ce.ops.ascend import rows
from ms_ce.ops.cpu import linear_operators as linear_cpu_operators
from ms_ce.ops.cpu import operators as cpu_operators
from ms_ce.ops.options import ClassBlock, Gradients, Options
from ms_ce.ops.protocol import DistillationForm, Kernels, LinearForm, TopKForm
from ms_ce.ops.table import KERNELS, kernels_of
from ms_ce.tools import doctor

FORMS = {backend.linear_form("composed", 3), *(row.forms().linear for row in backend.TABLE)}
DISTILLATION = {row.forms().distillation for row in backend.TABLE}
TOP_K = {row.forms().top_k for row in backend.TABLE}


def by_name(modules):
    return sorted(modules, key=lambda module: module.__name__)


def test_every_backend_says_what_a_partitioned_graph_uses():
    table = {row.name: row.partitioned for row in ms_ce.available_backends()}
    assert set(table) == {"cpu", "ascend", "composed"}
    assert table["cpu"] == "nothing: MindSpore partitions no graphs on CPU"
    assert table["ascend"].startswith("the fused kernel for class indices (self_define_shard)")
    assert table["composed"] == "primitives with sharding strategies"


def test_table_and_kernels_name_the_same_backends():
    assert list(KERNELS) == [row.name for row in backend.TABLE]


@pytest.mark.parametrize(
    ("module", "protocol"),
    [
        *((kernels_of(row.name), Kernels) for row in backend.TABLE),
        *((module, LinearForm) for module in by_name(FORMS)),
        *((module, DistillationForm) for module in by_name(DISTILLATION)),
        *((module, TopKForm) for module in by_name(TOP_K)),
    ],
    ids=lambda value: value.__name__,
)
def test_a_backend_offers_what_the_protocol_says(module, protocol):
    functions = inspect.getmembers(protocol, inspect.isfunction)
    offered = [name for name, _ in functions if not name.startswith("_")]
    assert len(offered) == {Kernels: 13, LinearForm: 4, DistillationForm: 2, TopKForm: 2}[protocol]
    for name in offered:
        expected = list(inspect.signature(getattr(protocol, name)).parameters.values())[1:]
        parameters = list(inspect.signature(getattr(module, name)).parameters.values())
        assert [p.name for p in parameters] == [p.name for p in expected], name
        assert [p.default for p in parameters] == [p.default for p in expected], name
    for name, kind in protocol.__annotations__.items():
        assert type(getattr(module, name)).__name__ == kind


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
    doctor.describe()
    printed = capsys.readouterr().out
    assert "a partitioned graph (semi_auto_parallel, auto_parallel, AutoParallel)" in printed
    assert backend.partitioned() in printed


@pytest.mark.parametrize(
    "make",
    [
        lambda: cpu_operators.packed_options(Options(), ClassBlock(), False, False, False),
        lambda: cpu_operators.no_weight(ms.float32),
        lambda: cpu_operators.no_weight(ms.bfloat16),
        lambda: linear_cpu_operators.packed_plan(0, False, Gradients()),
        lambda: rows.no_weight(),
    ],
)
def test_threads_share_no_constant(make):
    """Several may call at once."""
    own, others = make(), []
    thread = threading.Thread(target=lambda: others.append(make()))
    thread.start()
    thread.join()
    assert others[0] is not own
    assert others[0].dtype == own.dtype
    assert (others[0].float().asnumpy() == own.float().asnumpy()).all()


def test_a_thread_keeps_its_constants():
    """MindSpore gives each new one a memory of its own."""
    assert cpu_operators.no_weight(ms.float32) is cpu_operators.no_weight(ms.float32)
