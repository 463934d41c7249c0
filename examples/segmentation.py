"""Semantic segmentation with (N, C, H, W) logits, class weights and ignore_index 255.

Run ``python examples/segmentation.py`` (under a minute on two cores). A small convolutional
network learns to label discs, squares and crosses in noisy pictures that this script draws. As in
PASCAL VOC, the outline of every shape is labelled 255 and takes no part in the loss.
"""

from __future__ import annotations

import argparse

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeNormal, initializer
from tqdm import tqdm

import ms_ce

CLASSES = ("background", "disc", "square", "cross")
UNLABELLED = 255
PICTURE_SIZE = 40
BATCH_SIZE = 8
NOISE = 0.1


def shape_distance(kind: int, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Distance outside the shape's outline, negative inside, in pixels."""
    ax, ay = np.abs(dx), np.abs(dy)
    if kind == CLASSES.index("disc"):
        return np.hypot(dx, dy) - radius
    if kind == CLASSES.index("square"):
        return np.maximum(ax, ay) - radius
    arm = 0.4 * radius
    return np.maximum(np.minimum(ax, ay) - arm, np.maximum(ax, ay) - radius)


def draw_batch(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 3, H, W) float32 and labels (N, H, W) int32, three shapes to a picture."""
    y, x = np.mgrid[:PICTURE_SIZE, :PICTURE_SIZE]
    pictures = np.zeros((BATCH_SIZE, 3, PICTURE_SIZE, PICTURE_SIZE))
    labels = np.zeros((BATCH_SIZE, PICTURE_SIZE, PICTURE_SIZE), dtype=np.int32)
    for picture, label in zip(pictures, labels, strict=True):
        for _ in range(3):
            kind = int(generator.integers(1, len(CLASSES)))
            centre_x, centre_y = generator.uniform(6, PICTURE_SIZE - 6, size=2)
            distance = shape_distance(kind, x - centre_x, y - centre_y, generator.uniform(6, 10))
            picture[:, distance <= 0] = generator.uniform(0.5, 1, size=(3, 1))
            label[distance <= 1] = UNLABELLED
            label[distance <= -1] = kind
    pictures += NOISE * generator.standard_normal(pictures.shape)
    return pictures.astype(np.float32), labels


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Weights (C,) that even the classes out: inverse frequency, with mean 1 over the pixels."""
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(CLASSES))
    return (counts.sum() / (len(CLASSES) * np.maximum(counts, 1))).astype(np.float32)


class Convolution(nn.Cell):
    """A dilated 3x3 convolution as a matrix product over unfolded neighbourhoods.

    It computes what nn.Conv2d computes; on CPU it is several times faster.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.outputs = outputs
        self.weight = Parameter(initializer(HeNormal(), (outputs, 9 * inputs)), name="weight")

    def construct(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        neighbourhoods = ops.unfold(x, 3, dilation=self.dilation, padding=self.dilation)
        return ops.matmul(self.weight, neighbourhoods).reshape(batch, self.outputs, height, width)


def segmentation_network(width: int) -> nn.Cell:
    """Dilated convolutions that see 31 pixels across, at full resolution."""
    layers: list[nn.Cell] = []
    channels = 3
    for dilation in (1, 2, 4, 8):
        layers += [Convolution(channels, width, dilation), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.SequentialCell([*layers, nn.Conv2d(width, len(CLASSES), 1, has_bias=True)])


def intersection_over_union(network: nn.Cell, generator: np.random.Generator) -> np.ndarray:
    """IoU per class over a few new batches; unlabelled pixels do not count."""
    confusion = np.zeros((len(CLASSES), len(CLASSES)))
    for _ in range(4):
        pictures, labels = draw_batch(generator)
        predicted = network(Tensor(pictures)).asnumpy().argmax(axis=1)
        labelled = labels != UNLABELLED
        np.add.at(confusion, (labels[labelled], predicted[labelled]), 1)
    intersection = confusion.diagonal()
    return intersection / (confusion.sum(axis=0) + confusion.sum(axis=1) - intersection)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=16, help="channels of the network")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    arguments = parser.parse_args()
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    generator = np.random.default_rng(0)

    weight = class_weights(draw_batch(generator)[1])
    loss_function = ms_ce.CrossEntropyLoss(weight=Tensor(weight), ignore_index=UNLABELLED)
    network = segmentation_network(arguments.width)
    optimizer = nn.Adam(network.trainable_params(), learning_rate=arguments.learning_rate)
    training_step = nn.TrainOneStepCell(nn.WithLossCell(network, loss_function), optimizer)
    training_step.set_train()

    losses = []
    progress = tqdm(range(arguments.steps), desc="training", unit="step")
    for _ in progress:
        pictures, labels = draw_batch(generator)
        losses.append(float(training_step(Tensor(pictures), Tensor(labels))))
        progress.set_postfix(loss=f"{losses[-1]:.3f}")

    tenth = max(1, len(losses) // 10)
    print(f"loss: {np.mean(losses[:tenth]):.3f} in the first tenth of the steps, ", end="")
    print(f"{np.mean(losses[-tenth:]):.3f} in the last")
    network.set_train(False)
    scores = intersection_over_union(network, generator)
    for name, class_weight, score in zip(CLASSES, weight, scores, strict=True):
        print(f"  {name:12} weight {class_weight:5.2f}   IoU {score:.3f}")
    print(f"mean IoU: {scores.mean():.3f}")


if __name__ == "__main__":
    main()
