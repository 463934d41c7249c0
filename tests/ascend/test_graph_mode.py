"""ops/ascend.py in graph mode: its cells compile, attributes reach the operators in order, bprop gives the gradient.

MindSpore primitives stand for the operators here: a graph on CPU takes no operator of the host model.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from ms_ce.ops import ascend, ascend_cells
from ms_ce.ops.options import Options
from tests.ascend.expected import reference, within

ROWS, CLASSES = 6, 30


class Terms(nn.Cell):
    """Which rows count, w·q' of every class, and w[y]."""

    def __init__(self):
        super().__init__()
        self.classes = ms.Tensor(np.arange(CLASSES), ms.int32)

    def construct(self, x, target, weight, ignore_index, smoothing, has_weight):
        keep = ops.cast(ops.not_equal(target, ignore_index), ms.float32)
        index = target * ops.cast(keep, ms.int32)
        one_hot = ops.cast(ops.equal(index.reshape(-1, 1), self.classes), ms.float32)
        classes = weight if has_weight else ops.ones((CLASSES,), ms.float32)
        row_weight = (one_hot * classes).sum(axis=1) * keep
        return keep, ((1.0 - smoothing) * one_hot + smoothing / CLASSES) * classes, row_weight


class Forward(nn.Cell):
    def __init__(self):
        super().__init__()
        self.terms = Terms()

    def construct(self, x, target, weight, reduction, ignore_index, smoothing, z, has_weight):
        keep, factor, row_weight = self.terms(
            x, target, weight, ignore_index, smoothing, has_weight
        )
        lse = ops.logsumexp(x, 1)
        rows = keep * ((factor * (lse.reshape(-1, 1) - x)).sum(axis=1) + z * lse * lse)
        total = row_weight.sum().reshape(1)
        loss = rows
        if reduction != 0:
            loss = rows.sum().reshape(1)
        if reduction == 1:
            loss = loss / total
        return loss, total, lse * keep, ops.zeros((8,), ms.int32)


class Backward(nn.Cell):
    def __init__(self):
        super().__init__()
        self.terms = Terms()

    def construct(
        self,
        g,
        x,
        target,
        weight,
        lse,
        total,
        reduction,
        ignore_index,
        smoothing,
        z,
        has_weight,
        offset,
        classes,
    ):
        keep, factor, _ = self.terms(x, target, weight, ignore_index, smoothing, has_weight)
        rows = keep * g
        if reduction == 1:
            rows = rows / total
        scale = factor.sum(axis=1) + 2.0 * z * lse
        p = ops.exp(x - lse.reshape(-1, 1))
        return rows.reshape(-1, 1) * (scale.reshape(-1, 1) * p - factor)


class NllForward(nn.Cell):
    def __init__(self):
        super().__init__()
        self.terms = Terms()

    def construct(self, x, target, weight, reduction, ignore_index, has_weight):
        _, factor, row_weight = self.terms(x, target, weight, ignore_index, 0.0, has_weight)
        keep = ops.cast(ops.not_equal(target, ignore_index), ms.float32)
        loss = -keep * (factor * x).sum(axis=1)
        total = row_weight.sum().reshape(1)
        if reduction != 0:
            loss = loss.sum().reshape(1)
        if reduction == 1:
            loss = loss / total
        return loss, total, ops.zeros((8,), ms.int32)


class NllBackward(nn.Cell):
    def __init__(self):
        super().__init__()
        self.terms = Terms()

    def construct(self, g, x, target, weight, total, reduction, ignore_index, has_weight):
        keep, factor, _ = self.terms(x, target, weight, ignore_index, 0.0, has_weight)
        rows = keep * g
        if reduction == 1:
            rows = rows / total
        return -rows.reshape(-1, 1) * factor


STANDS_FOR = {
    "MsCeForward": Forward,
    "MsCeBackward": Backward,
    "MsCeNllForward": NllForward,
    "MsCeNllBackward": NllBackward,
}


def stand_in(name: str, per_row: bool):
    return STANDS_FOR[name]()


@pytest.fixture(autouse=True)
def graph_mode(monkeypatch):
    for module in (ascend, ascend_cells):
        monkeypatch.setattr(module, "custom", stand_in)
    caches = (ascend.cells, ascend.operators)
    for cache in caches:
        cache.cache_clear()
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)
    for cache in caches:
        cache.cache_clear()


class Loss(nn.Cell):
    def __init__(self, function, options):
        super().__init__()
        self.function, self.options = function, options

    def construct(self, x, target, weight):
        return self.function(x, target, weight, None, self.options)[0]


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(reduction="none", label_smoothing=0.25, z_loss=0.5),
        Options(ignore_index=3, reduction="sum"),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient(options, weighted):
    random = np.random.default_rng(5)
    x = random.normal(size=(ROWS, CLASSES)).astype(np.float32)
    target = np.array([1, 3, options.ignore_index, 0, 29, 7], np.int32)
    weight = random.random(CLASSES).astype(np.float32) + 0.5 if weighted else None
    tensors = [None if a is None else ms.Tensor(a) for a in (x, target, weight)]
    arguments = (
        x,
        target,
        weight,
        options.ignore_index,
        options.reduction,
        options.label_smoothing,
    )
    net = Loss(ascend.cross_entropy, options)
    expected = reference.cross_entropy(*arguments, z_loss=options.z_loss)
    within(net(*tensors).asnumpy(), expected.loss, 1e-4, "loss")
    gradient = ms.grad(net)(*tensors)
    wanted = reference.cross_entropy_grad(*arguments, z_loss=options.z_loss)
    within(gradient.asnumpy(), wanted.logits, 1e-4, "gradient")


def test_nll_loss():
    random = np.random.default_rng(6)
    x, target = (
        random.normal(size=(ROWS, CLASSES)).astype(np.float32),
        np.array([1, 3, -100, 0, 29, 7], np.int32),
    )
    net = Loss(ascend.nll_loss, Options())
    within(
        net(ms.Tensor(x), ms.Tensor(target), None).asnumpy(),
        reference.nll_loss(x, target)[0],
        1e-5,
        "loss",
    )
    gradient = ms.grad(net)(ms.Tensor(x), ms.Tensor(target), None)
    within(gradient.asnumpy(), reference.nll_loss_grad(x, target).logits, 1e-5, "gradient")
