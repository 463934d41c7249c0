"""Distillation from hidden states against the float64 formulas of the logits."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from ms_ce.reference_distillation import distillation
from tests.integration.conftest import to_numpy, to_tensor
from tests.integration.linear_cases import check_rows_keep_their_bits, loop_in_a_bprop
from tests.support.linear_tolerances import check_linear

ROWS, CLASSES = (2, 6), 31
SEVERAL_CHUNKS = 5 * CLASSES * 4  # rows of the last chunk are fewer
EVERYTHING = {"temperature": 2.0, "softcap": 4.0, "logit_scale": 0.7}


def draw(dtype: str):
    """Hidden states, weight and bias of the student, then of the teacher, rounded to dtype."""
    random = np.random.default_rng(1)
    sizes = ((*ROWS, 7), (CLASSES, 7), (CLASSES,), (*ROWS, 5), (CLASSES, 5), (CLASSES,))
    arrays = [random.normal(size=size).astype(np.float32) for size in sizes]
    return [to_numpy(to_tensor(each, dtype)).astype(np.float64) for each in arrays]


def row_weight_of():
    random = np.random.default_rng(2)
    weight = random.random(ROWS) * (random.random(ROWS) < 0.7)
    return np.round(weight, 3).astype(np.float32)


def check(options, dtype, backend, run, weighted=True, dtypes=None, **more):
    """Loss and gradients of the student, where rows of weight 0 hold nan; the formula knows nothing of `more`. `dtypes`
    of the tensors are more exact than `dtype`, to which all are rounded."""
    more = {"chunk_bytes": SEVERAL_CHUNKS, "backend": backend, **more}
    arrays, row_weight = draw(dtype), row_weight_of() if weighted else None
    per_row = options.get("reduction") == "none"
    upstream = np.random.default_rng(3).normal(size=ROWS) if per_row else np.array(1.5)
    logits = [
        (hidden @ weight.T + bias).reshape(-1, CLASSES)
        for hidden, weight, bias in (arrays[:3], arrays[3:])
    ]
    upstream = upstream.astype(np.float32)
    flat = upstream.reshape(-1) if per_row else upstream
    loss, slope = distillation(*logits, row_weight=row_weight, grad_loss=flat, **options)
    tensors = []
    for each, own in zip(arrays, dtypes or [dtype] * 6, strict=True):
        values = each.copy()
        if weighted and values.ndim == 3:
            values[row_weight == 0] = np.nan
        tensors.append(to_tensor(values, own))
    given = None if row_weight is None else Tensor(row_weight)

    def value(student_hidden, student_weight, student_bias, hidden, weight, bias):
        return ms_ce.linear_distillation_loss(
            student_hidden, student_weight, hidden, weight, student_bias, bias,
            row_weight=given, **more, **options,
        )  # fmt: skip

    def total(student_hidden, student_weight, student_bias, hidden, weight, bias, upstream):
        found = value(student_hidden, student_weight, student_bias, hidden, weight, bias)
        return (found.astype(upstream.dtype) * upstream).sum()

    gradient = ms.value_and_grad(total, (0, 1, 2))
    wide = Tensor(upstream.astype(np.float64) if dtype == "float64" else upstream)
    whole, gradients = run(gradient, *tensors, wide, composed_loop=True)
    if not run.compiles:
        found = value(*tensors)
        assert found.dtype == tensors[0].dtype
        expected = loss.reshape(ROWS) if per_row else loss
        check_linear(to_numpy(found), expected, backend, dtype, "loss")
    expected = (np.asarray(loss) * flat).sum()
    check_linear(to_numpy(whole), expected, backend, dtype, "loss in training")
    exact = (slope @ arrays[1]).reshape(*ROWS, 7), slope.T @ arrays[0].reshape(-1, 7), slope.sum(0)
    for name, got, wanted in zip(("hidden", "weight", "bias"), gradients, exact, strict=True):
        check_linear(to_numpy(got), wanted, backend, dtype, name)


@pytest.mark.parametrize("run", ("pynative",), indirect=True)
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
def test_divergences(beta, reduction, backend, run):
    check({"beta": beta, "reduction": reduction, **EVERYTHING}, "float32", backend, run)


@pytest.mark.parametrize("run", ("pynative",), indirect=True)
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64"))
def test_dtypes(dtype, backend, run):
    check({"beta": 0.5}, dtype, backend, run, weighted=False)


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("reduction", ("none", "sum"))
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64"))
@pytest.mark.parametrize("beta", (0.0, 0.3, 1.0))
def test_dtypes_of_the_kernel(beta, dtype, reduction, run):
    """In graphs too, where MindSpore's CPU takes no view of bfloat16."""
    check({"beta": beta, "reduction": reduction}, dtype, "cpu", run)


