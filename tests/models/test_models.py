"""A few training steps of each library's network, with and without the patch: the same losses and gradients.

MS_CE_MODELS names the folder of the environments that tests.models.libraries makes. With MS_CE_MODELS_TABLE the tables
of docs/model_libraries.md are written anew.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.models.libraries import LIBRARIES, python_of
from tests.parallel.processes import run

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = Path(os.environ["MS_CE_MODELS"]).resolve()
CHOSEN = os.environ.get("MS_CE_MODELS_ONLY", " ".join(LIBRARIES)).split()
STEPS = 3
SIZE = (32000, 4, 256)  # vocabulary, sequences, tokens of each: logits of 131 MB in float32
# float32: MindSpore's own exp on CPU is good to 8e-6 relative, and three steps carry that on.
TOLERANCE = 2e-5


class Runs(dict):
    """Results of one library by form."""

    def gradients(self, form: str) -> list[np.ndarray]:
        with np.load(self[form]["folder"] / "gradients.npz") as arrays:
            return [arrays[name] for name in arrays.files]

    def difference_of_losses(self, form: str) -> float:
        ours, theirs = np.array(self[form]["losses"]), np.array(self["without"]["losses"])
        return float(np.abs(ours / theirs - 1).max())

    def difference_of_gradients(self, form: str) -> float:
        """The largest, in units of the largest gradient of its parameter."""
        return max(
            float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))
            for one, other in zip(self.gradients(form), self.gradients("without"), strict=True)
        )


def _run(name: str, form: str, folder: Path) -> dict:
    folder.mkdir()
    numbers = map(str, (STEPS, *SIZE))
    command = [
        str(python_of(ENVIRONMENTS, name)),
        "-m",
        "tests.models.worker",
        name,
        form,
        *numbers,
    ]
    finished = run(command, folder, {"GLOG_v": "4", "PYTHONPATH": str(ROOT)})
    assert finished.code == 0, finished.output
    return json.loads((folder / "results.json").read_text()) | {"folder": folder}


@pytest.fixture(scope="module", params=CHOSEN)
def library(request, tmp_path_factory):
    library = LIBRARIES[request.param]
    folder = tmp_path_factory.mktemp(library.name)
    return library, Runs({form: _run(library.name, form, folder / form) for form in library.forms})


def test_versions_are_those_of_the_table(library):
    described, runs = library
    for results in runs.values():
        assert (results["version"], results["mindspore"]) == (
            described.version,
            described.mindspore,
        )


def test_same_losses(library):
    described, runs = library
    assert len(set(runs["without"]["losses"])) == STEPS, "the steps change nothing"
    for form in described.forms:
        assert runs.difference_of_losses(form) < TOLERANCE


def test_same_gradients(library):
    described, runs = library
    for form in described.forms:
        assert runs.difference_of_gradients(form) < 10 * TOLERANCE


def test_it_says_what_it_replaced(library):
    described, runs = library
    for form, options in described.forms.items():
        assert (options is None) == ("replaced" not in runs[form])
        assert options is None or runs[form]["replaced"]


def test_no_logits_means_less_memory(library):
    """At least one array of all logits less than the patch that makes them."""
    _, runs = library
    logits = SIZE[0] * SIZE[1] * SIZE[2] * 4
    for form in runs.keys() - {"linear"} if "linear" in runs else ():
        assert runs["linear"]["bytes"] < runs[form]["bytes"] - logits


HEAD = (
    "| library | MindSpore | network | form | losses differ by | gradients differ by | s a step | memory, MB |",
    "|---|---|---|---|---:|---:|---:|---:|",
)


def _rows(described, runs) -> list[str]:
    rows = []
    for form in described.forms:
        fields = [
            f"{described.name} {described.version}",
            described.mindspore,
            described.network,
            form,
        ]
        if form == "without":
            fields += ["", ""]
        else:
            fields += [
                f"{runs.difference_of_losses(form):.0e}",
                f"{runs.difference_of_gradients(form):.0e}",
            ]
        seconds = min(runs[form]["seconds"][1:])
        language = "linear" in described.forms
        fields += [f"{seconds:.2f}", f"{runs[form]['bytes'] / 1e6:.0f}"] if language else ["", ""]
        rows.append("| " + " | ".join(fields) + " |")
    return rows


def test_table(library):
    """Prints the library's rows; writes them into the document where that is asked for."""
    described, runs = library
    rows = _rows(described, runs)
    print("\n".join((*HEAD, *rows)))
    if os.environ.get("MS_CE_MODELS_TABLE"):
        path = ROOT / "docs" / "model_libraries.md"
        start, end = f"<!-- {described.name} -->", f"<!-- end {described.name} -->"
        pattern = re.escape(start) + r".*?" + re.escape(end)
        text = "\n".join((start, "", *HEAD, *rows, "", end))
        new, count = re.subn(pattern, lambda _: text, path.read_text(), flags=re.S)
        assert count == 1, f"{path} has no {start}"
        path.write_text(new)
