"""`python -m ms_ce`: its commands, what they refuse, and what they end with."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from ms_ce import __main__ as command_line
from ms_ce import __version__, reference
from ms_ce.tools import bench, doctor, measure


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ms_ce", *arguments])
    try:
        return command_line.main()
    except SystemExit as ended:
        return int(ended.code or 0)


def test_without_a_command_it_is_the_doctor(monkeypatch, capsys):
    assert run(monkeypatch) == 0
    first = capsys.readouterr().out
    assert run(monkeypatch, "doctor") == 0
    assert capsys.readouterr().out == first
    assert first.startswith(f"ms_ce {__version__}, mindspore {ms.__version__}")


def test_table_and_version(monkeypatch, capsys):
    assert run(monkeypatch, "table") == 0
    assert capsys.readouterr().out == doctor.support_table() + "\n"
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"ms_ce {__version__}\n"


def test_help_names_every_command_and_the_exit_codes(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for word in ("doctor", "table", "bench", "build-ascend", "Exit codes"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["benchmark"], "invalid choice: 'benchmark'"),
        (["bench", "--shape", "32000"], "--shape: must be rows,classes or N,C,d1,…,d5"),
        (["bench", "--shape", "8,zero"], "got '8,zero'"),
        (["bench", "--shape", "0,10"], "each at least 1"),
        (["bench", "--shape", "1,2,3,4,5,6,7,8"], "got '1,2,3,4,5,6,7,8'"),
        (["bench", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["bench", "--mode", "eager"], "invalid choice: 'eager'"),
        (["bench", "--label-smoothing", "1.5"], "between 0 and 1, got '1.5'"),
        (["bench", "--ignored", "nan"], "between 0 and 1, got 'nan'"),
        (["bench", "--seconds", "0"], "from 1 to 3600, got '0'"),
        (["bench", "--picture", "no/such/folder/a.png"], "in a folder that exists"),
        (["bench", "--picture", "a.txt"], "must be a .png, .svg or .pdf"),
        (["bench", "--shape", "1000000000,1000"], "GB are free; choose fewer rows"),
    ],
)
def test_arguments_that_do_not_fit(monkeypatch, capsys, arguments, told):
    assert run(monkeypatch, *arguments) == 2
    assert told in capsys.readouterr().err


def test_a_picture_needs_matplotlib_only_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert run(monkeypatch, "bench", "--picture", "a.png") == 2
    assert "pip install matplotlib" in capsys.readouterr().err
    assert bench._picture_path(SimpleNamespace(picture=None)) is None


def test_a_small_benchmark(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "picture.png"
    small = ["--shape", "6,4,3", "--mode", "pynative", "--seconds", "1", "--ignored", "0.3"]
    assert run(monkeypatch, "bench", *small, "--json", "--picture", str(picture)) == 0
    printed = capsys.readouterr()
    assert "the right answer, in float64" in printed.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(printed.out)
    assert found["problem"]["shape"] == [6, 4, 3]
    assert [(row["pass"], row["loss"]) for row in found["results"]] == [
        (computation, loss) for computation in measure.PASSES for loss in ("ms_ce", "mindspore")
    ]
    for row in found["results"]:
        assert row["problem"] is None
        assert row["calls"] >= 3
        assert 0 < row["p25_ms"] <= row["median_ms"] <= row["p75_ms"]


class _Half(nn.Cell):
    """A wrong loss."""

    def construct(self, logits, target):
        return ms.ops.cross_entropy(logits, target) / 2


class _Raises(nn.Cell):
    def construct(self, logits, target):
        raise ValueError("no kernel for it\nand more")


@pytest.mark.parametrize(("name", "code"), [("ms_ce", 1), ("mindspore", 0)])
@pytest.mark.parametrize("bad", [_Half, _Raises])
def test_no_wrong_answer_is_timed(monkeypatch, capsys, tmp_path, name, code, bad):
    """The other loss is timed all the same, and only ours decides what the command ends with."""
    monkeypatch.chdir(tmp_path)
    right = measure.losses(measure.Problem((4, 3), "float32", 0.0, 0.0))
    monkeypatch.setattr(measure, "losses", lambda problem: right | {name: bad})
    small = ["--shape", "4,3", "--mode", "pynative", "--seconds", "1", "--json"]
    assert run(monkeypatch, "bench", *small) == code
    for row in json.loads(capsys.readouterr().out)["results"]:
        if row["loss"] != name:
            assert row["problem"] is None
            assert row["calls"] >= 3
        else:
            told = "wrong: loss off by 5.0e-01" if bad is _Half else "no kernel for it"
            assert row["problem"].startswith(told)
            assert row["calls"] == 0


def test_what_is_expected_is_the_reference(monkeypatch):
    problem = measure.Problem((40, 5, 2), "float32", 0.1, 0.25)
    logits, labels = problem.inputs()
    expected = measure.Expected(problem, logits.asnumpy(), labels.asnumpy())
    given = (logits.asnumpy(), labels.asnumpy())
    loss = float(reference.cross_entropy(*given, label_smoothing=0.1).loss)
    gradient = reference.cross_entropy_grad(*given, label_smoothing=0.1).logits
    assert expected.loss == pytest.approx(loss, rel=1e-12)
    rows = reference.to_rows(gradient)[expected.rows]
    np.testing.assert_allclose(expected.gradient, rows, atol=1e-15)
    as_tensors = ms.Tensor(loss, ms.float32), ms.Tensor(gradient, ms.float32)
    assert expected.problem_with(as_tensors) is None
    spoilt = as_tensors[0], as_tensors[1].asnumpy().copy()
    spoilt[1][:] = np.nan
    assert "gradient off by nan" in expected.problem_with((spoilt[0], ms.Tensor(spoilt[1])))


def test_the_table_compares_what_is_alike():
    entries = [
        measure.Entry("ms_ce", "graph", "forward", milliseconds=[2.0, 1.0, 3.0]),
        measure.Entry("mindspore", "graph", "forward", milliseconds=[1234.5]),
        measure.Entry("mindspore", "graph", "forward + backward", problem="nan"),
    ]
    assert bench.table(entries).splitlines()[2:] == [
        "| graph | forward | ms_ce | 2 | 1.5–2.5 | 617.2 |",
        "| graph | forward | mindspore | 1234 | 1234–1234 |  |",
        "| graph | forward + backward | mindspore | nan | | |",
    ]


def test_build_ascend(monkeypatch, capsys):
    commands = []

    def finish(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=len(commands) - 1)

    monkeypatch.setattr(subprocess, "run", finish)
    assert run(monkeypatch, "build-ascend") == 0
    assert run(monkeypatch, "build-ascend") == 1
    assert commands[0][0] == "bash"
    assert commands[0][1].endswith("custom_aicore/build.sh")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert run(monkeypatch, "build-ascend") == 2
    assert "on Linux only" in capsys.readouterr().err
