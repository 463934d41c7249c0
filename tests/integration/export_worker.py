"""export_worker.py export|load DIRECTORY BACKEND NAMES: graphs of the named programs into files and out of them.

`export` leaves a MindIR and the results of PyNative of each program, `load` prints which file gave other results, and
why. Each does many programs: it is the start of a process that takes long.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import ms_ce
from tests.integration.programs import PROGRAMS, Gradient, numpy_of
from tests.support.tolerances import MODES_AGREE

_BY_ROW = ("logits", "target", "probabilities", "hidden", "teacher", "mask")


def forms(backend: str, names: list[str]):
    """(name of the file, Cell, inputs, inputs to export with)."""
    for name in names:
        program = PROGRAMS[name]
        tensors = program.tensors()
        file = f"{backend}.{name.replace(' ', '_')}"
        yield f"{file}.static", program.make(backend), tensors, tensors
        if program.differentiable:
            yield f"{file}.gradient", Gradient(program.make(backend)), tensors, tensors
        if backend != "cpu":  # docs/graphs.md
            unknown = [
                Tensor(shape=[None, *tensor.shape[1:]], dtype=tensor.dtype)
                if which in _BY_ROW
                else tensor
                for which, tensor in zip(program.inputs, tensors, strict=True)
            ]
            yield f"{file}.dynamic", program.make(backend), tensors, unknown


def export(directory: Path, backend: str, names: list[str]) -> list[str]:
    exported = []
    for name, network, tensors, shapes in forms(backend, names):
        np.savez(directory / f"{name}.npz", *numpy_of(network(*tensors)))
        file = str(directory / f"{name}.mindir")
        ms.export(network, *shapes, file_name=file, file_format="MINDIR")
        exported.append(name)
    return exported


def load(directory: Path, backend: str, names: list[str]) -> dict[str, str]:
    """What went wrong, by file."""
    wrong = {}
    for name, _, tensors, _ in forms(backend, names):
        file = str(directory / f"{name}.mindir")
        try:
            ms_ce.relocate_mindir(file)
            got = numpy_of(nn.GraphCell(ms.load(file))(*tensors))
            with np.load(directory / f"{name}.npz") as expected:
                assert len(got) == len(expected.files)
                for value, key in zip(got, expected.files, strict=True):
                    np.testing.assert_allclose(value, expected[key], **MODES_AGREE)
        except Exception as error:  # reported by the test, which names the file
            wrong[name] = f"{type(error).__name__}: {error}"
    return wrong


if __name__ == "__main__":
    done = {"export": export, "load": load}[sys.argv[1]](
        Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    )
    print(json.dumps(done))
