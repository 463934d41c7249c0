"""MindIR: every Cell and function, out of a file, in another process, where ms_ce has moved to another folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import mindspore as ms
import pytest

import ms_ce
from tests.integration import children
from tests.integration.programs import PROGRAMS

WORKER = "tests.integration.export_worker"


def _copy_package(folder: Path) -> None:
    """ms_ce as it is installed: links become files."""
    source = children.package_parent() / "ms_ce"
    left_out = shutil.ignore_patterns("csrc", "custom_aicore", "__pycache__")
    shutil.copytree(source, folder / "ms_ce", ignore=left_out)


# A graph of composed takes seconds, three forms of a program a quarter of a minute: `make test` has one program without
# the loop over chunks and one with it.
FEW = ["cross_entropy", "linear_cross_entropy chunks"]
OTHERS = [name for name in PROGRAMS if name not in FEW]


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        pytest.param("cpu", list(PROGRAMS), id="cpu"),
        pytest.param("composed", FEW, id="composed"),
        pytest.param("composed", OTHERS, id="composed-others", marks=pytest.mark.rare(part=2)),
    ],
)
def test_graphs_outlive_the_folder_they_were_exported_in(tmp_path, backend, names):
    """All forms at once: gradients too and, where they can be loaded, dynamic shapes."""
    first, second, files = tmp_path / "first", tmp_path / "second", tmp_path / "files"
    _copy_package(first)
    files.mkdir()
    exported = children.run(WORKER, ("export", str(files), backend, *names), tmp_path, [first])
    gradients = sum(PROGRAMS[name].differentiable for name in names)
    assert len(exported) == len(names) * (1 if backend == "cpu" else 2) + gradients
    first.rename(second)
    assert children.run(WORKER, ("load", str(files), backend, *names), tmp_path, [second]) == {}


def _export(folder: Path) -> Path:
    file = folder / "loss.mindir"
    program = PROGRAMS["CrossEntropyLoss"]
    ms.export(program.make("cpu"), *program.tensors(), file_name=str(file), file_format="MINDIR")
    return file


def test_relocation_to_a_named_library(tmp_path):
    file = _export(tmp_path)
    mode = file.stat().st_mode
    assert ms_ce.relocate_mindir(file, "lib/libms_ce.so") == 1
    held = file.read_bytes()
    assert b"lib/libms_ce.so:CrossEntropyForward" in held
    assert str(children.package_parent()).encode() not in held
    assert file.stat().st_mode == mode
    assert [path.name for path in tmp_path.iterdir()] == ["loss.mindir"]


def test_relocation_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError):
        ms_ce.relocate_mindir(tmp_path / "none.mindir")
    (tmp_path / "other.mindir").write_bytes(b"\xff\xff no protobuf")
    with pytest.raises(ValueError, match="is no MindIR that can be read"):
        ms_ce.relocate_mindir(tmp_path / "other.mindir")
