"""A whole training step inside jit trains as with mindspore.nn.CrossEntropyLoss, however it is captured."""

from __future__ import annotations

import json
from itertools import product

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


MODES, LOSSES, BACKENDS = ("graph", "pynative"), ("cross_entropy", "linear"), ("cpu", "composed")


def offered(mode, capture, loss, backend):
    """Not in docs/graphs.md: bytecode capture where Python runs, but of one loss."""
    return (capture, mode) != ("bytecode", "pynative") or (loss, backend) == (
        "cross_entropy",
        "cpu",
    )


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """The losses of a few steps by (mode, capture, optimizer, loss); "nn" is MindSpore's own loss."""
    steps = [
        (mode, capture, optimizer, f"{loss} {backend}")
        for mode, (capture, optimizer), loss, backend in product(MODES, STEPS, LOSSES, BACKENDS)
        if offered(mode, capture, loss, backend)
    ]
    steps += [(mode, *step, "nn") for mode, step in product(MODES, STEPS)]
    directory = tmp_path_factory.mktemp("capture")
    found = children.run(WORKER, [json.dumps(steps)], directory)
    return dict(zip(steps, found, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("capture", "optimizer"), STEPS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_curve(loss, capture, optimizer, mode, backend, curves):
    if not offered(mode, capture, loss, backend):
        pytest.skip("not offered: docs/graphs.md")
    got = curves[mode, capture, optimizer, f"{loss} {backend}"]
    assert isinstance(got, list), got
    if capture == "trace":
        first = curves[mode, "ast", optimizer, "nn"][:2]
        assert min(abs(got[-1] - value) for value in first) < 1e-5
        return
    expected = curves[mode, capture, optimizer, "nn"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert expected[-1] < expected[0]
