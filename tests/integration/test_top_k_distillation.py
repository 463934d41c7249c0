"""Distillation from a teacher's top-k log-probabilities against the float64 formulas of the logits."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from ms_ce.reference_distillation import distillation, top_k_distillation
from tests.integration.conftest import to_numpy, to_tensor
from tests.integration.linear_cases import check_rows_keep_their_bits, loop_in_a_bprop
from tests.support.linear_tolerances import check_linear

ROWS, CLASSES, K, FEATURES = (2, 6), 31, 4, 7
SEVERAL_CHUNKS = 5 * CLASSES * 4  # rows of the last chunk are fewer
EVERYTHING = {"temperature": 2.0, "softcap": 4.0, "logit_scale": 0.7}


def draw(dtype: str):
    """Hidden states, weight and bias of the student, rounded to dtype; k log-probabilities and classes."""
    random = np.random.default_rng(1)
    sizes = ((*ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    arrays = [random.normal(size=size).astype(np.float32) for size in sizes]
    arrays = [to_numpy(to_tensor(each, dtype)).astype(np.float64) for each in arrays]
    logits = 2 * random.normal(size=(*ROWS, CLASSES))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    indices = np.argsort(-log_p, -1)[..., :K]
    chosen = np.take_along_axis(log_p, indices, -1).astype(np.float32)
    return arrays, chosen, indices.astype(np.int32)


def row_weight_of():
    random = np.random.default_rng(2)
    return np.round(random.random(ROWS) * (random.random(ROWS) < 0.7), 3).astype(np.float32)


def check(options, dtype, backend, run, weighted=True, **more):
    """Loss and gradients of the student, where rows of weight 0 hold nan and classes that are none."""
    more = {"chunk_bytes": SEVERAL_CHUNKS, "backend": backend, **more}
    arrays, log_probs, indices = draw(dtype)
    row_weight = row_weight_of() if weighted else None
    per_row = options.get("reduction") == "none"
    upstream = np.random.default_rng(3).normal(size=ROWS) if per_row else np.array(1.5)
    upstream = upstream.astype(np.float32)
    flat = upstream.reshape(-1) if per_row else upstream
    logits = (arrays[0] @ arrays[1].T + arrays[2]).reshape(-1, CLASSES)
    teacher = (log_probs.reshape(-1, K), indices.reshape(-1, K))
    loss, slope = top_k_distillation(
        logits, *teacher, row_weight=row_weight, grad_loss=flat, **options
    )
    hidden = arrays[0].copy()
    if weighted:
        hidden[row_weight == 0] = log_probs[row_weight == 0] = np.nan
        indices[row_weight == 0] = CLASSES + 3
    tensors = [to_tensor(each, dtype) for each in (hidden, *arrays[1:])]
    tensors += [Tensor(log_probs), Tensor(indices)]
    given = None if row_weight is None else Tensor(row_weight)

    def value(hidden, weight, bias, log_probs, indices):
        return ms_ce.linear_top_k_distillation_loss(
            hidden, weight, log_probs, indices, bias, row_weight=given, **more, **options
        )

    def total(hidden, weight, bias, log_probs, indices, upstream):
        found = value(hidden, weight, bias, log_probs, indices)
        return (found.astype(upstream.dtype) * upstream).sum()

    gradient = ms.value_and_grad(total, (0, 1, 2))
    whole, gradients = run(gradient, *tensors, Tensor(upstream), composed_loop=True)
    if not run.compiles:
        found = value(*tensors)
        assert found.dtype == tensors[0].dtype
        expected = loss.reshape(ROWS) if per_row else loss
        check_linear(to_numpy(found), expected, "composed", dtype, "loss")
    expected = (np.asarray(loss) * flat).sum()
    check_linear(to_numpy(whole), expected, "composed", dtype, "loss in training")
    by_hidden = (slope @ arrays[1]).reshape(arrays[0].shape)
    exact = by_hidden, slope.T @ arrays[0].reshape(-1, FEATURES), slope.sum(0)
    for name, got, wanted in zip(("hidden", "weight", "bias"), gradients, exact, strict=True):
        check_linear(to_numpy(got), wanted, "composed", dtype, name)


@pytest.mark.parametrize("run", ("pynative",), indirect=True)
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("tail", (True, False))
@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
def test_divergences(beta, tail, reduction, backend, run):
    options = {"beta": beta, "tail": tail, "reduction": reduction, **EVERYTHING}
    check(options, "float32", backend, run)


@pytest.mark.parametrize("run", ("pynative",), indirect=True)
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64"))
def test_dtypes(dtype, backend, run):
    check({"beta": 0.5}, dtype, backend, run, weighted=False)


@loop_in_a_bprop(in_forward="auto")
@pytest.mark.parametrize("run", ("jit",), indirect=True)
@pytest.mark.parametrize(
    ("options", "in_forward", "dtype"),
    (
        ({"beta": 0.5, "reduction": "none", **EVERYTHING}, "auto", "float32"),
        ({"beta": 0.0}, True, "bfloat16"),
        ({"beta": 1.0, "tail": False}, False, "float32"),
    ),
)
def test_compiled(options, in_forward, dtype, backend, run):
    check(options, dtype, backend, run, gradient_in_forward=in_forward)


@pytest.mark.parametrize("run", ("pynative",), indirect=True)
def test_two_sweeps_and_the_factor_left_out(backend, run):
    options = {"beta": 0.2, "temperature": 3.0, "temperature_squared": False, "total_weight": 4.5}
    check(options, "float32", backend, run, gradient_in_forward=False)


@pytest.mark.parametrize("run", ("pynative",), indirect=True)
def test_one_chunk_and_no_weights(backend, run):
    check({}, "float32", backend, run, weighted=False, chunk_bytes=None)


def test_rows_have_the_same_bits_in_any_batch():
    random = np.random.default_rng(5)
    hidden, table = (Tensor(random.normal(size=(n, 24)), ms.float32) for n in (40, 300))
    log_probs = Tensor(np.log(random.dirichlet(np.ones(6), 40)[:, :5]), ms.float32)
    indices = Tensor(np.argsort(random.random((40, 300)), 1)[:, :5])

    def losses(hidden, rows, chunk_bytes):
        return ms_ce.linear_top_k_distillation_loss(
            hidden, table, log_probs[rows], indices[rows], beta=0.3, reduction="none",
            chunk_bytes=chunk_bytes, backend="cpu",
        )  # fmt: skip

    check_rows_keep_their_bits(losses, hidden, classes=300)


@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
def test_all_classes_are_the_whole_divergence(beta, backend):
    random = np.random.default_rng(4)
    student, teacher = random.normal(size=(2, 3, 5))
    log_p = teacher - np.log(np.exp(teacher).sum(-1, keepdims=True))
    classes = np.array([[4, 2, 0, 1, 3]] * 3)
    given = Tensor(np.take_along_axis(log_p, classes, 1)), Tensor(classes)

    def loss(student):
        table = Tensor(np.eye(5))
        return ms_ce.linear_top_k_distillation_loss(
            student, table, *given, beta=beta, backend=backend
        )

    value, slope = ms.value_and_grad(loss)(Tensor(student))
    expected, exact = distillation(student, teacher, beta=beta)
    np.testing.assert_allclose(float(value), expected, rtol=1e-12)
    np.testing.assert_allclose(to_numpy(slope), exact, rtol=1e-9, atol=1e-13)


def test_a_small_tail_is_exact_and_empty_places_add_nothing(backend):
    """1 - Σ q of the k would be 0 here; a log-probability of -inf is a place that stands empty."""
    student = np.array([[30.0, 29.0, 1.0, 0.0, -1.0]])
    log_probs, classes = np.array([[np.log(0.9), -np.inf]]), np.array([[0, 1]])

    def loss(student):
        table = Tensor(np.eye(5))
        return ms_ce.linear_top_k_distillation_loss(
            student, table, Tensor(log_probs), Tensor(classes), backend=backend
        )

    value, slope = ms.value_and_grad(loss)(Tensor(student))
    expected, exact = top_k_distillation(student, log_probs, classes)
    np.testing.assert_allclose(float(value), expected, rtol=1e-12)
    np.testing.assert_allclose(to_numpy(slope), exact, rtol=1e-11, atol=1e-15)


def test_the_teacher_is_a_constant_and_there_is_one_derivative(backend):
    (hidden, table, _), log_probs, indices = draw("float32")
    tensors = [Tensor(each, ms.float32) for each in (hidden, table, log_probs)]

    def loss(hidden, log_probs):
        return ms_ce.linear_top_k_distillation_loss(
            hidden, tensors[1], log_probs, Tensor(indices), chunk_bytes=SEVERAL_CHUNKS,
            backend=backend,
        )  # fmt: skip

    gradient = ms.grad(loss, 1)(tensors[0], tensors[2])
    np.testing.assert_array_equal(to_numpy(gradient), np.zeros(log_probs.shape))

    def slope(hidden):
        return ms.grad(loss)(hidden, tensors[2]).sum()

    with pytest.raises(NotImplementedError, match="differentiated once"):
        ms.grad(slope)(tensors[0])
    ms.common.api._pynative_executor.clear_res()


@pytest.mark.parametrize(
    ("indices", "text"),
    (
        ([[4, 0], [5, 1]], r"teacher_indices must be in \[0, 5\), got 5 at position \(1, 0\)"),
        (
            [[4, 0], [3, 3]],
            r"teacher_indices must hold no class twice in a row, got 3 twice in row \(1,\)",
        ),
    ),
    ids=("out of range", "twice"),
)
@pytest.mark.parametrize("beta", (0.5, 1.0))
def test_classes_that_cannot_be(beta, indices, text, backend):
    """Raise where Python runs and make loss and gradients of a graph nan, those of other rows' hidden states not."""
    hidden, table = Tensor(np.zeros((2, 3), np.float32)), Tensor(np.zeros((5, 3), np.float32))
    given = hidden, table, Tensor(np.full((2, 2), -1.0, np.float32)), Tensor(indices)
    more = {"beta": beta, "tail": False, "backend": backend}
    with pytest.raises(ValueError, match=text):
        ms_ce.linear_top_k_distillation_loss(*given, **more)

    def value(*given):
        return ms_ce.linear_top_k_distillation_loss(*given, **more)

    loss, (of_hidden, of_table) = ms.jit(ms.value_and_grad(value, (0, 1)))(*given)
    assert np.isnan(float(loss))
    assert np.isnan(to_numpy(of_hidden)).tolist() == [[False] * 3, [True] * 3]
    assert np.isnan(to_numpy(of_table)).all()


