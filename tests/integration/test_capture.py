"""A whole training step inside jit trains as with mindspore.nn.CrossEntropyLoss, however it is captured."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.integration import children

WORKER = "tests.integration.capture_worker"
# Trace records the first step only, whatever the loss is, and knows nothing of backends.
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
    expected = curve(mode, capture, "nn", optimizer)
    got = curve(mode, capture, f"{loss} {backend}", optimizer)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    if capture != "trace":
        assert expected[-1] < expected[0]