MIXED = {
    "a table of float32": ("float16", "float32", "float32", "float16", "float16", "float16"),
    "biases of float32": ("float16", "float16", "float32", "float16", "float16", "float32"),
    "a teacher of float32": ("float16", "float16", "float16", "float32", "float32", "float32"),
    "a teacher of float64": ("float32", "float32", "float32", "float64", "float64", "float64"),
    "a teacher of two": ("float32", "float32", "float32", "float16", "float32", "float16"),
    "a student of float64": ("float64", "float64", "float64", "float16", "float16", "float16"),
}


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("name", MIXED)
def test_models_of_several_dtypes(name, run):
    """Gradients have the dtypes of what they belong to."""
    check({"beta": 0.3, "reduction": "none"}, "float16", "cpu", run, dtypes=MIXED[name])


@loop_in_a_bprop(in_forward="auto")
@pytest.mark.parametrize("run", ("jit",), indirect=True)
@pytest.mark.parametrize(
    ("options", "in_forward"),
    (
        ({"beta": 0.5, "reduction": "none", **EVERYTHING}, "auto"),
        ({"beta": 0.0}, True),
        ({"beta": 1.0}, False),
    ),
)
def test_compiled(options, in_forward, backend, run):
    check(options, "float32", backend, run, gradient_in_forward=in_forward)


@pytest.mark.parametrize("run", ("pynative",), indirect=True)
def test_two_sweeps_and_the_factor_left_out(backend, run):
    options = {"beta": 0.2, "temperature": 3.0, "temperature_squared": False, "total_weight": 4.5}
    check(options, "float32", backend, run, gradient_in_forward=False)


@pytest.mark.parametrize("run", ("pynative",), indirect=True)
def test_one_chunk_and_no_weights(backend, run):
    check({}, "float32", backend, run, weighted=False, chunk_bytes=None)


@pytest.mark.parametrize("in_forward", (True, False))
@pytest.mark.parametrize("wanted", ((0,), (1,), (2,), (0, 2), (1, 2)))
def test_what_is_not_wanted_is_left_out(wanted, in_forward, backend):
    """What is made is what it is beside the others, with the same bits on cpu."""
    tensors = [Tensor(each, ms.float32) for each in draw("float32")]

    def gradient(wanted):
        fixed = [ms.ops.stop_gradient(each) for each in tensors[:3]]

        def loss(*given):
            student = fixed.copy()
            for place, each in zip(wanted, given, strict=True):
                student[place] = each
            return ms_ce.linear_distillation_loss(
                student[0], student[1], tensors[3], tensors[4], student[2], tensors[5],
                beta=0.4, chunk_bytes=SEVERAL_CHUNKS, gradient_in_forward=in_forward, backend=backend,
            )  # fmt: skip

        found = ms.grad(loss, tuple(range(len(wanted))))(*[tensors[place] for place in wanted])
        return found if isinstance(found, tuple) else (found,)

    whole = gradient((0, 1, 2))
    for place, made in zip(wanted, gradient(wanted), strict=True):
        rounding = 0.0 if backend == "cpu" else 1e-6
        np.testing.assert_allclose(to_numpy(made), to_numpy(whole[place]), rounding, rounding)


def test_rows_have_the_same_bits_in_any_batch():
    random = np.random.default_rng(5)
    sizes = ((40, 24), (300, 24), (40, 9), (300, 9))
    hidden, table, teacher, teacher_table = (
        Tensor(random.normal(size=size), ms.float32) for size in sizes
    )

    def losses(hidden, rows, chunk_bytes):
        return ms_ce.linear_distillation_loss(
            hidden, table, teacher[rows], teacher_table, beta=0.3, reduction="none",
            chunk_bytes=chunk_bytes, backend="cpu",
        )  # fmt: skip

    check_rows_keep_their_bits(losses, hidden, classes=300)


def test_masked_logits_and_an_empty_batch(backend):
    """A class that neither model can choose adds nothing; one that only the student can is no loss forward."""
    lowest = -np.inf
    student, teacher = np.array([0.3, 1.0, lowest, 0.1]), np.array([lowest, 0.5, lowest, 1.0])
    hidden, table = Tensor([[0.0]], ms.float64), Tensor(np.zeros((4, 1)))

    def loss(bias, beta):
        return ms_ce.linear_distillation_loss(
            hidden, table, hidden, table, bias, Tensor(teacher), beta=beta, backend=backend
        )

    for beta in (0.0, 0.5, 1.0):
        value, slope = ms.value_and_grad(loss)(Tensor(student), beta)
        expected, exact = distillation(student[None], teacher[None], beta=beta)
        np.testing.assert_allclose(to_numpy(value), expected, rtol=1e-12)
        if beta < 1:  # else the loss is inf
            np.testing.assert_allclose(to_numpy(slope), exact[0], rtol=1e-12, atol=1e-15)
    nothing = Tensor(np.zeros((2, 1))), table, Tensor(np.zeros((2, 1))), table
    weight = Tensor([0.0, 0.0])
    assert np.isnan(float(ms_ce.linear_distillation_loss(*nothing, row_weight=weight)))


