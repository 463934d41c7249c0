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
    return _run(EXAMPLES / name, folder, *options)


def _run(script: Path, folder: Path, *options: object) -> str:
    spec = importlib.util.find_spec("ms_ce")
    assert spec is not None
    assert spec.origin is not None
    search_path = [str(Path(spec.origin).parents[1]), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [sys.executable, str(script), *map(str, options)],
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


def _log_softmax(x: np.ndarray) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def _token_numbers(hidden, table, target):
    """Log-probabilities, entropies and which tokens count, by the plain formula."""
    log_p = _log_softmax(hidden[:, :-1] @ table.T)
    following = target[:, 1:]
    counts = following != -100
    chosen = np.take_along_axis(log_p, np.where(counts, following, 0)[..., None], -1)[..., 0]
    return chosen * counts, -(np.exp(log_p) * log_p).sum(-1) * counts, counts


def _plain_dpo(hidden, table, target, reference_log_prob):
    ratio = _token_numbers(hidden, table, target)[0].sum(-1) - reference_log_prob
    return np.log1p(np.exp(-0.1 * (ratio[:2] - ratio[2:]))).mean()


def _plain_grpo(hidden, table, target, old_log_prob, advantage):
    log_prob, entropy, counts = _token_numbers(hidden, table, target)
    ratio, gain = np.exp(log_prob - old_log_prob), advantage[:, None]
    clipped = np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain) + 0.01 * entropy
    return -((clipped * counts).sum(-1) / counts.sum(-1)).mean()


@pytest.mark.parametrize("name", ("dpo", "grpo"))
def test_preference_losses_are_the_plain_formulas(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, and the derivative along a direction by central differences of the plain formula, in float64."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import mindspore as ms
    import preference_losses
    from mindspore import Tensor

    random = np.random.default_rng(3)
    hidden, table = random.normal(size=(4, 7, 5)), random.normal(size=(11, 5))
    target = random.integers(0, 11, (4, 7))
    target[:, :3] = -100
    log_prob = _token_numbers(hidden * 0.9, table, target)[0]
    rest = (log_prob.sum(-1),) if name == "dpo" else (log_prob, random.normal(size=4))
    loss = getattr(preference_losses, f"{name}_loss")
    plain = _plain_dpo if name == "dpo" else _plain_grpo
    tensors = [Tensor(each) for each in (hidden, table, target, *rest)]
    value, gradients = ms.value_and_grad(loss, (0, 1))(*tensors)
    assert float(value) == pytest.approx(plain(hidden, table, target, *rest), rel=1e-5)
    for place, (point, gradient) in enumerate(zip((hidden, table), gradients, strict=True)):
        step = 1e-6 * random.normal(size=point.shape)
        moved = [[hidden, table], [hidden, table]]
        moved[0][place], moved[1][place] = point + step, point - step
        upper, lower = (plain(*pair, target, *rest) for pair in moved)
        assert (gradient.asnumpy() * step).sum() == pytest.approx((upper - lower) / 2, rel=1e-4)


def test_preference_losses_run(tmp_path: Path) -> None:
    output = run_example("preference_losses.py", tmp_path)
    assert re.search(r"DPO loss 0\.\d+, gradient norm \d", output)
    assert re.search(r"GRPO loss -?0\.\d+, gradient norm \d", output)


def test_distillation_learns(tmp_path: Path) -> None:
    output = run_example("distillation.py", tmp_path, "--steps", 12)
    first, last = (float(value) for value in re.findall(r"divergence (\d+\.\d+)", output))
    assert last < 0.9 * first


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


def test_digits_are_learnt(tmp_path: Path) -> None:
    output = run_example("digits.py", tmp_path, "--epochs", 3, "--pictures", 1500)
    epochs = re.findall(
        r"epoch (\d): training loss ([\d.]+); test loss ([\d.]+), accuracy ([\d.]+), perplexity ([\d.]+)",
        output,
    )
    assert [epoch[0] for epoch in epochs] == ["1", "2", "3"]
    first, *_, last = (list(map(float, epoch[1:])) for epoch in epochs)
    assert last[0] < first[0]
    assert last[2] > 0.5  # guessing reaches 0.1
    assert last[3] == pytest.approx(np.exp(last[1]), rel=2e-3)


def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path) -> None:
    output = run_example("gradient_accumulation.py", tmp_path)
    whole, right, means = map(float, re.findall(r"loss ([\d.]+)", output))
    sums, of_means = map(float, re.findall(r"differ by ([\d.e+-]+)", output))
    assert right == pytest.approx(whole, abs=2e-4)
    assert sums < 1e-5
    assert abs(means - whole) > 1e-3
    assert of_means > 0.1


def test_an_exported_network_is_loaded_by_mindspore_alone(tmp_path: Path) -> None:
    output = run_example("export_and_reload.py", tmp_path, "--output", tmp_path / "carried")
    assert "1 operators of the graph now look for ./libms_ce.so" in output
    here, there = map(float, re.search(r"here ([\d.]+), .* ([\d.]+)", output).groups())
    assert here == pytest.approx(there, abs=2e-6)


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_show_what_they_showed(notebook: Path, tmp_path: Path) -> None:
    """Their own assertions hold, every cell was executed in turn, and what they print has the same form."""
    cells = [
        cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    shown = "".join(text for output in outputs for text in output.get("text", ()))
    script = tmp_path / f"{notebook.stem}.py"
    sources = ["import matplotlib", 'matplotlib.use("Agg")', *("".join(c["source"]) for c in cells)]
    script.write_text("\n".join(sources), encoding="utf-8")
    printed = _run(script, tmp_path)
    assert _without_numbers(printed) == _without_numbers(shown)


def _without_numbers(text: str) -> list[str]:
    return [re.sub(r"[\d.\s]+", " # ", line) for line in text.splitlines()]


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
