"""The examples, run as a reader runs them: as scripts, from a folder of their own, only smaller."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SMALL_LANGUAGE_MODEL = {
    "--steps": 120,
    "--evaluate-every": 60,
    "--batch-size": 16,
    "--learning-rate": 5e-3,
    "--context": 32,
    "--width": 64,
    "--layers": 2,
    "--heads": 4,
    "--sample-length": 20,
    "--comparison-rows": 512,
    "--comparison-classes": 20000,
}


def run_example(name: str, folder: Path, *options: object) -> str:
    """Run a script in ``folder`` with the ms_ce that these tests see; the result is its output."""
    spec = importlib.util.find_spec("ms_ce")
    assert spec is not None
    assert spec.origin is not None
    search_path = [str(Path(spec.origin).parents[1]), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, options)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stdout


def test_minimal_prints_the_same_loss_and_gradient_in_both_modes(tmp_path: Path) -> None:
    output = run_example("minimal.py", tmp_path)
    answers = re.findall(r"mode: loss ([\d.]+), gradient.*:\n((?:.*\n)+?)(?=graph|\Z)", output)
    assert len(answers) == 2
    pynative, graph = answers
    logits = np.random.default_rng(0).standard_normal((4, 10))
    rows, target = [0, 1, 3], [1, 0, 9]  # the third row is ignored
    lse = np.log(np.exp(logits).sum(axis=1))
    expected = (lse[rows] - logits[rows, target]).mean()
    assert float(pynative[0]) == pytest.approx(expected, abs=2e-6)
    assert pynative == graph
    assert len(re.findall(r"-?\d+\.\d*", graph[1])) == 40


def test_segmentation_learns(tmp_path: Path) -> None:
    output = run_example("segmentation.py", tmp_path, "--steps", 80, "--width", 8)
    found = re.search(r"loss: ([\d.]+) in the first tenth of the steps, ([\d.]+) in the", output)
    assert found, output
    first, last = map(float, found.groups())
    assert last < 0.8 * first
    *per_class, mean = map(float, re.findall(r"IoU:? ([\d.]+)\n", output))
    assert len(per_class) == 4
    assert mean == pytest.approx(sum(per_class) / 4, abs=1e-3)
    # A network that calls every pixel background reaches 0.2: 0.8 of the pixels in one class of 4.
    assert mean > 0.25


@pytest.fixture(scope="module")
def language_model_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("language_model")
    options = [part for option in SMALL_LANGUAGE_MODEL.items() for part in option]
    return run_example("train_language_model.py", folder, *options), folder / "demo_output"


def test_language_model_beats_the_bigram_baseline(language_model_run: tuple[str, Path]) -> None:
    printed, output = language_model_run
    losses = json.loads((output / "losses.json").read_text(encoding="utf-8"))
    assert f"bigram baseline: {losses['bigram']:.3f} nats" in printed
    assert len(losses["training"]) == SMALL_LANGUAGE_MODEL["--steps"]
    steps, validation = zip(*losses["validation"], strict=True)
    assert steps == (1, 60, 120)
    assert validation[0] > validation[1] > validation[2]
    assert validation[2] < losses["bigram"] - 0.1
    assert f"validation loss: {validation[2]:.3f}" in printed


def test_language_model_writes_curve_and_samples(language_model_run: tuple[str, Path]) -> None:
    printed, output = language_model_run
    assert (output / "loss_curve.png").read_bytes().startswith(PNG_SIGNATURE)
    samples = (output / "samples.txt").read_text(encoding="utf-8")
    assert samples.strip() in printed
    texts = samples.removesuffix("\n").split("\n\n=====\n\n")
    for text, prompt in zip(texts, ("The ", "A class ", "If an object "), strict=True):
        assert text.startswith(prompt)
        assert len(text) == len(prompt) + SMALL_LANGUAGE_MODEL["--sample-length"]


def test_language_model_ends_with_the_comparison(language_model_run: tuple[str, Path]) -> None:
    printed, _ = language_model_run
    assert "512 x 20000 fp32" in printed
    growth = {}
    for implementation in ("mindspore.ops.cross_entropy", "ms_ce.cross_entropy"):
        row = re.search(
            rf"^{re.escape(implementation)} +([\d.]+) ms +([\d.]+)x +(\d+) MB$", printed, re.M
        )
        assert row, printed
        assert float(row[1]) > 0
        growth[implementation] = int(row[3])
    gradient = 512 * 20000 * 4 / 1e6
    assert gradient - 1 <= growth["ms_ce.cross_entropy"] <= 1.5 * gradient
    assert growth["mindspore.ops.cross_entropy"] > 3 * gradient
    assert "Same answer: loss" in printed


def test_language_model_does_not_see_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from language_model.model import LanguageModel, ModelConfig
    from mindspore import Tensor

    model = LanguageModel(ModelConfig(11, context=8, width=16, layers=2, heads=2))
    tokens = np.random.default_rng(0).integers(0, 11, (1, 8)).astype(np.int32)
    changed = tokens.copy()
    changed[0, 5] = (tokens[0, 5] + 1) % 11
    before, after = (model(Tensor(ids)).asnumpy() for ids in (tokens, changed))
    np.testing.assert_array_equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).any(axis=1).all()


def test_validation_text_is_not_in_the_training_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from language_model.data import load_corpus

    corpus = load_corpus()
    training, validation = (
        set(corpus.decode(ids).split("\n\n")) for ids in (corpus.training, corpus.validation)
    )
    assert (training & validation) <= {""}
    assert 0.05 < len(corpus.validation) / len(corpus.training) < 0.2
