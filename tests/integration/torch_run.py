"""Loss and gradients of every option that torch has, beside torch's own: `make test-torch`.

MS_CE_TORCH_PYTHON names the interpreter of an environment with torch, which works in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
import pytest

import ms_ce
from ms_ce import reference
from tests.integration import linear_cases
from tests.integration.conftest import to_numpy, to_tensor
from tests.support import cases

WORKER = Path(__file__).with_name("torch_worker.py")
IN_TORCH = {"ignore_index", "reduction", "label_smoothing"}
RELATIVE = 1e-5  # float32, of the largest element
DIFFERENTIATED = ("logits", "input", "linear_weight", "linear_bias")
DTYPES = ("float32", "bfloat16")


class Call(NamedTuple):
    """A case in one dtype, under a name that a file can have."""

    case: cases.Case | linear_cases.Case
    dtype: str

    @property
    def linear(self) -> bool:
        return isinstance(self.case, linear_cases.Case)

    @property
    def name(self) -> str:
        kind = "linear " if self.linear else ""
        return f"{kind}{self.case.name} {self.dtype}".replace(" ", "-")

    def for_torch(self) -> dict[str, np.ndarray]:
        """torch's linear loss takes hidden states of two dimensions."""
        arrays = {k: v for k, v in self.case.inputs(self.dtype).items() if v is not None}
        if self.linear and len(self.case.lead) > 1:
            arrays["input"] = arrays["input"].reshape(-1, self.case.features)
            classes = (self.case.classes,) if self.case.probabilities else ()
            arrays["target"] = arrays["target"].reshape(-1, *classes)
            if arrays["grad_loss"].ndim:
                arrays["grad_loss"] = arrays["grad_loss"].reshape(-1)
        return arrays


CALLS = [
    Call(case, dtype)
    for case in (*cases.CASES, *linear_cases.CASES)
    for dtype in DTYPES
    if not set(case.options) - IN_TORCH and not getattr(case, "shift", False)
]


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("torch")
    for call in CALLS:
        np.savez(folder / f"{call.name}.npz", **call.for_torch())
    requests = [
        {"name": call.name, "dtype": call.dtype, "options": call.case.options} for call in CALLS
    ]
    (folder / "requests.json").write_text(json.dumps(requests))
    command = [os.environ["MS_CE_TORCH_PYTHON"], str(WORKER), str(folder)]
    subprocess.run(command, check=True)
    return {call.name: dict(np.load(folder / f"{call.name}.result.npz")) for call in CALLS}


def ours(call: Call, data: dict) -> dict[str, np.ndarray]:
    names = ("input", "linear_weight", "target", "linear_bias", "weight")
    if not call.linear:
        names = ("logits", "target", "weight")
    tensors = {name: to_tensor(data[name], call.dtype) for name in names}
    options = call.case.extras() if call.linear else call.case.options
    function = ms_ce.linear_cross_entropy if call.linear else ms_ce.cross_entropy
    wanted = [name for name in DIFFERENTIATED if tensors.get(name) is not None]
    wanted += ["target"] * call.case.probabilities

    def loss(*differentiated):
        values = tensors | dict(zip(wanted, differentiated, strict=True))
        return function(*[values[name] for name in names], backend="cpu", **options)

    def scaled(*differentiated):
        return loss(*differentiated) * to_tensor(data["grad_loss"], call.dtype)

    inputs = [tensors[name] for name in wanted]
    gradients = ms.grad(scaled, tuple(range(len(wanted))))(*inputs)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    results = {"loss": loss(*inputs), **dict(zip(wanted, gradients, strict=True))}
    return {name: to_numpy(value).astype(np.float64) for name, value in results.items()}


def in_float64(call: Call, data: dict) -> dict[str, np.ndarray]:
    if call.linear:
        loss, *gradients = linear_cases.reference_of(call.case, data)
        return {"loss": loss, **dict(zip(linear_cases.TENSORS, gradients, strict=True))}
    arguments = (data["logits"], data["target"], data["weight"])
    options = call.case.options
    gradients = reference.cross_entropy_grad(*arguments, **options, grad_loss=data["grad_loss"])
    loss = reference.cross_entropy(*arguments, **options).loss
    return {"loss": loss, "logits": gradients.logits, "target": gradients.target}


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_as_torch(of_torch, call):
    data = call.case.inputs(call.dtype)
    exact = in_float64(call, data)
    theirs = of_torch[call.name]
    results = ours(call, data)
    assert set(results) == set(theirs)
    for name, value in results.items():
        expected = theirs[name].reshape(value.shape)
        if call.dtype == "float32":
            size = np.abs(expected).max(initial=1e-3)
            error, allowed = np.abs(value - expected).max(initial=0.0), RELATIVE * size
        else:  # on the whole no farther from the truth than torch's plain formula, up to a factor for the luck of
            # few roundings (a row of seven numbers is the worst), or than one rounding
            error = root_mean_square(value - exact[name])
            allowed = max(
                2.0 * root_mean_square(expected - exact[name]),
                2.0**-9 * root_mean_square(exact[name]),
            )
        assert error <= allowed, f"{name}: off by {error:.3g}, {allowed:.3g} allowed"
