"""Steps of a tiny model, logits or the linear loss, in PyNative or compiled, with shapes from a set of 20."""

from __future__ import annotations

import itertools
import math

import mindspore as ms
import numpy as np

import ms_ce

# Rows and classes; the order of steps is drawn.
SHAPES = tuple(itertools.product((1, 3, 8, 33, 100), (2, 17, 40, 64)))
CASES = ("pynative-loss", "pynative-linear", "graph-loss", "graph-linear")
_FEATURES, _CLASSES = 16, max(classes for _, classes in SHAPES)


class _Model(ms.nn.Cell):
    def __init__(self, linear: bool, random: np.random.Generator):
        super().__init__()
        self.scale = ms.Parameter(ms.ops.ones(_FEATURES, ms.float32), name="scale")
        table = random.normal(size=(_CLASSES, _FEATURES)).astype(np.float32)
        self.table = ms.Parameter(ms.Tensor(0.1 * table), name="table")
        self.linear = linear

    def construct(self, x, target, classes):
        hidden, table = x * self.scale, self.table[:classes]
        if self.linear:
            return ms_ce.linear_cross_entropy(hidden, table, target)
        return ms_ce.cross_entropy(ms.ops.matmul(hidden, table.T), target, label_smoothing=0.05)


class Training:
    """A run of one of CASES. The inputs tell their class, so that the loss falls."""

    def __init__(self, case: str):
        mode, loss = case.split("-")
        self.random = np.random.default_rng(0)
        self.centres = self.random.normal(size=(_CLASSES, _FEATURES)).astype(np.float32)
        model = _Model(loss == "linear", self.random)
        optimizer = ms.nn.SGD(model.trainable_params(), learning_rate=0.05)
        gradient = ms.value_and_grad(model, None, optimizer.parameters)

        def step(x, target, classes):
            value, gradients = gradient(x, target, classes)
            optimizer(gradients)
            return value

        self.step = ms.jit(step) if mode == "graph" else step

    def _one(self) -> float:
        rows, classes = SHAPES[self.random.integers(len(SHAPES))]
        target = self.random.integers(0, classes, rows)
        x = self.centres[target] + 0.1 * self.random.normal(size=(rows, _FEATURES)).astype(
            np.float32
        )
        loss = float(
            self.step(
                ms.Tensor(x.astype(np.float32)), ms.Tensor(target.astype(np.int32)), classes
            ).asnumpy()
        )
        assert math.isfinite(loss), f"loss {loss} of {rows} rows and {classes} classes"
        # By what knowing nothing costs: losses of few classes and of many count alike.
        return loss / math.log(classes)

    def steps(self, count: int) -> float:
        """The mean loss of so many steps, as a share of that of equal probabilities."""
        return sum(self._one() for _ in range(count)) / count
