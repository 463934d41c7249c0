"""The inputs on which torch tests its own losses, through ours, beside torch's float64 results: `make test-torch`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from tests.integration.conftest import DTYPES, to_numpy, to_tensor

NAMES = ("logits", "target", "weight")
WORKER = Path(__file__).with_name("torch_samples_worker.py")
# Of the largest element beside it: a few roundings of the dtype of loss and gradient.
RELATIVE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-6, "float64": 1e-14}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("torch_samples")
    command = [os.environ["MS_CE_TORCH_PYTHON"], str(WORKER), str(path), *DTYPES]
    subprocess.run(command, check=True)
    return path


def ours(call: dict, data: dict, backend: str, mode: str) -> dict[str, np.ndarray]:
    """Loss and gradients, under the names of the worker."""
    tensors = [to_tensor(data.get(name), call["dtype"]) for name in NAMES]
    upstream = Tensor(data["upstream"].astype(np.float32))
    wanted = tuple(i for i, name in enumerate(NAMES) if f"grad_{name}" in data)
    function, options = getattr(ms_ce, call["function"]), call["options"]

    def loss(logits, target, weight):
        return function(logits, target, weight, backend=backend, **options)

    def scaled(logits, target, weight):
        return loss(logits, target, weight).astype(ms.float32) * upstream

    def both(logits, target, weight):
        return loss(logits, target, weight), ms.grad(scaled, wanted)(logits, target, weight)

    value, gradients = (ms.jit(both) if mode == "graph" else both)(*tensors)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    results = {"loss": value}
    results |= {f"grad_{NAMES[i]}": g for i, g in zip(wanted, gradients, strict=True)}
    return {name: to_numpy(result).astype(np.float64) for name, result in results.items()}


@pytest.mark.parametrize("mode", ("pynative", "graph"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_torch(folder, backend, dtype, mode):
    calls = json.loads((folder / "calls.json").read_text())
    compared, far = 0, []
    for index, call in enumerate(calls):
        if call["dtype"] != dtype:
            continue
        data = dict(np.load(folder / f"{index}.npz"))
        for name, value in ours(call, data, backend, mode).items():
            expected = data[name]
            assert value.shape == expected.shape
            allowed = RELATIVE[dtype] * np.abs(expected).max(initial=1.0)
            error = np.abs(value - expected).max(initial=0.0)
            # nan stands where torch has nan: where nothing counts under a mean.
            if not (error <= allowed or np.array_equal(value, expected, equal_nan=True)):
                far.append(f"{call['name']} {name}: off by {error:.3g}, {allowed:.3g} allowed")
        compared += 1
    assert not far, "\n".join(far)
    assert compared >= 215  # those of torch 2.13
