"""Losses with statistics: every output by every input that has a gradient, so that none is silently 0."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import ms_ce
from ms_ce import reference
from tests.integration.conftest import to_numpy, to_tensor
from tests.integration.linear_cases import loop_in_a_bprop
from tests.support.cases import Case
from tests.support.linear_tolerances import check_linear
from tests.support.tolerances import check_close, tolerance

EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.05, "softcap": 4.0, "logit_scale": 1.5}
OPTIONS = {"everything": EVERYTHING, "z-loss": {"z_loss": 0.05}}
DIVIDED = "mean over total_weight"
REDUCTIONS = ("none", "mean", "sum", DIVIDED)
TOTAL_WEIGHT = 2.5
FORMS = {
    "class indices": Case("", (7, 5), weight=True, ignored=0.3),
    "one row": Case("", (5,), weight=True),
    "positions": Case("", (3, 5, 2), weight=True, ignored=0.3),
    "probabilities": Case("", (4, 5), probabilities=True, weight=True),
}
# What arrives at loss and at z-loss, in numbers that float32 has, which MindSpore makes of Python's. The other outputs
# have no gradient, and something arrives at them always.
OUTPUTS = {"loss": (1.5, 0.0), "z_loss": (0.0, -0.75), "both": (1.5, -0.75)}


def weighted(stats, outputs, upstream):
    """A scalar made of the outputs that are asked for, and of those without a gradient."""
    of_loss, of_z_loss = OUTPUTS[outputs]
    value = 0.3 * stats[1].sum() + 0.2 * stats[2].sum() + 0.1 * stats[5].sum()
    if of_loss:
        value = value + of_loss * (stats[0] * upstream).sum()
    if of_z_loss:
        value = value + of_z_loss * (stats[3] * upstream).sum()
    return value


def settings_of(options, reduction):
    """(what the loss is given, what the reference is given, what the reference's result is divided by)"""
    if reduction == DIVIDED:
        given = {**options, "reduction": "mean", "total_weight": TOTAL_WEIGHT}
        return given, {**options, "reduction": "sum"}, TOTAL_WEIGHT
    given = {**options, "reduction": reduction}
    return given, given.copy(), 1.0


def expected_gradients(gradients, arguments, outputs, upstream, options):
    """By the reference, whose gradient is linear in z_loss but for the loss without it."""

    def found(factor, **changes):
        return gradients(*arguments, **{**options, **changes}, grad_loss=factor * upstream)

    of_loss, of_z_loss = OUTPUTS[outputs]
    parts = zip(found(of_loss), found(of_z_loss), found(of_z_loss, z_loss=0.0), strict=True)
    return [None if a is None else a + b - c for a, b, c in parts]


def check_logits(form, options, reduction, weighted_rows, outputs, backend, run):
    given, settings, divisor = settings_of(options, reduction)
    case = FORMS[form]._replace(options={"reduction": given["reduction"]})
    data = case.inputs("float64")
    rows = data["target"].shape
    if case.probabilities:
        rows = reference.rows_shape(case.shape)
    row_weight = np.random.default_rng(3).random(rows) + 0.25 if weighted_rows else None
    factor = to_tensor(row_weight)

    def value(logits, target, weight, upstream):
        stats = ms_ce.cross_entropy_with_stats(
            logits, target, weight, **given, row_weight=factor, backend=backend
        )
        return weighted(stats, outputs, upstream)

    names = ("logits", "target", "weight")
    asked = (0, 1, 2) if case.probabilities else (0, 2)
    arguments = [data[name] for name in names]
    tensors = [to_tensor(each) for each in (*arguments, data["grad_loss"])]
    actual = run(ms.grad(value, asked), *tensors)
    settings["row_weight"] = row_weight
    upstream = data["grad_loss"] / divisor
    expected = expected_gradients(
        reference.cross_entropy_grad, arguments, outputs, upstream, settings
    )
    bound = tolerance(backend, "float64", "softcap" in options)
    for place, found in zip(asked, actual, strict=True):
        check_close(to_numpy(found), expected[place], "float64", bound, names[place])


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("weighted_rows", [False, True], ids=["", "row_weight"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_logits(form, reduction, options, weighted_rows, outputs, backend):
    run = lambda function, *tensors: function(*tensors)  # noqa: E731
    check_logits(form, OPTIONS[options], reduction, weighted_rows, outputs, backend, run)


@pytest.mark.parametrize("run", ["jit"], indirect=True)
@pytest.mark.parametrize("outputs", ["z_loss", "both"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_logits_compiled(form, reduction, outputs, backend, run):
    check_logits(form, EVERYTHING, reduction, True, outputs, backend, run)


HOLDERS = {"cpu": ("cpu", None), "composed": ("composed", None), "chunks": ("composed", 4 * 5 * 3)}


def check_hidden(holder, probabilities, options, reduction, outputs, run):
    backend, chunk_bytes = HOLDERS[holder]
    random = np.random.default_rng(4)
    hidden, linear_weight, bias = (random.normal(size=size) for size in ((8, 3), (5, 3), (5,)))
    weight, row_weight = random.random(5) + 0.25, random.random(8) + 0.25
    target = np.array([0, 4, -100, 2, 1, 1, 3, -100])
    if probabilities:
        target = random.random((8, 5))
        target = target / target.sum(1, keepdims=True)
    upstream = random.normal(size=(8,) if reduction == "none" else ())
    given, settings, divisor = settings_of(options, reduction)
    factor = to_tensor(row_weight)

    def value(hidden, linear_weight, target, bias, weight, upstream):
        stats = ms_ce.linear_cross_entropy_with_stats(
            hidden,
            linear_weight,
            target,
            bias,
            weight,
            **given,
            row_weight=factor,
            backend=backend,
            chunk_bytes=chunk_bytes,
        )
        return weighted(stats, outputs, upstream)

    names = ("input", "linear_weight", "target", "linear_bias", "weight")
    asked = (0, 1, 2, 3, 4) if probabilities else (0, 1, 3, 4)
    arguments = [hidden, linear_weight, target, bias, weight]
    tensors = [to_tensor(each) for each in (*arguments, upstream)]
    actual = run(ms.grad(value, asked), *tensors)
    settings["row_weight"] = row_weight
    found = expected_gradients(
        reference.linear_cross_entropy_grad, arguments, outputs, upstream / divisor, settings
    )
    expected = dict(zip(reference.LinearGradients._fields, found, strict=True))
    for place, gradient in zip(asked, actual, strict=True):
        name = names[place]
        check_linear(to_numpy(gradient), expected[name], backend, "float64", name)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("probabilities", [False, True], ids=["class-indices", "probabilities"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_hidden_states(holder, probabilities, reduction, options, outputs):
    run = lambda function, *tensors: function(*tensors)  # noqa: E731
    check_hidden(holder, probabilities, OPTIONS[options], reduction, outputs, run)


@loop_in_a_bprop(backend=None, holder="chunks", probabilities=True)
@pytest.mark.parametrize("run", ["jit"], indirect=True)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("probabilities", [False, True], ids=["class-indices", "probabilities"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_hidden_states_compiled(holder, probabilities, reduction, run):
    def compute(function, *tensors):
        return run(function, *tensors, composed_loop=holder == "chunks")

    check_hidden(holder, probabilities, EVERYTHING, reduction, "z_loss", compute)
