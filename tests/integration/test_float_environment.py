"""Denormal numbers count, in every mode: MindSpore's graph threads flush them, its PyNative threads do not."""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
import numpy as np
import pytest

import ms_ce
from ms_ce import reference
from tests.integration.conftest import DTYPES, to_numpy, to_tensor
from tests.support.cases import NONE, SUM, round_to
from tests.support.tolerances import check_close, tolerance

# A denormal of each dtype, some binary digits above the smallest, and a power of two that makes it ordinary.
TINY = {"float32": 3e-40, "float16": 2e-5, "bfloat16": 3e-39, "float64": 3e-310}
SCALE = {"float32": 2.0**126, "float16": 2.0**15, "bfloat16": 2.0**126}
SPACING = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133, "float64": 2.0**-1074}

LOGITS = np.random.default_rng(0).normal(size=(6, 5))
LABELS = np.array([0, 1, 2, 3, 4, 0], np.int32)
SIZES = np.array([1.0, 0.4, 0.7, 1.3, 0.2])
UNIFORM = np.linspace(0.2, 1.0, 30).reshape(6, 5)


class Form(NamedTuple):
    """`call(*inputs)` and what the reference says to the same inputs, rounded to the dtype."""

    call: object
    expected: object
    inputs: tuple


def weighted(dtype: str, backend: str) -> Form:
    def call(logits, target, weight):
        return ms_ce.cross_entropy(logits, target, weight, backend=backend, **NONE)

    def expected(*inputs):
        return reference.cross_entropy(*inputs, **NONE).loss

    return Form(call, expected, (LOGITS, LABELS, SIZES * TINY[dtype]))


def probabilities(dtype: str, backend: str) -> Form:
    def call(logits, target):
        return ms_ce.cross_entropy(logits, target, backend=backend, **NONE)

    def expected(*inputs):
        return reference.cross_entropy(*inputs, **NONE).loss

    return Form(call, expected, (LOGITS, UNIFORM * TINY[dtype]))


def nll(dtype: str, backend: str) -> Form:
    def call(log_prob, target, weight):
        return ms_ce.nll_loss(log_prob, target, weight, backend=backend, **NONE)

    def expected(*inputs):
        return reference.nll_loss(*inputs, **NONE)[0]

    return Form(call, expected, (-UNIFORM, LABELS, SIZES * TINY[dtype]))


def statistics(dtype: str, backend: str) -> Form:
    def call(logits, target, weight):
        return ms_ce.cross_entropy_with_stats(logits, target, weight, backend=backend, **SUM)[0]

    def expected(*inputs):
        return reference.cross_entropy(*inputs, **SUM).loss

    return Form(call, expected, (LOGITS, LABELS, SIZES * TINY[dtype]))


def value_and_grad(dtype: str, backend: str) -> Form:
    def call(logits, target, weight):
        return ms_ce.cross_entropy_value_and_grad(logits, target, weight, backend=backend, **SUM)[1]

    def expected(*inputs):
        return reference.cross_entropy_grad(*inputs, **SUM, grad_loss=np.ones(())).logits

    return Form(call, expected, (LOGITS, LABELS, SIZES * TINY[dtype]))


def gradient(dtype: str, backend: str) -> Form:
    def loss(logits, target, weight):
        return ms_ce.cross_entropy(logits, target, weight, backend=backend, **SUM)

    def expected(*inputs):
        return reference.cross_entropy_grad(*inputs, **SUM, grad_loss=np.ones(())).logits

    return Form(ms.grad(loss), expected, (LOGITS, LABELS, SIZES * TINY[dtype]))


def linear(dtype: str, backend: str) -> Form:
    def call(hidden, linear_weight, target, weight):
        return ms_ce.linear_cross_entropy(
            hidden, linear_weight, target, weight=weight, backend=backend, **NONE
        )

    def expected(hidden, linear_weight, target, weight):
        return reference.linear_cross_entropy(
            hidden, linear_weight, target, weight=weight, **NONE
        ).loss

    return Form(call, expected, (LOGITS, UNIFORM[:5], LABELS, SIZES * TINY[dtype]))


FORMS = (weighted, probabilities, nll, statistics, value_and_grad, gradient, linear)


def compare(form: Form, dtype: str, run, least: float) -> None:
    """Within the kernel's relative tolerance of the largest result, and `least`."""
    rounded = [values if values is LABELS else round_to(values, dtype) for values in form.inputs]
    actual = run(form.call, *[to_tensor(values, dtype) for values in rounded])
    expected = np.asarray(form.expected(*rounded))
    bound = tolerance("cpu", dtype)
    bound = bound._replace(absolute=bound.relative * np.abs(expected).max() + least)
    check_close(to_numpy(actual), expected, dtype, bound, "result")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", FORMS, ids=lambda make: make.__name__)
def test_denormal_results(make, dtype, run):
    """The results are denormal themselves, exact to their last digit but for rounding."""
    compare(make(dtype, "cpu"), dtype, run, SPACING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_composed_may_flush_them(dtype, run):
    """It computes in MindSpore's environment (docs/semantics.md): in float32, where float16 has no denormals."""
    smallest_normal = 0.0 if dtype == "float16" else float(np.finfo(np.float32).tiny)
    inexact = tolerance("composed", dtype).relative * TINY[dtype]
    form = weighted(dtype, "composed")
    compare(form, dtype, run, SPACING[dtype] + 10 * inexact + smallest_normal)


@pytest.mark.parametrize("dtype", SCALE)
def test_denormal_logits(dtype, run):
    def call(logits, target):
        return ms_ce.cross_entropy(logits, target, logit_scale=SCALE[dtype], backend="cpu", **NONE)

    def expected(logits, target):
        return reference.cross_entropy(logits, target, logit_scale=SCALE[dtype], **NONE).loss

    compare(Form(call, expected, (LOGITS * TINY[dtype], LABELS)), dtype, run, 0.0)


def test_small_probabilities_in_float16(run):
    """The middle one is denormal in float16, and its weighted term is three times the sum."""
    logits, target, weight = (
        to_tensor(np.array(values), "float16")
        for values in (
            [-2.168, -8.516, 5.637],
            [8.96e-5, 3.4153e-5, 1.0],
            [-0.0674, 4.83, -7.406],
        )
    )

    def call(logits, target, weight):
        return ms_ce.cross_entropy(logits, target, weight, backend="cpu", **NONE)

    assert to_numpy(run(call, logits, target, weight)) == np.float16(-7.386e-4)
