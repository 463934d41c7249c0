"""Train a small character language model with ms_ce, in graph mode on CPU.

Run ``python examples/train_language_model.py`` (about three minutes on two cores). It writes the
loss curve, the losses and samples of generated text into ``--output``, and ends with a table that
compares the loss with MindSpore's own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import mindspore as ms
from compare_losses import comparison_table
from language_model.data import (
    Corpus,
    bigram_cross_entropy,
    consecutive_batches,
    load_corpus,
    random_batches,
)
from language_model.generation import generate
from language_model.model import LanguageModel, ModelConfig
from language_model.training import (
    LanguageModelLoss,
    TrainingConfig,
    create_optimizer,
    mean_loss,
)
from mindspore import Tensor, nn
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot

PROMPTS = ("The ", "A class ", "If an object ")
VALIDATION_BATCH_SIZE = 32
Curve = list[tuple[int, float]]


def parse_arguments() -> argparse.Namespace:
    model, training = ModelConfig(vocabulary_size=0), TrainingConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=training.steps)
    parser.add_argument("--batch-size", type=int, default=training.batch_size)
    parser.add_argument("--learning-rate", type=float, default=training.learning_rate)
    parser.add_argument("--context", type=int, default=model.context, help="characters seen")
    parser.add_argument("--width", type=int, default=model.width)
    parser.add_argument("--layers", type=int, default=model.layers)
    parser.add_argument("--heads", type=int, default=model.heads)
    parser.add_argument("--evaluate-every", type=int, default=100, help="steps")
    parser.add_argument("--sample-length", type=int, default=300, help="characters")
    parser.add_argument("--comparison-rows", type=int, default=2048)
    parser.add_argument("--comparison-classes", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    return parser.parse_args()


def train(
    model: LanguageModel,
    corpus: Corpus,
    context: int,
    config: TrainingConfig,
    evaluate_every: int,
    seed: int,
) -> tuple[Curve, Curve]:
    """Train the model in place; the result is (step, loss) of training and of validation."""
    loss = LanguageModelLoss(model)
    optimizer = create_optimizer(model.trainable_params(), config)
    training_step = nn.TrainOneStepCell(loss, optimizer).set_train()
    batches = random_batches(corpus.training, config.batch_size, context, seed)
    training_curve: Curve = []
    validation_curve: Curve = []
    progress = tqdm(range(1, config.steps + 1), desc="training", unit="step")
    for step in progress:
        tokens, targets = next(batches)
        training_curve.append((step, float(training_step(Tensor(tokens), Tensor(targets)))))
        if step == 1 or step % evaluate_every == 0 or step == config.steps:
            held_out = consecutive_batches(corpus.validation, VALIDATION_BATCH_SIZE, context)
            validation_curve.append((step, mean_loss(loss, held_out)))
        progress.set_postfix(
            training=f"{training_curve[-1][1]:.3f}", validation=f"{validation_curve[-1][1]:.3f}"
        )
    return training_curve, validation_curve


def plot_loss_curve(path: Path, training: Curve, validation: Curve, bigram: float) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(*zip(*training, strict=True), color="tab:blue", alpha=0.35, label="training batch")
    axes.plot(*zip(*validation, strict=True), color="tab:blue", marker="o", label="validation")
    axes.axhline(bigram, color="tab:gray", linestyle="--", label="bigram baseline")
    axes.set(xlabel="step", ylabel="cross entropy (nats per character)", ylim=(0, None))
    axes.set_title("Character language model trained with ms_ce.LinearCrossEntropyLoss")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(arguments.seed)

    corpus = load_corpus()
    bigram = bigram_cross_entropy(corpus)
    model = LanguageModel(
        ModelConfig(
            len(corpus.alphabet),
            arguments.context,
            arguments.width,
            arguments.layers,
            arguments.heads,
        )
    )
    print(
        f"text: {len(corpus.training):,} training and {len(corpus.validation):,} validation "
        f"characters, alphabet of {len(corpus.alphabet)}\n"
        f"model: {sum(parameter.size for parameter in model.trainable_params()):,} parameters\n"
        f"bigram baseline: {bigram:.3f} nats per character of the validation text",
        flush=True,
    )
    config = TrainingConfig(arguments.steps, arguments.batch_size, arguments.learning_rate)
    training, validation = train(
        model, corpus, arguments.context, config, arguments.evaluate_every, arguments.seed
    )
    print(f"validation loss: {validation[-1][1]:.3f} nats per character (bigram {bigram:.3f})")

    curve_path = arguments.output / "loss_curve.png"
    plot_loss_curve(curve_path, training, validation, bigram)
    losses = {"bigram": bigram, "training": training, "validation": validation}
    (arguments.output / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    samples = generate(model, corpus, PROMPTS, arguments.sample_length, arguments.context)
    samples_text = "\n\n=====\n\n".join(samples)
    (arguments.output / "samples.txt").write_text(samples_text + "\n", encoding="utf-8")
    print(f"\nGenerated text:\n\n{samples_text}\n", flush=True)

    print(comparison_table(arguments.comparison_rows, arguments.comparison_classes))
    print(f"\nLoss curve, losses and samples are in {arguments.output}/")


if __name__ == "__main__":
    main()
