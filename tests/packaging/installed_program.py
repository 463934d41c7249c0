"""python installed_program.py BACKEND: uses an installed ms_ce as someone who has no compiler and no repository.

Losses and gradients in PyNative and in graphs, against ms_ce/reference.py in float64, and what a bad label is told.
"""

from __future__ import annotations

import platform
import shutil
import sys

import mindspore as ms
import numpy as np

import ms_ce
from ms_ce import reference

N, C, H = 6, 11, 5
OPTIONS = dict(label_smoothing=0.1, ignore_index=3)  # label 3 is among the targets
draw = np.random.RandomState(0)
LOGITS, HIDDEN = draw.randn(N, C).astype(np.float32), draw.randn(N, H).astype(np.float32)
TABLE, WEIGHT = draw.randn(C, H).astype(np.float32), draw.rand(C).astype(np.float32)
TARGET = np.array([0, 3, 10, 5, 5, 1], np.int32)
SENTENCE = "target 99 at position (4,) is outside [0, 11)"


def near(actual, expected) -> None:
    np.testing.assert_allclose(actual.asnumpy(), expected, rtol=2e-5, atol=2e-6)


def linear_loss(hidden, table, target):
    return ms_ce.linear_cross_entropy(hidden, table, target, ignore_index=3, label_smoothing=0.1)


def losses() -> None:
    """Cross entropy and the linear loss, with their gradients."""
    loss = ms_ce.CrossEntropyLoss(ms.Tensor(WEIGHT), **OPTIONS)
    value, grad = ms.value_and_grad(loss)(ms.Tensor(LOGITS), ms.Tensor(TARGET))
    expected = reference.cross_entropy(LOGITS, TARGET, WEIGHT, **OPTIONS)
    near(value, expected.loss)
    near(grad, reference.cross_entropy_grad(LOGITS, TARGET, WEIGHT, **OPTIONS).logits)
    value, grad = ms.value_and_grad(linear_loss)(
        ms.Tensor(HIDDEN), ms.Tensor(TABLE), ms.Tensor(TARGET)
    )
    through = HIDDEN.astype(np.float64) @ TABLE.astype(np.float64).T
    near(value, reference.cross_entropy(through, TARGET, **OPTIONS).loss)
    near(grad, reference.cross_entropy_grad(through, TARGET, **OPTIONS).logits @ TABLE)


def bad_label() -> None:
    """The sentence arrives at whoever asks for the number, and the next call works."""
    target = TARGET.copy()
    target[4] = 99
    told = ""
    try:
        ms_ce.CrossEntropyLoss()(ms.Tensor(LOGITS), ms.Tensor(target)).asnumpy()
    except Exception as error:
        told = str(error)
    assert SENTENCE in told, told
    loss = ms_ce.CrossEntropyLoss()(ms.Tensor(LOGITS), ms.Tensor(TARGET))
    near(loss, reference.cross_entropy(LOGITS, TARGET).loss)


def main(backend: str) -> None:
    assert not any(shutil.which(name) for name in ("cc", "c++", "gcc", "g++", "clang", "clang++"))
    usable = [row.name for row in ms_ce.available_backends() if row.reason is None]
    assert usable[0] == backend, usable
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        losses()
        if (
            backend == "cpu" or mode == ms.PYNATIVE_MODE
        ):  # a graph of primitives cannot look at its labels
            bad_label()
    print(
        f"ms_ce {ms_ce.__version__} of {ms_ce.__path__[0]}, backend {backend}, MindSpore {ms.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}: both modes are right"
    )


if __name__ == "__main__":
    main(sys.argv[1])
