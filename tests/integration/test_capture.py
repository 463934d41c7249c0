"""A whole training step inside jit trains as with mindspore.nn.CrossEntropyLoss, however it is captured."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.integration import children

WORKER = "tests.integration.capture_worker"
# Trace repeats what it has recorded, whatever the loss is: the first step, or the one after it.
STEPS = [
    *[("ast", optimizer) for optimizer in ("Adam", "Momentum", "SGD")],
    *[("bytecode", optimizer) for optimizer in ("Adam", "Momentum", "SGD")],
    ("trace", "Adam"),
]


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    """curve(mode, capture, loss, optimizer): the losses of a few steps."""
    directory = tmp_path_factory.mktemp("capture")
    return functools.lru_cache(None)(lambda *step: children.run(WORKER, step, directory))


@pytest.mark.parametrize("mode", ("graph", "pynative"))
@pytest.mark.parametrize(("capture", "optimizer"), STEPS)
@pytest.mark.parametrize("loss", ("cross_entropy", "linear"))
def test_training_curve(loss, capture, optimizer, mode, backend, curve):
    if (capture, mode) == ("bytecode", "pynative") and (loss, backend) != ("cross_entropy", "cpu"):
        pytest.skip("not offered: docs/graphs.md")
    got = curve(mode, capture, f"{loss} {backend}", optimizer)
    if capture == "trace":
        first = curve(mode, "ast", "nn", optimizer)[:2]
        assert min(abs(got[-1] - value) for value in first) < 1e-5
        return
    expected = curve(mode, capture, "nn", optimizer)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert expected[-1] < expected[0]
