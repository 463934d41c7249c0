"""linear_cross_entropy against the float64 reference, in every mode and dtype."""

from __future__ import annotations

import inspect

import mindspore as ms
import numpy as np
import pytest

import ms_ce
from ms_ce import _versions, reference
from tests.integration.conftest import DTYPES, MODES, times, to_numpy
from tests.integration.linear_cases import (
    CASES,
    COMPILED,
    TENSORS,
    loop_in_a_bprop,
    reference_of,
    tensors_of,
)
from tests.support.linear_tolerances import check_linear


def check(actual, expected, case, backend, dtype, what):
    check_linear(to_numpy(actual), expected, backend, dtype, f"{case.name}, {what}")


def _function(case, backend, present, gradient_in_forward):
    options = {**case.extras(), "backend": backend, "gradient_in_forward": gradient_in_forward}

    if present == (True, True):

        def loss(input, linear_weight, target, linear_bias, weight):
            return ms_ce.linear_cross_entropy(
                input, linear_weight, target, linear_bias, weight, **options
            )

    elif present == (True, False):

        def loss(input, linear_weight, target, linear_bias):
            return ms_ce.linear_cross_entropy(input, linear_weight, target, linear_bias, **options)

    else:

        def loss(input, linear_weight, target):
            return ms_ce.linear_cross_entropy(input, linear_weight, target, **options)

    return loss


def run_case(case, dtype, backend, run, gradient_in_forward="auto"):
    data = case.inputs(dtype)
    *tensors, upstream = tensors_of(data, dtype)
    present = (case.bias, case.weight)
    arguments = [tensor for tensor in tensors if tensor is not None]
    function = _function(case, backend, present, gradient_in_forward)

    def scaled(upstream, *arguments):
        return times(function(*arguments), upstream)

    expected = reference_of(case, data)
    loop = backend == "composed"
    actual = run(function, *arguments, composed_loop=loop)
    assert actual.dtype == getattr(ms, dtype)
    check(actual, expected[0], case, backend, dtype, "loss")
    given = [name for name, tensor in zip(TENSORS, tensors, strict=True) if tensor is not None]
    wanted = {
        name: value for name, value in zip(TENSORS, expected[1:], strict=True) if value is not None
    }
    positions = tuple(1 + given.index(name) for name in wanted)
    gradients = run(ms.grad(scaled, positions), upstream, *arguments, composed_loop=loop)
    # docs/versions.md: whoever asks for what cannot be made there gets nan.
    no_data = loop and run.compiles and not _versions.loops_in_bprops
    for (name, value), gradient in zip(wanted.items(), gradients, strict=True):
        if no_data and name in ("target", "weight"):
            value = np.full_like(value, np.nan)
        check(gradient, value, case, backend, dtype, f"gradient of {name}")


# Compiled in `make test` with backend composed too, whose loop takes seconds: least and most in one graph.
FEW = ("plain", "everything")


def _combinations():
    for case in CASES:
        for dtype in DTYPES:
            for backend in ("cpu", "composed"):
                for mode in MODES:
                    if backend == "composed" and case.name in ("many classes", "many features"):
                        continue
                    compiled = case.name in COMPILED and dtype in ("float32", "bfloat16")
                    if mode == "pynative" or (compiled and (mode == "jit" or dtype == "float32")):
                        name = f"{case.name}-{dtype}-{backend}-{mode}".replace(" ", "-")
                        rare = backend == "composed" and mode != "pynative" and case.name not in FEW
                        marks = [pytest.mark.rare(part=3)] if rare else []
                        yield pytest.param(case, dtype, backend, mode, id=name, marks=marks)


@pytest.mark.parametrize(
    ("case", "dtype", "backend", "run"), list(_combinations()), indirect=["run"]
)
def test_loss_and_gradients(case, dtype, backend, run):
    run_case(case, dtype, backend, run)


@pytest.mark.parametrize("gradient_in_forward", (True, False))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ("plain", "weight", "everything"))
def test_gradient_in_forward(name, dtype, gradient_in_forward, run):
    case = next(case for case in CASES if case.name == name)
    run_case(case, dtype, "cpu", run, gradient_in_forward)


