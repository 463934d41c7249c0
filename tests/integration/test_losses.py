"""Loss and gradients of every case, against the float64 reference."""

from __future__ import annotations

import inspect

import mindspore as ms
import numpy as np
import pytest

import ms_ce
from ms_ce import reference
from ms_ce._arguments import Default
from tests.integration.conftest import DTYPES, MODES, times, to_numpy, to_tensor
from tests.support.cases import CASES, NLL_CASES
from tests.support.tolerances import check_close, tolerance


def _check(case, backend, dtype, run, function, expected, gradients):
    """Runs `function(logits, target, weight, upstream)` = upstream·loss with its gradients; compares all of them."""
    data = case.inputs(dtype)
    tensors = [to_tensor(data[name], dtype) for name in ("logits", "target", "weight", "grad_loss")]
    bound = tolerance(backend, dtype, "softcap" in case.options)
    positions = tuple(index for index, gradient in enumerate(gradients) if gradient is not None)
    if tensors[2] is None:
        del tensors[2]

        def loss(logits, target, upstream):
            return times(function(logits, target, None), upstream)

        def value(logits, target):
            return function(logits, target, None)

        positions = tuple(position for position in positions if position < 2)
    else:

        def loss(logits, target, weight, upstream):
            return times(function(logits, target, weight), upstream)

        def value(logits, target, weight):
            return function(logits, target, weight)

    actual = run(value, *tensors[:-1])
    assert actual.dtype == getattr(ms, dtype)
    check_close(to_numpy(actual), expected, dtype, bound, f"{case.name}: loss")
    computed = run(ms.grad(loss, positions), *tensors)
    if len(positions) == 1:
        computed = (computed,)
    scale = np.abs(data["grad_loss"]).max()
    for position, gradient in zip(positions, computed, strict=True):
        check_close(
            to_numpy(gradient),
            gradients[position],
            dtype,
            bound._replace(absolute=bound.absolute * max(scale, 1.0)),
            f"{case.name}: gradient {position}",
        )


# A case in a graph costs a compilation: by jit the kernel runs every case in float32 and float16, the composed
# backend in float32; the cases named here run in every dtype by jit, and in float32 under GRAPH_MODE, which puts a Cell
# around the same graph. Directly all run all.
COMPILED = {"cpu": ("float32", "float16"), "composed": ("float32",)}
EVERY_DTYPE = ("weight", "everything", "everything probabilities", "unbatched none")


def _combinations(cases):
    for case in cases:
        for dtype in DTYPES:
            for backend in ("cpu", "composed"):
                for mode in MODES:
                    compiled = case.name in EVERY_DTYPE or dtype in COMPILED[backend]
                    named = case.name in EVERY_DTYPE and dtype == "float32"
                    repeated = mode == "graph" and not named
                    if mode == "pynative" or (compiled and not repeated):
                        name = f"{case.name}-{dtype}-{backend}-{mode}".replace(" ", "-")
                        yield pytest.param(case, dtype, backend, mode, id=name)


@pytest.mark.parametrize(
    ("case", "dtype", "backend", "run"), list(_combinations(CASES)), indirect=["run"]
)
def test_cross_entropy(case, dtype, backend, run):
    data = case.inputs(dtype)
    arguments = (data["logits"], data["target"], data["weight"])

    def function(logits, target, weight):
        return ms_ce.cross_entropy(logits, target, weight, backend=backend, **case.options)

    expected = reference.cross_entropy(*arguments, **case.options).loss
    gradients = reference.cross_entropy_grad(
        *arguments, **case.options, grad_loss=data["grad_loss"]
    )
    _check(case, backend, dtype, run, function, expected, gradients)


@pytest.mark.parametrize(
    ("case", "dtype", "backend", "run"), list(_combinations(NLL_CASES)), indirect=["run"]
)
def test_nll_loss(case, dtype, backend, run):
    data = case.inputs(dtype)
    arguments = (data["logits"], data["target"], data["weight"])

    def function(log_prob, target, weight):
        return ms_ce.nll_loss(log_prob, target, weight, backend=backend, **case.options)

    expected, _ = reference.nll_loss(*arguments, **case.options)
    gradients = reference.nll_loss_grad(*arguments, **case.options, grad_loss=data["grad_loss"])
    _check(case, backend, dtype, run, function, expected, gradients)


def test_cases_cover_every_option():
    """Each option of the loss appears in the cases at a value that is not its default."""
    parameters = inspect.signature(ms_ce.cross_entropy).parameters
    tensors = {"input", "target", "weight", "row_weight", "logits", "labels"}
    lines = {
        "positional",
        "size_average",
        "reduce",
        "total_weight",
    }  # test_call_lines.py, test_divisor.py
    for option in set(parameters) - tensors - lines - {"backend", "gradient_in_forward"}:
        values = {case.options[option] for case in CASES if option in case.options}
        default = parameters[option].default
        default = default.value if isinstance(default, Default) else default
        assert values - {default}, f"{option} is never off its default"