def test_row_weights_are_constants_where_they_cancel(backend):
    """A mean's divisor is their sum: of 0 it has an infinite derivative."""
    hidden, table = Tensor([[1.0, 2.0], [0.5, 1.0]]), Tensor([[1.0, 0.0], [0.0, 1.0]])
    stored = Tensor([[-0.5], [-0.5]]), Tensor([[1], [0]], ms.int32)

    def of_teacher(weight):
        return ms_ce.linear_distillation_loss(
            hidden, table, -hidden, table, row_weight=weight, backend=backend
        )

    def of_stored(weight):
        return ms_ce.linear_top_k_distillation_loss(
            hidden, table, *stored, row_weight=weight, backend=backend
        )

    for loss in (of_teacher, of_stored):
        for weight in ([1.0, -1.0], [0.0, 0.0], [1.0, 2.0]):
            np.testing.assert_array_equal(to_numpy(ms.grad(loss)(Tensor(weight))), 0.0)


def test_the_teacher_is_a_constant_and_there_is_one_derivative(backend):
    tensors = [Tensor(each, ms.float32) for each in draw("float32")]

    def loss(student, teacher, table):
        return ms_ce.linear_distillation_loss(
            student, tensors[1], teacher, table, chunk_bytes=SEVERAL_CHUNKS, backend=backend
        )

    gradients = ms.grad(loss, (1, 2))(tensors[0], tensors[3], tensors[4])
    for gradient in gradients:
        np.testing.assert_array_equal(to_numpy(gradient), np.zeros(gradient.shape))

    def slope(student):
        return ms.grad(loss)(student, tensors[3], tensors[4]).sum()

    with pytest.raises(NotImplementedError, match="differentiated once"):
        ms.grad(slope)(tensors[0])
    ms.common.api._pynative_executor.clear_res()


X, W = Tensor(np.zeros((2, 3), np.float32)), Tensor(np.zeros((5, 3), np.float32))
MESSAGES = [
    ((X, W, X, W[:4]), {}, ValueError, "teacher_weight must have 5 rows.*one vocabulary"),
    ((X, W, X[:1], W), {}, ValueError, r"teacher_hidden must have shape \(2, 3\)"),
    ((X, W[:, :2], X, W), {}, ValueError, r"student_weight must have shape \(num_classes, 3\)"),
    ((X, W[0], X, W), {}, ValueError, r"student_weight must have shape \(num_classes, in_features\)"),
    ((X, W, X, W, W), {}, ValueError, r"student_bias must have shape \(num_classes,\), got 2"),
    ((X, W, X, W, None, X[0]), {}, ValueError, r"teacher_bias must have shape \(5,\)"),
    ((X, W, None, W), {}, TypeError, "teacher_hidden must be a mindspore.Tensor"),
    ((X, W, Tensor([[1, 2, 3]] * 2), W), {}, TypeError, "teacher_hidden must have dtype float16"),
    ((X, W, X, W), {"beta": 1.5}, ValueError, r"beta must be in \[0, 1\].*reverse KL"),
    ((X, W, X, W), {"beta": "js"}, TypeError, "beta must be a float"),
    ((X, W, X, W), {"temperature": 0.0}, ValueError, "temperature must be above 0"),
    ((X, W, X, W), {"temperature_squared": 1}, TypeError, "temperature_squared must be True or False"),
    ((X, W, X, W), {"reduction": "batchmean"}, ValueError, "reduction must be 'none', 'mean' or 'sum'"),
    ((X, W, X, W), {"row_weight": X}, ValueError, r"row_weight must have shape \(2,\)"),
    ((X, W, X, W), {"reduction": "sum", "total_weight": 2}, ValueError, "total_weight is the divisor of a mean"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "options", "error", "text"), MESSAGES)
def test_messages(tensors, options, error, text):
    with pytest.raises(error, match=f"linear_distillation_loss: {text}"):
        ms_ce.linear_distillation_loss(*tensors, **options)


@pytest.mark.parametrize("chunk_bytes", (None, SEVERAL_CHUNKS))
def test_a_mapped_gradient_is_right_or_refused(chunk_bytes, backend):
    """By our sentence where its rows are a loop over chunks in MindSpore."""
    arrays = draw("float32")
    hidden, table, _, teacher, teacher_table, _ = (to_tensor(each) for each in arrays)
    teacher = teacher[0]

    def loss(hidden):
        return ms_ce.linear_distillation_loss(
            hidden, table, teacher, teacher_table, chunk_bytes=chunk_bytes, backend=backend
        )

    mapped = ms.vmap(ms.grad(loss))
    if backend == "cpu":
        of_teacher = arrays[3][0] @ arrays[4].T
        expected = [
            distillation(each @ arrays[1].T, of_teacher)[1] @ arrays[1] for each in arrays[0]
        ]
        np.testing.assert_allclose(to_numpy(mapped(hidden)), expected, rtol=1e-4, atol=1e-6)
        return
    with pytest.raises(ValueError, match="in several chunks is not vectorised"):
        mapped(hidden)
