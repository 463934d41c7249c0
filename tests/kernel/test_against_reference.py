"""Every operation, option and dtype on every instruction set, against the float64 reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pytest

from tests.kernel.library import (
    NO_ROW_WEIGHT,
    Library,
    cast,
    dtype_name,
    empty,
    options,
    to_float64,
)
from tests.kernel.operations import Loss, reference
from tests.support.cases import CASES, NONE, SUM, Case
from tests.support.tolerances import check_close, tolerance

DTYPES = ("float32", "float16", "bfloat16", "float64")

# What tests/support/cases.py leaves to the kernel: sizes around its own. A vector is 4, 8 or 16 floats, a chunk of
# classes 64, a block of rows 128, a tile of classes 1024; beyond 64 classes rows are taken one by one; large
# enough, work goes to several threads and gradients past the cache.
SIZES = (
    Case("chunk less one", (65, 63), ignored=0.3),
    Case("chunk", (64, 64), weight=True, ignored=0.3, options={"label_smoothing": 0.2}),
    Case("chunk and one", (63, 65), weight=True, options=NONE),
    Case("vectors and a tail", (6, 127), probabilities=True, weight=True),
    Case("tile less one", (3, 1023), options={"label_smoothing": 0.1}),
    Case("tile and one", (3, 1025), probabilities=True, options=SUM),
    Case("tiles and a tail", (2, 3003), weight=True, ignored=0.5, options={"softcap": 4.0}),
    Case("columns of two chunks", (2, 70, 9), weight=True, options={"label_smoothing": 0.1}),
    Case("columns in place", (2, 5, 64), options=NONE, ignored=0.2),
    Case("columns across outer", (40, 3, 5), probabilities=True, weight=True),
    Case("columns of many chunks", (2, 1100, 3), options={"label_smoothing": 0.1, "z_loss": 0.01}),
    Case("many rows", (30000, 5), ignored=0.1, weight=True),
    Case("long rows", (2, 120001), probabilities=True, options={"label_smoothing": 0.1}),
    Case("empty batch sum", (0, 5), options=SUM),
    Case("empty batch none", (2, 3, 0), options=NONE),
)


class Dtypes(NamedTuple):
    """Of a call's tensors. Probabilities and weights have the logits' dtype or float32, None where there are none."""

    logits: str
    target: str | None
    weight: str | None


def calls(cases: Iterable[Case]) -> list[object]:
    """Every case in every combination of dtypes that the kernel takes."""
    parameters = []
    for case, dtype in itertools.product(cases, DTYPES):
        either = tuple(dict.fromkeys((dtype, "float32")))
        targets = either if case.probabilities else (None,)
        weights = either if case.weight else (None,)
        for target, weight in itertools.product(targets, weights):
            dtypes = Dtypes(dtype, target, weight)
            parameters.append(
                pytest.param(case, dtypes, id="-".join(filter(None, (case.name, *dtypes))))
            )
    return parameters


def make_loss(library: Library, case: Case, dtypes: Dtypes) -> tuple[Loss, np.ndarray]:
    drawn = case.inputs(dtypes.logits)
    logits, target, weight = drawn["logits"], drawn["target"], drawn["weight"]
    loss = Loss(
        library,
        cast(logits, dtypes.logits),
        target if dtypes.target is None else cast(target, dtypes.target),
        None if dtypes.weight is None else cast(weight, dtypes.weight),
        **case.options,
    )
    return loss, cast(drawn["grad_loss"], dtypes.logits)


@pytest.mark.parametrize(("case", "dtypes"), calls(CASES + SIZES))
def test_forward_and_statistics(isa_library: Library, case: Case, dtypes: Dtypes) -> None:
    dtype = dtypes.logits
    loss, _ = make_loss(isa_library, case, dtypes)
    expected, bound = loss.reference(), tolerance("cpu", dtype)
    value, total_weight, lse = loss.forward()
    check_close(to_float64(value), expected.loss, dtype, bound, "loss")
    check_close(total_weight, expected.total_weight, "float64", tolerance("cpu", "float64"))
    check_close(lse, expected.lse, "float64", bound._replace(ulps=0), "lse")
    value, total_weight, lse, z_loss, correct, entropy, predicted = loss.statistics()
    check_close(to_float64(value), expected.loss, dtype, bound, "loss of statistics")
    check_close(to_float64(z_loss), expected.z_loss, dtype, bound, "z_loss")
    # entropy = log s + E[distance]: two terms of up to log C, each with its own rounding.
    wide = bound._replace(absolute=4 * bound.absolute)
    check_close(to_float64(entropy), expected.entropy, dtype, wide, "entropy")
    assert correct == expected.num_correct
    np.testing.assert_array_equal(predicted, expected.predicted, "predicted", strict=True)


@pytest.mark.parametrize(("case", "dtypes"), calls(CASES + SIZES))
def test_gradients(isa_library: Library, case: Case, dtypes: Dtypes) -> None:
    dtype = dtypes.logits
    loss, grad_loss = make_loss(isa_library, case, dtypes)
    expected, bound = loss.reference_grad(grad_loss), tolerance("cpu", dtype)
    check_close(to_float64(loss.backward(grad_loss)), expected.logits, dtype, bound, "grad_logits")
    if loss.probability:
        grad = loss.target_grad(grad_loss)
        name = dtype_name(grad)
        check_close(to_float64(grad), expected.target, name, tolerance("cpu", name), "grad_target")
    if loss.weight is not None:
        # Summed over the rows of the problem, each with the loss's own bound.
        grad = loss.weight_grad(grad_loss)
        name = dtype_name(grad)
        wide = tolerance("cpu", name)
        wide = wide._replace(absolute=wide.absolute * max(1.0, np.prod(loss.rows) / 10))
        check_close(to_float64(grad), expected.weight, name, wide, "grad_weight")


def sum_of_rows(loss: Loss, direction: np.ndarray) -> np.ndarray:
    """The derivative of the loss along a direction, for each loss that it has."""
    unit = loss.reference_grad(cast(np.ones(loss.reduced), loss.dtype)).logits
    rows = reference.to_rows(unit * to_float64(direction)).sum(1)
    return rows.reshape(loss.rows) if loss.suffix else rows.sum()


@pytest.mark.parametrize(("case", "dtypes"), calls(CASES + SIZES))
def test_double_backward(isa_library: Library, case: Case, dtypes: Dtypes) -> None:
    dtype = dtypes.logits
    loss, grad_loss = make_loss(isa_library, case, dtypes)
    bound = tolerance("cpu", dtype)
    direction = cast(np.random.default_rng(1).normal(size=loss.shape), dtype)
    by_loss, by_z, by_logits, mean = loss.double_backward(direction, grad_loss)
    expected = loss.reference_hvp(direction, grad_loss)
    check_close(to_float64(by_logits), expected, dtype, bound, "hessian times direction")
    summed = sum_of_rows(loss, direction)
    wide = bound._replace(absolute=8 * bound.absolute, relative=4 * bound.relative)
    check_close(to_float64(by_loss), summed, dtype, wide, "derivative by grad_loss")
    expected = loss.reference_direction_mean(direction)
    check_close(mean, expected, "float64", bound._replace(ulps=0), "direction_mean")
    without = {**case.options, "z_loss": 0.0}
    bare = make_loss(isa_library, case._replace(options=without), dtypes)[0]
    by_z_loss = summed - sum_of_rows(bare, direction)
    check_close(to_float64(by_z), by_z_loss, dtype, wide, "derivative by grad_z_loss")


@pytest.mark.parametrize(
    ("case", "dtypes"),
    calls([case for case in CASES + SIZES if case.options.get("reduction") != "none"]),
)
def test_value_and_grad(isa_library: Library, case: Case, dtypes: Dtypes) -> None:
    dtype = dtypes.logits
    loss, _ = make_loss(isa_library, case, dtypes)
    one = cast(np.ones(()), dtype)
    value, total_weight, lse, grad = loss.value_and_grad()
    for got, wanted in zip((value, total_weight, lse), loss.forward(), strict=True):
        assert got.tobytes() == wanted.tobytes()
    expected = loss.reference_grad(one).logits
    check_close(to_float64(grad), expected, dtype, tolerance("cpu", dtype), "grad_logits")


def test_upstream_gradient_of_z_loss(isa_library: Library) -> None:
    """The z part of the gradient scales with grad_loss + grad_z_loss, the rest with grad_loss alone."""
    random = np.random.default_rng(0)
    logits, target = random.normal(size=(6, 9)), random.integers(0, 9, 6)
    zero, one, three = (np.full((), value) for value in (0.0, 1.0, 3.0))
    loss = Loss(isa_library, logits, target, z_loss=0.1)
    bare = Loss(isa_library, logits, target)
    z_part = loss.backward(one) - bare.backward(one)
    np.testing.assert_allclose(loss.backward(zero, three), 3 * z_part, rtol=1e-12, atol=1e-14)
    direction = random.normal(size=(6, 9))
    _, by_z, by_logits, _ = loss.double_backward(direction, zero, three)
    np.testing.assert_allclose(by_z, (z_part * direction).sum(), rtol=1e-10)
    whole = loss.double_backward(direction, one)[2] - bare.double_backward(direction, one)[2]
    np.testing.assert_allclose(by_logits, 3 * whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(50, 7), (2, 3, 4, 5), (6,)])
@pytest.mark.parametrize("weights", ["none", "own", "float32"])
def test_nll(library: Library, shape, reduction: str, dtype: str, weights: str) -> None:
    weighted, weight_dtype = weights != "none", dtype if weights == "own" else "float32"
    random = np.random.default_rng(2)
    rows = reference.rows_shape(shape)
    classes = shape[0] if len(shape) == 1 else shape[1]
    log_prob = cast(-random.random(shape), dtype)
    target = np.where(random.random(rows) < 0.3, -100, random.integers(0, classes, rows))
    weight = cast(random.random(classes), weight_dtype) if weighted else None
    reduced = rows if reduction == "none" else ()
    opts = options(reduction=reduction, has_weight=weighted)
    placeholder = cast(np.zeros(1), dtype) if weight is None else weight
    total_dtype = weight_dtype if weighted else dtype
    value, total = empty(reduced, dtype), empty((), total_dtype)
    name = "NLLForwardRows" if reduction == "none" else "NLLForward"
    library.call(name, [log_prob, target, placeholder, NO_ROW_WEIGHT, opts], [value, total])
    arguments = (to_float64(log_prob), target, weight if weight is None else to_float64(weight))
    expected, expected_total = reference.nll_loss(*arguments, reduction=reduction)
    bound = tolerance("cpu", dtype)
    check_close(to_float64(value), expected, dtype, bound, "loss")
    check_close(
        to_float64(total),
        expected_total,
        total_dtype,
        tolerance("cpu", total_dtype),
        "total_weight",
    )
    grad_loss, grad = cast(random.normal(size=reduced), dtype), cast(np.full(shape, np.nan), dtype)
    inputs = [grad_loss, target, placeholder, NO_ROW_WEIGHT, log_prob, opts]
    library.call("NLLBackward", inputs, [grad])
    upstream = to_float64(grad_loss)
    expected = reference.nll_loss_grad(*arguments, reduction=reduction, grad_loss=upstream)
    check_close(to_float64(grad), expected.logits, dtype, bound, "grad_log_prob")
    if weight is None:
        return
    # NLL's weight gradient is cross-entropy's with lse = 0: the kernel must take the lse it is given.
    by_weight, lse = empty((classes,), weight_dtype), np.zeros(rows)
    total = np.asarray(expected_total, np.float64)
    inputs = [grad_loss, placeholder, log_prob, target, weight, NO_ROW_WEIGHT, lse, total, opts]
    library.call("CrossEntropyWeightGrad", inputs, [by_weight])
    bound = tolerance("cpu", weight_dtype)
    check_close(to_float64(by_weight), expected.weight, weight_dtype, bound, "grad_weight")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("other", ["own", "float32"])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shape", [(7, 12), (3, 90), (2, 12, 5)])
def test_shards_add_up(
    library: Library, shape, probabilities: bool, other: str, dtype: str
) -> None:
    """CrossEntropyPartial over blocks of classes, combined as its contract says, is the whole loss."""
    case = Case(
        "shards", shape, probabilities, weight=True, options=NONE | {"label_smoothing": 0.1}
    )
    other = dtype if other == "own" else other
    whole, _ = make_loss(library, case, Dtypes(dtype, other if probabilities else None, other))
    classes, parts = shape[1], []
    bounds = [0, 1, classes // 3, classes]  # uneven blocks, one of a single class
    for begin, end in itertools.pairwise(bounds):
        block = np.ascontiguousarray(whole.logits[:, begin:end])
        target = np.ascontiguousarray(whole.target[:, begin:end]) if probabilities else whole.target
        opts = options(
            reduction="none",
            label_smoothing=0.1,
            class_offset=begin,
            total_classes=classes,
            has_weight=True,
        )
        partial = np.full((*whole.rows, 3), np.nan)
        library.call("CrossEntropyPartial", [block, target, whole.weight, opts], [partial])
        parts.append((block, target, opts, partial, slice(begin, end)))
    lse = np.logaddexp.reduce([part[3][..., 0] for part in parts])
    dot, mass = sum(part[3][..., 1] for part in parts), sum(part[3][..., 2] for part in parts)
    bound = tolerance("cpu", dtype)
    check_close(mass * lse - dot, whole.reference().loss, dtype, bound, "loss from shards")
    random = np.random.default_rng(3)
    # 16-bit logits with an upstream gradient that is not rounded to 16 bits.
    wide = "float64" if dtype == "float64" else "float32"
    upstream, by_lse = (cast(random.normal(size=whole.rows), wide) for _ in range(2))
    whole_gradient = whole.reference_grad(upstream)
    expected = whole_gradient.logits
    softmax = np.exp(np.asarray(whole.logits, np.float64) - np.expand_dims(lse, 1))
    expected = expected + np.expand_dims(to_float64(by_lse), 1) * softmax
    for block, target, opts, _, classes_here in parts:
        grad = np.full_like(block, np.nan)
        inputs = [upstream, by_lse, block, target, whole.weight, lse, mass, opts]
        library.call("CrossEntropyPartialBackward", inputs, [grad])
        check_close(grad, expected[:, classes_here], dtype, bound, f"gradient of {classes_here}")
    grad_weight = 0.0
    for block, target, opts, _, classes_here in parts:
        inputs = [upstream, block, target, whole.weight, lse, np.array(1.0), opts]
        own = np.full_like(whole.weight, np.nan)
        library.call("CrossEntropyPartialWeightGrad", inputs, [own])
        assert not np.delete(to_float64(own), np.r_[classes_here]).any()
        grad_weight = grad_weight + to_float64(own)
        if not probabilities:
            continue
        grad_target = np.full_like(target, np.nan)
        library.call("CrossEntropyPartialTargetGrad", inputs, [grad_target])
        wanted = whole_gradient.target[:, classes_here]
        name = dtype_name(target)
        check_close(grad_target, wanted, name, tolerance("cpu", name), f"targets {classes_here}")
    name = dtype_name(whole.weight)
    bound = tolerance("cpu", name)
    bound = bound._replace(absolute=bound.absolute * np.abs(whole_gradient.weight).max())
    check_close(grad_weight, whole_gradient.weight, name, bound, "gradient of weights")
