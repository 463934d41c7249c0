"""Every place of mindformers: the same numbers with the patch; the reference's where ranks split the vocabulary."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ms_ce import reference
from tests.models.libraries import python_of
from tests.models.mindformers_inputs import CASES, LABELS, LOGITS, MASK
from tests.parallel.processes import PATIENCE, free_port, run

ROOT = Path(__file__).resolve().parents[2]
PYTHON = python_of(Path(os.environ["MS_CE_MODELS"]).resolve(), "mindformers")
HERE = Path(__file__).resolve().parent
RANKS = 2
TOLERANCE = 2e-6
GPT = (
    "plain",
    "per token",
    "chunked",
    "multi-token",
    "multi-token per token",
    "multi-token chunked",
)
CORE = ("core", "core graph", "core per token")


@pytest.fixture(scope="module")
def seams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seams")
    command = [str(PYTHON), "-m", "tests.models.mindformers_seams", "results.npz"]
    finished = run(command, folder, {"GLOG_v": "4", "PYTHONPATH": str(ROOT)})
    assert finished.code == 0, finished.output
    with np.load(folder / "results.npz") as arrays:
        return dict(arrays)


def _of(seams, name: str, form: str) -> list[np.ndarray]:
    start = f"{name}/{form}/"
    return [array for key, array in seams.items() if key.startswith(start)]


def _compare(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * np.abs(other).max())


@pytest.mark.parametrize("form", ["patched", "linear"])
@pytest.mark.parametrize("name", GPT)
def test_gpt_model(seams, name, form):
    """Loss, and the gradients of embedding, decoder and output layer."""
    _compare(_of(seams, name, form), _of(seams, name, "without"))


def test_multi_token_prediction_has_its_part_in_the_gradients(seams):
    """Or the test above would say nothing of it."""
    with_it, without = _of(seams, "multi-token", "linear"), _of(seams, "plain", "linear")
    assert np.abs(with_it[-1] - without[-1]).max() > 1e-3


@pytest.mark.parametrize("name", CORE)
def test_core(seams, name):
    _compare(_of(seams, name, "patched"), _of(seams, name, "without"))


@pytest.mark.parametrize("name", CORE)
def test_static(seams, name):
    """mindformers' own stops at OneHotExt, which has no CPU kernel; core's has the same formula."""
    _compare(_of(seams, name.replace("core", "static"), "patched"), _of(seams, name, "without"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        str(PYTHON.with_name("msrun")),
        f"--worker_num={RANKS}",
        f"--local_worker_num={RANKS}",
        f"--master_port={free_port()}",
        f"--log_dir={folder / 'logs'}",
        "--join=True",
        str(HERE / "mindformers_ranks.py"),
        str(folder),
    ]
    programs = os.pathsep.join([str(PYTHON.parent), os.environ["PATH"]])
    variables = {"PATH": programs, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **PATIENCE}
    finished = run(command, folder, variables)
    assert finished.code == 0, finished.output
    results = []
    for rank in range(RANKS):
        with np.load(folder / f"rank{rank}.npz") as arrays:
            results.append(dict(arrays))
    return results


@pytest.mark.parametrize("name", CASES)
def test_tensor_parallel(ranks, name):
    """A block of the vocabulary on each rank; the gradient times the group's size, where the loss compensates."""
    options, _, masked = CASES[name]
    rows = reference.cross_entropy(LOGITS.astype(np.float64), LABELS, reduction="none").loss
    weight = MASK.astype(np.float64) if masked else np.ones_like(rows)
    mean = masked and name != "per token"
    divisor = weight.sum() + 1e-8 if mean else 1.0
    gradient = reference.cross_entropy_grad(
        LOGITS.astype(np.float64), LABELS, reduction="none", grad_loss=weight / divisor
    ).logits
    factor = RANKS if options.get("compensate_loss_sense_tp", True) else 1
    expected = rows if not masked else (rows * weight).sum() / divisor
    for block, rank in zip(np.split(gradient, RANKS, axis=1), ranks, strict=True):
        np.testing.assert_allclose(rank[f"{name}/0"].reshape(np.shape(expected)), expected, 2e-6)
        np.testing.assert_allclose(rank[f"{name}/gradient"], factor * block, atol=2e-6)
        if name == "per token":
            np.testing.assert_allclose(rank["per token/1"], [MASK.sum()])