X, W = Tensor(np.zeros((2, 3), np.float32)), Tensor(np.zeros((5, 3), np.float32))
P, Y = Tensor(np.zeros((2, 2), np.float32)), Tensor([[0, 1], [0, 1]], ms.int32)
MESSAGES = [
    ((X, W[:, :2], P, Y), {}, ValueError, r"student_weight must have shape \(num_classes, 3\)"),
    ((X, W, P, Y, W), {}, ValueError, r"student_bias must have shape \(num_classes,\), got 2"),
    ((X, W, None, Y), {}, TypeError, "teacher_log_probs must be a mindspore.Tensor"),
    ((X, W, Y, Y), {}, TypeError, "teacher_log_probs must have dtype float16"),
    ((X, W, P, P), {}, TypeError, "teacher_indices must have dtype int32 or int64, got float32"),
    ((X, W, P[:1], Y), {}, ValueError, r"teacher_log_probs must have shape \(2, 'k'\)"),
    ((X, W, P, Y[:, :1]), {}, ValueError, r"teacher_indices must have shape \(2, 2\)"),
    ((X, W[:1], P, Y), {}, ValueError, "teacher_log_probs must have from 1 to 1 classes"),
    ((X, W, P, Y), {"tail": 1}, TypeError, "tail must be True or False"),
    ((X, W, P, Y), {"beta": 1.5}, ValueError, r"beta must be in \[0, 1\]"),
    ((X, W, P, Y), {"temperature": 0.0}, ValueError, "temperature must be above 0"),
    ((X, W, P, Y), {"row_weight": X}, ValueError, r"row_weight must have shape \(2,\)"),
    ((X, W, P, Y), {"reduction": "sum", "total_weight": 2}, ValueError, "total_weight is the divisor of a mean"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "options", "error", "text"), MESSAGES)
def test_messages(tensors, options, error, text):
    with pytest.raises(error, match=f"linear_top_k_distillation_loss: {text}"):
        ms_ce.linear_top_k_distillation_loss(*tensors, **options)
