"""capture_worker.py STEPS: prints the losses of a few training steps for each of STEPS, a JSON list of lists
[mode, capture, optimizer, loss]. With capture "bytecode depend" a step returns the loss by ops.depend.

A process for each, since MindSpore's bytecode capture takes one step function for another of the same source. It is
forked from this one, which has imported MindSpore and called nothing of it: the import takes as long as the steps.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

import ms_ce

ROWS, FEATURES, CLASSES, STEPS = 16, 8, 5, 4
OPTIMIZERS = {
    "Adam": lambda parameters: nn.Adam(parameters, 0.1),
    "Momentum": lambda parameters: nn.Momentum(parameters, 0.1, 0.9),
    "SGD": lambda parameters: nn.SGD(parameters, 0.1),
}


class WithBreak(nn.Cell):
    """mindspore.nn's loss and a call that bytecode capture does not follow."""

    def __init__(self):
        super().__init__()
        self.loss = nn.CrossEntropyLoss()

    def construct(self, logits, labels):
        print(end="")
        return self.loss(logits, labels)


def network(loss: str) -> nn.Cell:
    """A Dense layer and mindspore.nn's loss ("nn", or "nn with a break"), or ours: "cross_entropy <backend>", "linear
    <backend>"."""
    table = np.random.default_rng(1).normal(size=(CLASSES, FEATURES)).astype(np.float32)
    kind, _, backend = loss.partition(" ")
    if kind == "linear":
        layer = ms_ce.LinearCrossEntropyLoss(FEATURES, CLASSES, bias=True, backend=backend)
        layer.linear_weight.set_data(Tensor(table))
        layer.linear_bias.set_data(ops.zeros((CLASSES,), ms.float32))
        return layer
    dense = nn.Dense(FEATURES, CLASSES)
    dense.weight.set_data(Tensor(table))
    dense.bias.set_data(ops.zeros((CLASSES,), ms.float32))
    if kind == "nn":
        return nn.WithLossCell(dense, WithBreak() if backend else nn.CrossEntropyLoss())
    return nn.WithLossCell(dense, ms_ce.CrossEntropyLoss(backend=backend))


def curve(mode: str, capture: str, optimizer: str, loss: str) -> list[float]:
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    trained = network(loss)
    update = OPTIMIZERS[optimizer](trained.trainable_params())
    forward_backward = ops.value_and_grad(trained, None, update.parameters)

    capture, _, depend = capture.partition(" ")

    @ms.jit(capture_mode=capture)
    def plain(hidden, target):
        value, gradients = forward_backward(hidden, target)
        update(gradients)
        return value

    @ms.jit(capture_mode=capture)
    def after_update(hidden, target):
        value, gradients = forward_backward(hidden, target)
        return ops.depend(value, update(gradients))

    step = after_update if depend else plain
    random = np.random.default_rng(0)
    hidden = Tensor(random.normal(size=(ROWS, FEATURES)).astype(np.float32))
    target = Tensor(random.integers(0, CLASSES, ROWS).astype(np.int32))
    return [float(step(hidden, target).asnumpy()) for _ in range(STEPS)]


def forked(*step: str) -> list[float] | str:
    """curve(*step) in a process of its own, or why there is none."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        try:
            text = json.dumps(curve(*step))
        except BaseException:
            text = json.dumps(traceback.format_exc())
        with os.fdopen(sink, "w") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else f"ended with status {status}"


if __name__ == "__main__":
    print(json.dumps([forked(*step) for step in json.loads(sys.argv[1])]), flush=True)
    os._exit(0)  # MindSpore ends in the processes that used it, not in this one