def test_cases_cover_every_option():
    """Each keyword of the linear loss appears in the cases at a value that is not its default."""
    parameters = inspect.signature(ms_ce.linear_cross_entropy).parameters
    tensors = {"input", "linear_weight", "target", "linear_bias", "weight", "row_weight"}
    elsewhere = {
        "gradient_in_forward",
        "frozen",
        "total_weight",
    }  # below, test_linear_frozen.py, test_divisor.py
    for option in set(parameters) - tensors - elsewhere - {"backend"}:
        values = {case.extras()[option] for case in CASES if option in case.extras()}
        assert values - {parameters[option].default}, f"{option} is never off its default"


STATS_CASES = ("ignored", "none", "shift none", "everything", "everything probabilities")


@pytest.mark.parametrize("name", STATS_CASES)
def test_stats(name, backend, run):
    case = next(case for case in CASES if case.name == name)
    data = case.inputs("float32")
    *tensors, _upstream = tensors_of(data, "float32")
    options = {**case.extras(), "backend": backend}

    def stats(input, linear_weight, target, linear_bias):
        return tuple(
            ms_ce.linear_cross_entropy_with_stats(
                input, linear_weight, target, linear_bias, tensors[4], **options
            )
        )

    arguments = [
        data[name] for name in ("input", "linear_weight", "target", "linear_bias", "weight")
    ]
    expected = reference.linear_cross_entropy(*arguments, shift=case.shift, **case.options)
    results = run(stats, *tensors[:4], composed_loop=backend == "composed")
    for field, actual in zip(expected._fields, results, strict=True):
        check(actual, getattr(expected, field), case, backend, "float32", field)


@loop_in_a_bprop(run="jit")
@loop_in_a_bprop(run="graph")
def test_gradients_of_stats_flow_through_loss_and_z_loss(backend, run):
    case = next(case for case in CASES if case.name == "z-loss")
    data = case.inputs("float32")
    *tensors, _ = tensors_of(data, "float32")
    options = {**case.extras(), "backend": backend}

    def combined(input, linear_weight, target, linear_bias):
        stats = ms_ce.linear_cross_entropy_with_stats(
            input, linear_weight, target, linear_bias, **options
        )
        return 2 * stats[0] + 3 * stats[3] + 5 * stats[5] + 7 * stats[2].sum()

    arguments = [data[name] for name in ("input", "linear_weight", "target", "linear_bias")]
    plain = reference.linear_cross_entropy_grad(*arguments)
    both = reference.linear_cross_entropy_grad(*arguments, **case.options)
    loop = backend == "composed"
    computed = run(ms.grad(combined, (0, 1, 3)), *tensors[:4], composed_loop=loop)
    for actual, of_loss, of_both in zip(computed, plain[:3], both[:3], strict=True):
        check(actual, 5 * of_both - 3 * of_loss, case, backend, "float32", "gradient")


@loop_in_a_bprop(run="jit")
@loop_in_a_bprop(run="graph")
@pytest.mark.parametrize("name", ("everything", "everything probabilities"))
def test_gradients_of_stats_by_target_and_weight(name, backend, run):
    """A mean's z-loss depends on the weights by its divisor."""
    case = next(case for case in CASES if case.name == name)
    data = case.inputs("float32")
    tensors = tensors_of(data, "float32")[:5]
    options = {**case.extras(), "backend": backend}

    def combined(input, linear_weight, target, linear_bias, weight):
        stats = ms_ce.linear_cross_entropy_with_stats(
            input, linear_weight, target, linear_bias, weight, **options
        )
        return 2 * stats[0] + 3 * stats[3]

    arguments = [data[name] for name in TENSORS]
    settings = {**case.options, "shift": case.shift}
    both = reference.linear_cross_entropy_grad(*arguments, **settings)
    plain = reference.linear_cross_entropy_grad(*arguments, **{**settings, "z_loss": 0.0})
    names = ("target", "weight") if case.probabilities else ("weight",)
    positions = tuple(TENSORS.index(name) for name in names)
    computed = run(ms.grad(combined, positions), *tensors, composed_loop=backend == "composed")
    computed = computed if isinstance(computed, tuple) else (computed,)
    for name, actual in zip(names, computed, strict=True):
        expected = 5 * getattr(both, name) - 3 * getattr(plain, name)
        check(actual, expected, case, backend, "float32", f"gradient of {name}")
