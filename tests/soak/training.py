"""Steps of a tiny model, logits or the linear loss, in PyNative or compiled, with shapes from a set of 20.

Few operators of MindSpore stand around a loss: each costs more than a loss of these sizes. In PyNative they keep memory
too, so that there are steps of the same operators without the loss to compare with.
"""

from __future__ import annotations

import itertools
import math

import mindspore as ms
import numpy as np

import ms_ce

_ROWS, _CLASSES, _FEATURES = (1, 3, 8, 33, 100), (2, 17, 40, 64), 16
# Rows and classes; the order of steps is drawn.
SHAPES = tuple(itertools.product(_ROWS, _CLASSES))
CASES = ("pynative-loss", "pynative-linear", "graph-loss", "graph-linear")
_LEARNING_RATE = 0.05
# Steps whose losses are read together. PyNative runs those of one time in so many behind Python, as MindSpore does
# unless told otherwise: that takes four times the processor's time.
_UNREAD, _BEHIND_PYTHON = 20, 8


class _Model(ms.nn.Cell):
    """One of the heads of a model, whose scale they share, and its loss."""

    def __init__(self, scale: ms.Parameter, table: np.ndarray, linear: bool, bare: bool):
        super().__init__()
        self.scale = scale
        self.table = ms.Parameter(ms.Tensor(table), name=f"table of {len(table)}")
        self.linear, self.bare, self.matmul = linear, bare, ms.ops.MatMul(transpose_b=True)

    def construct(self, x, target):
        if self.linear:
            if self.bare:
                return self.table * self.scale
            return ms_ce.linear_cross_entropy(x * self.scale, self.table, target)
        logits = self.matmul(x * self.scale, self.table)
        return logits if self.bare else ms_ce.cross_entropy(logits, target, label_smoothing=0.05)


class Training:
    """A run of one of CASES. The inputs tell their class, so that the loss falls.

    One that is `bare` has the same operators but for the loss, and learns nothing.
    """

    def __init__(self, case: str, bare: bool = False):
        self.mode, loss = case.split("-")
        self.rate = 0.0 if bare else _LEARNING_RATE
        self.random = np.random.default_rng(0)
        self.centres = self._normal(max(_CLASSES))
        scale = ms.Parameter(ms.ops.ones(_FEATURES, ms.float32), name="scale")
        tables = [0.1 * self._normal(each) for each in _CLASSES]
        heads = [_Model(scale, table, loss == "linear", bare) for table in tables]
        self.steps_of = dict(zip(_CLASSES, map(self._step_of, heads), strict=True))

    def _normal(self, rows: int) -> np.ndarray:
        return self.random.normal(size=(rows, _FEATURES)).astype(np.float32)

    def _step_of(self, model: _Model):
        """Gradient descent on a head and the scale."""
        weights = ms.ParameterTuple([model.scale, model.table])
        gradient, descend = ms.value_and_grad(model, None, weights), ms.ops.ApplyGradientDescent()

        def step(x, target):
            value, gradients = gradient(x, target)
            descend(weights[0], self.rate, gradients[0])
            descend(weights[1], self.rate, gradients[1])
            return value

        return ms.jit(step) if self.mode == "graph" else step

    def _some(self, count: int) -> float:
        """The sum of the losses of so many steps, of which none is waited for before the last."""
        shapes = [SHAPES[self.random.integers(len(SHAPES))] for _ in range(count)]
        losses = []
        for rows, classes in shapes:
            target = self.random.integers(0, classes, rows).astype(np.int32)
            x = self.centres[target] + 0.1 * self._normal(rows)
            losses.append(self.steps_of[classes](ms.Tensor(x), ms.Tensor(target)))
        total = 0.0
        for loss, (rows, classes) in zip(losses, shapes, strict=True):
            value = float(loss.asnumpy().mean())
            assert math.isfinite(value), f"loss {value} of {rows} rows and {classes} classes"
            # By what knowing nothing costs: losses of few classes and of many count alike.
            total += value / math.log(classes)
        return total

    def steps(self, count: int) -> float:
        """The mean loss of so many steps, as a share of that of equal probabilities."""
        total = 0.0
        for part in [_UNREAD] * (count // _UNREAD) + [count % _UNREAD]:
            waits = self.mode == "pynative" and bool(self.random.integers(_BEHIND_PYTHON))
            ms.set_context(pynative_synchronize=waits)
            try:
                total += self._some(part)
            finally:
                ms.set_context(pynative_synchronize=False)
        return total / count
