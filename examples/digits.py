"""Classify digits with mindspore.train.Model: loss, callbacks, a metric.

Run ``python examples/digits.py`` (a quarter of a minute on two cores). The digits are drawn by this script in the
fonts that matplotlib brings, turned, moved and blurred by noise. A small network learns them with label smoothing;
after each epoch a callback evaluates it by a metric that counts rows and not batches.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib
import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.dataset import NumpySlicesDataset, config
from mindspore.train import Callback, Metric, Model
from PIL import Image, ImageDraw, ImageFont

import ms_ce

SIZE, CLASSES = 16, 10
FONTS = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*[!y].ttf"))


def draw_digit(generator: np.random.Generator, digit: int) -> np.ndarray:
    """A picture (SIZE, SIZE) with values about 0 to 1."""
    font = ImageFont.truetype(str(generator.choice(FONTS)), int(generator.integers(20, 27)))
    picture = Image.new("L", (2 * SIZE, 2 * SIZE))
    place = SIZE + generator.uniform(-2, 2, size=2)
    ImageDraw.Draw(picture).text(tuple(place), str(digit), 255, font, anchor="mm")
    turned = picture.rotate(generator.uniform(-12, 12), Image.Resampling.BILINEAR)
    pixels = np.asarray(turned.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255
    return pixels + 0.15 * generator.standard_normal(pixels.shape)


def draw_digits(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (count, SIZE·SIZE) float32 and labels (count,) int32."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    pictures = np.stack([draw_digit(generator, int(digit)).ravel() for digit in labels])
    return pictures.astype(np.float32), labels.astype(np.int32)


class Numbers(Metric):
    """Loss, accuracy and perplexity of all rows, whatever the batches were."""

    def clear(self) -> None:
        self.loss = self.rows = self.correct = 0.0

    def update(self, logits, labels) -> None:
        stats = ms_ce.cross_entropy_with_stats(logits, labels, reduction="sum")
        self.loss += float(stats.loss)
        self.rows += float(stats.total_weight)
        self.correct += float(stats.num_correct)

    def eval(self) -> dict[str, float]:
        loss = self.loss / self.rows
        accuracy = self.correct / self.rows
        return {"loss": loss, "accuracy": accuracy, "perplexity": math.exp(loss)}


class EvaluateEachEpoch(Callback):
    """Prints what `Model.eval` finds, beside the mean loss of the epoch's steps."""

    def __init__(self, model: Model, data) -> None:
        super().__init__()
        self.model, self.data, self.losses = model, data, []

    def on_train_step_end(self, run_context) -> None:
        self.losses.append(float(run_context.original_args().net_outputs))

    def on_train_epoch_end(self, run_context) -> None:
        epoch = run_context.original_args().cur_epoch_num
        numbers = self.model.eval(self.data, dataset_sink_mode=False)["numbers"]
        shown = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        print(f"epoch {epoch}: training loss {np.mean(self.losses):.3f}; test {shown}")
        self.losses.clear()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=4000, help="to train with")
    arguments = parser.parse_args()
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    config.set_seed(0)

    training = NumpySlicesDataset(draw_digits(0, arguments.pictures), ["picture", "label"])
    test = NumpySlicesDataset(draw_digits(1, 1000), ["picture", "label"], shuffle=False)
    network = nn.SequentialCell(nn.Dense(SIZE * SIZE, 128), nn.ReLU(), nn.Dense(128, CLASSES))
    model = Model(
        network,
        loss_fn=ms_ce.CrossEntropyLoss(label_smoothing=0.1),
        optimizer=nn.Adam(network.trainable_params(), learning_rate=3e-3),
        metrics={"numbers": Numbers()},
    )
    callbacks = [EvaluateEachEpoch(model, test.batch(64))]
    batches = training.batch(32, drop_remainder=True)
    model.train(arguments.epochs, batches, callbacks=callbacks, dataset_sink_mode=False)


if __name__ == "__main__":
    main()
