"""All rows ignored, infinite and large logits, bad targets, empty batches, weights of 0: what must come out is
stated."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.expected import Options, check_gradient, check_loss, check_lse, within
from tests.ascend.operators import Run, backward, decode, encode, forward, forward_grad, partial
from tests.ascend.problems import DTYPES, make

# One class count for each path: a matrix of short rows with one and with several repeats, rows that share a
# tile, rows of
# several tiles; (2, 20000) on 7 cores is split into slices.
PATHS = ((6, 40, 2), (6, 300, 2), (6, 3000, 2), (9, 20000, 2), (2, 20000, 7))


def run_both(
    logits, target, dtype, shape, *, reduction="none", grad_loss=1.0, weight=None, **options
):
    """Forward and backward; returns the outputs with the gradient among them."""
    run = Run(cores=shape[2])
    out, _ = forward(logits, target, weight, dtype, reduction=reduction, run=run, **options)
    upstream = np.full(len(logits), grad_loss) if reduction == "none" else np.full(1, grad_loss)
    gradient, _ = backward(
        upstream,
        logits,
        target,
        weight,
        out["lse"],
        out["total_weight"],
        dtype,
        reduction=reduction,
        run=run,
        **options,
    )
    return {**out, "gradient": decode(gradient, dtype)}


@pytest.mark.parametrize("shape", PATHS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_ignored(dtype, shape):
    rows, classes, cores = shape
    logits = encode(np.full((rows, classes), np.nan), dtype)  # nothing of them may be looked at
    target = np.full(rows, -100, np.int32)
    out = run_both(logits, target, dtype, shape, reduction="mean")
    assert np.isnan(out["loss"]).all()
    assert out["total_weight"] == 0
    assert (out["lse"] == 0).all()
    assert (out["gradient"] == 0).all()
    out = run_both(logits, target, dtype, shape, reduction="sum")
    assert out["loss"] == 0
    assert (out["gradient"] == 0).all()
    both, _ = forward_grad(logits, target, None, dtype, run=Run(cores=cores))
    assert np.isnan(both["loss"]).all()
    assert (decode(both["grad_logits"], dtype) == 0).all()


@pytest.mark.parametrize("shape", PATHS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_are_not_read(dtype, shape):
    rows, classes, _ = shape
    logits = encode(np.zeros((rows, classes)), dtype)
    target = np.zeros(rows, np.int32)
    target[0] = -100
    out, traffic = forward(logits, target, None, dtype, reduction="none", run=Run(cores=shape[2]))
    row_bytes = classes * logits.itemsize
    assert traffic.read["logits"] <= (rows - 1) * (row_bytes + 32)
    gradient, traffic = backward(
        np.ones(rows),
        logits,
        target,
        None,
        out["lse"],
        out["total_weight"],
        dtype,
        reduction="none",
        run=Run(cores=shape[2]),
    )
    assert traffic.read["logits"] <= (rows - 1) * row_bytes
    assert (decode(gradient, dtype)[0] == 0).all()


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("shape", PATHS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits(dtype, shape, offset):
    """A common offset of ±1e4 costs the loss nothing, and the gradient only what lse loses in float32."""
    random = np.random.default_rng(1)
    logits = offset + random.normal(scale=5.0, size=shape[:2])
    for options in (Options("none"), Options("mean", label_smoothing=0.1)):
        problem, coded, target = make(shape, dtype, options, logits=logits)
        out = run_both(
            coded,
            target,
            dtype,
            shape,
            reduction=options.reduction,
            labelSmoothing=options.label_smoothing,
        )
        check_loss(problem, out["loss"])
        check_lse(problem, out["lse"])
        problem.grad_loss = np.float64(1.0)
        check_gradient(problem, out["gradient"], dtype)


@pytest.mark.parametrize("shape", PATHS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(dtype, shape):
    """1e4 beside -1e4: one class takes all of the probability."""
    random = np.random.default_rng(2)
    logits = np.where(random.random(shape[:2]) < 0.5, 1e4, -1e4)
    problem, coded, target = make(shape, dtype, Options("none"), logits=logits)
    out = run_both(coded, target, dtype, shape)
    check_loss(problem, out["loss"])
    problem.grad_loss = np.float64(1.0)
    check_gradient(problem, out["gradient"], dtype)


@pytest.mark.parametrize("shape", PATHS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_infinity(dtype, shape):
    """-inf beside the target changes nothing else; at the target the loss is inf; everywhere it is NaN."""
    rows, classes, _ = shape
    random = np.random.default_rng(3)
    logits = random.normal(size=(rows, classes))
    logits[:, 1::3] = -np.inf
    target = np.zeros(rows, np.int32)
    target[-1] = 1
    problem, coded, _ = make(shape, dtype, Options("none"), logits=logits)
    out = run_both(coded, target, dtype, shape)
    problem.target, problem.grad_loss = target, np.float64(1.0)
    check_loss(problem, out["loss"])
    assert np.isposinf(out["loss"][-1])
    check_gradient(problem, out["gradient"], dtype)
    out = run_both(encode(np.full((rows, classes), -np.inf), dtype), target, dtype, shape)
    assert np.isnan(out["loss"]).all()
    assert np.isnan(out["gradient"]).all()
    smooth, _ = forward(
        coded, target, None, dtype, reduction="none", labelSmoothing=0.1, run=Run(cores=shape[2])
    )
    assert np.isposinf(smooth["loss"]).all()


@pytest.mark.parametrize("shape", PATHS, ids=str)
def test_class_of_weight_zero(shape):
    """A class of weight 0 contributes 0 to a smoothed loss even where its logit is -inf; another one makes it inf."""
    rows, classes, _ = shape
    logits = np.zeros((rows, classes), np.float32)
    logits[:, 2] = -np.inf
    target = np.zeros(rows, np.int32)
    weight = np.ones(classes, np.float32)
    weight[2] = 0.0
    run = Run(cores=shape[2])
    out, _ = forward(
        logits, target, weight, "float32", reduction="none", labelSmoothing=0.5, run=run
    )
    expected = np.log(classes - 1) * (0.5 + 0.5 * (classes - 1) / classes)
    within(out["loss"], np.full(rows, expected), 1e-5, "loss")
    weight[2] = 1e-3
    out, _ = forward(
        logits, target, weight, "float32", reduction="none", labelSmoothing=0.5, run=run
    )
    assert np.isposinf(out["loss"]).all()


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("shape", PATHS, ids=str)
def test_not_a_number_stays_in_its_row(shape, value):
    rows, classes, _ = shape
    logits = np.zeros((rows, classes), np.float32)
    logits[-1, classes - 1] = value
    out = run_both(logits, np.zeros(rows, np.int32), "float32", shape)
    assert np.isnan(out["loss"]).tolist() == [False] * (rows - 1) + [True]
    expected = np.full((rows - 1, classes), 1 / classes)
    expected[:, 0] -= 1
    within(out["gradient"][:-1], expected, 1e-6, "gradient of the others")
    assert np.isnan(out["gradient"][-1]).all()


@pytest.mark.parametrize("target_dtype", ["int32", "int64"])
@pytest.mark.parametrize("shape", PATHS, ids=str)
def test_bad_target(shape, target_dtype):
    """NaN in that row only, and an error record with the number of bad targets, the first row and its target."""
    rows, classes, cores = shape
    logits = np.zeros((rows, classes), np.float32)
    for bad in (
        classes,
        -1,
        2**31 - 1,
        *([2**40 + 1, -(2**40)] if target_dtype == "int64" else []),
    ):
        target = np.zeros(rows, target_dtype)
        target[1:] = bad
        out = run_both(logits, target, "float32", shape)
        assert np.isnan(out["loss"]).tolist() == [False] + [True] * (rows - 1)
        assert np.isnan(out["gradient"]).all(1).tolist() == [False] + [True] * (rows - 1)
        words = out["error"].view(np.uint32).astype(np.uint64)
        assert words[0] == rows - 1
        assert words[1] == 1
        assert words[2] == 0
        assert np.uint64(words[3] | words[4] << np.uint64(32)).astype(np.int64) == bad
        both, _ = forward_grad(logits, target, None, "float32", run=Run(cores=cores))
        assert np.isnan(both["loss"]).all()
        assert both["error"].tolist() == out["error"].tolist()
        assert np.isnan(both["grad_logits"]).all(1).tolist() == [False] + [True] * (rows - 1)


def test_empty_batch():
    logits, target = np.zeros((0, 50), np.float32), np.zeros(0, np.int32)
    assert np.isnan(forward(logits, target, None, "float32")[0]["loss"]).all()
    assert forward(logits, target, None, "float32", reduction="sum")[0]["loss"] == 0
    assert forward(logits, target, None, "float32", reduction="none")[0]["error"].tolist() == [
        0,
        -1,
        -1,
        0,
        0,
        0,
        0,
        0,
    ]
    assert partial(logits, target, None, "float32")[0]["error"][0] == 0


@pytest.mark.parametrize("shape", PATHS, ids=str)
def test_target_of_weight_zero_at_minus_infinity(shape):
    """0·inf is 0 here: a class of weight 0 asks for nothing."""
    rows, classes, _ = shape
    logits = np.zeros((rows, classes), np.float32)
    logits[:, 0] = -np.inf
    weight = np.ones(classes, np.float32)
    weight[0] = 0.0
    out = run_both(logits, np.zeros(rows, np.int32), "float32", shape, weight=weight)
    assert (out["loss"] == 0).all()
    assert (out["gradient"] == 0).all()


@pytest.mark.parametrize("upstream", [0.0, -2.5])
@pytest.mark.parametrize("shape", PATHS, ids=str)
def test_upstream_gradient(shape, upstream):
    options = Options("sum")
    problem, logits, target = make(shape, "float32", options)
    problem.grad_loss = np.float64(upstream)
    out = run_both(logits, target, "float32", shape, reduction="sum", grad_loss=upstream)
    check_gradient(problem, out["gradient"], "float32")
