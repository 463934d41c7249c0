"""A libms_ce.so that is missing, cut off, foreign or of another version is named, with what to do; nothing crashes."""

from __future__ import annotations

import copy
import json
import shutil
import struct
import subprocess
import warnings
from pathlib import Path

import pytest

from ms_ce import _version
from ms_ce.ops.cpu import library
from tests.faults import preloaded, watched

REMEDY = "install ms_ce again (in a checkout: pip install --editable .)"
WHOLE = library.PATH.read_bytes()
CACHED = (library.load, library.problem)


def mapped() -> int:
    """Bytes of the library that the system maps: the end of its last segment, by its headers."""
    (table,), (size, count) = (
        struct.unpack_from("<Q", WHOLE, 32),
        struct.unpack_from("<HH", WHOLE, 54),
    )
    segments = [struct.unpack_from("<QQQQ", WHOLE, table + i * size + 8) for i in range(count)]
    return max(offset + length for offset, _, _, length in segments)


@pytest.fixture
def problem(monkeypatch, tmp_path):
    """Why a file in the library's place cannot be used."""

    def ask(content: bytes | None) -> str | None:
        path = tmp_path / f"libms_ce_{len(list(tmp_path.iterdir()))}.so"  # a name is loaded once
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setattr(library, "PATH", path)
        for function in CACHED:
            function.cache_clear()
        return library.problem()

    yield ask
    for function in CACHED:
        function.cache_clear()


def compiled(folder: Path, source: str) -> bytes:
    (folder / "made.cc").write_text(source)
    command = ["c++", "-shared", "-fPIC", "-o", folder / "made.so", folder / "made.cc"]
    subprocess.run(command, check=True)
    return (folder / "made.so").read_bytes()


def test_the_library_itself(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert problem(WHOLE) is None


def test_missing(problem):
    assert "built without a C++ compiler" in problem(None)


LENGTHS = (0, 3, 20, 63, 64, 100, 500, 4096, 70000, len(WHOLE) // 2, mapped() - 4097, mapped() - 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_cut_off(problem, length):
    with pytest.warns(UserWarning, match="install ms_ce again"):
        text = problem(WHOLE[:length])
    assert text.endswith(REMEDY)


@pytest.mark.parametrize(
    "content",
    [
        b"no library at all\n" * 100,
        WHOLE[:4] + b"\1" + WHOLE[5:],
        WHOLE[:18] + b"\xb7" + WHOLE[19:],
    ],
    ids=["text", "32 bits", "aarch64"],
)
def test_of_another_kind(problem, content):
    with pytest.warns(UserWarning, match="install ms_ce again"):
        assert problem(content).endswith(REMEDY)


def test_foreign(problem, tmp_path_factory):
    foreign = compiled(
        tmp_path_factory.mktemp("foreign"), 'extern "C" int Something() { return 1; }'
    )
    with pytest.warns(UserWarning, match="is no library of ms_ce"):
        assert problem(foreign).endswith(f"is no library of ms_ce: {REMEDY}")


def test_of_another_version(problem, tmp_path_factory):
    names = ("MsCeDescribe", "MsCeIsa", "MsCeIsaList", "MsCeVersion")
    source = "".join(f'extern "C" const char* {name}() {{ return "0.0.9"; }}\n' for name in names)
    with pytest.warns(UserWarning, match="is of ms_ce 0.0.9"):
        text = problem(compiled(tmp_path_factory.mktemp("old"), source))
    assert f"is of ms_ce 0.0.9, and this is {_version.__version__}: {REMEDY}" in text


def of_other_sources(folder: Path, described: dict) -> bytes:
    """A library of this version that describes itself so, with every operation, none of which works."""
    text = json.dumps(json.dumps(described))
    texts = {
        "MsCeDescribe": text,
        "MsCeVersion": json.dumps(_version.__version__),
        "MsCeIsaList": '"x86-64-v2"',
        "MsCeIsa": '"x86-64-v2"',
    }
    source = "".join(
        f'extern "C" const char* {name}() {{ return {value}; }}\n' for name, value in texts.items()
    )
    source += "".join(
        f'extern "C" long {name}() {{ return 0; }}\n' for name in ("MsCeFinished", "MsCeWait")
    )
    return compiled(folder, source)


def imported(tmp_path: Path, content: bytes, program: str) -> watched.Ended:
    """Runs `program` with a copy of ms_ce that has `content` for its library."""
    ignored = shutil.ignore_patterns("__pycache__", "csrc", "custom_aicore")
    shutil.copytree(preloaded.ROOT / "ms_ce", tmp_path / "ms_ce", ignore=ignored)
    (tmp_path / "ms_ce/ops/libms_ce.so").write_bytes(content)
    return watched.python("-c", program, str(tmp_path))


LOSS = """
import sys
sys.path[0] = sys.argv[1]
import mindspore
import ms_ce
logits, target = mindspore.Tensor([[0.0, 0.0]]), mindspore.Tensor([0])
try:
    ms_ce.cross_entropy(logits, target)
except OSError:
    ms_ce.cross_entropy(logits, target)  # says so again
"""
PACK = """
import sys
sys.path[0] = sys.argv[1]
import ms_ce
from ms_ce.ops.cpu import operators
from ms_ce.ops.options import ClassBlock, Options
operators.packed_options(Options(), ClassBlock(), False, False, False)
"""


@pytest.mark.parametrize(
    ("program", "cut", "told"),
    [
        (LOSS, "operations", "which lack the operation CrossEntropyForward:"),
        (PACK, "options", "whose options differ by logit_scale:"),
    ],
)
def test_of_other_sources(tmp_path, program, cut, told):
    described = copy.deepcopy(library.description())
    lost = {"operations": "CrossEntropyForward", "options": "logit_scale"}[cut]
    described[cut] = [each for each in described[cut] if each["name"] != lost]
    ended = imported(tmp_path, of_other_sources(tmp_path, described), program)
    assert ended.status == 1, ended.output
    assert ended.output.splitlines()[-1].endswith(f"of {_version.__version__}, {told} {REMEDY}")


def test_a_processor_below_the_oldest_instruction_set(monkeypatch):
    monkeypatch.setattr(library, "instruction_sets", list)
    library.problem.cache_clear()
    try:
        assert "x86-64-v2 is the oldest" in library.problem()
    finally:
        library.problem.cache_clear()


LOSS = """
import sys
sys.path[0] = sys.argv[1]
import mindspore as ms, ms_ce
from ms_ce.tools import doctor
logits, target = ms.Tensor([[0.0, 1.0, 2.0]]), ms.Tensor([2])
for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
    ms.set_context(mode=mode)
    assert abs(float(ms_ce.CrossEntropyLoss()(logits, target)) - 0.4076059) < 1e-5
doctor.describe()
"""


def test_a_package_with_a_library_that_is_cut_off(tmp_path):
    """The import says so once, and the losses are right by primitives of MindSpore."""
    ended = imported(tmp_path, WHOLE[: len(WHOLE) // 2], LOSS)
    assert ended.status == 0, ended.output
    assert ended.output.count("without it the CPU has the slower backend 'composed'") == 1
    assert f"{tmp_path}/ms_ce/ops/libms_ce.so is cut off: {REMEDY}" in ended.output
    assert "cpu        CPU" in ended.output


def test_an_instruction_set_that_there_is_not():
    """Asked for by name, and so an error of every call; the command for bug reports says it."""
    ended = watched.python("-m", "ms_ce", MS_CE_ISA="z80")
    assert ended.status == 0, ended.output
    assert "kernel: none: ms_ce: MS_CE_ISA must be one of x86-64-v" in ended.output
