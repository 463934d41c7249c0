"""A factor for each row, in every loss: values, gradients, second use, and rows of weight 0 that hold anything."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import ms_ce
from ms_ce import reference
from tests.integration.conftest import DTYPES, times, to_numpy, to_tensor
from tests.integration.linear_cases import loop_in_a_bprop
from tests.support.cases import CASES, NLL_CASES, Case
from tests.support.linear_tolerances import check_linear
from tests.support.tolerances import check_close, tolerance

NAMED = (
    "plain", "unbatched none", "ignored none", "weight", "weight image", "smoothing weight ignored",
    "probabilities", "probabilities none", "probabilities sum", "everything", "everything probabilities",
)  # fmt: skip
LOSSES = [case for case in CASES if case.name in NAMED]
# Graphs of each kind of target with every option, and of a single row.
COMPILED = ("everything", "everything probabilities", "unbatched none")


def row_weight_of(shape: tuple[int, ...]) -> np.ndarray:
    """A third of the rows counts for nothing, and some weigh less than that."""
    random = np.random.default_rng(4)
    weight = (0.25 + random.random(shape)) * (random.random(shape) < 0.67)
    weight = np.where(random.random(shape) < 0.1, -0.5 * weight, weight)
    return np.where(np.sum(weight) > 0, weight, np.abs(weight) + 0.5).astype(np.float32)


def spoilt(data: dict[str, Any], row_weight: np.ndarray) -> dict[str, Any]:
    """The same inputs with nonsense in rows of weight 0: nan and inf logits, class indices and probabilities."""
    left_out, logits, target = row_weight == 0, data["logits"].copy(), data["target"].copy()
    axis = 0 if logits.ndim == 1 else 1
    everywhere = np.broadcast_to(np.expand_dims(left_out, axis), logits.shape)
    logits[everywhere] = np.resize([np.nan, np.inf, -np.inf], everywhere.sum())
    if np.issubdtype(target.dtype, np.integer):
        target[left_out] = 99
    else:
        target[everywhere] = np.nan
    return {**data, "logits": logits, "target": target}


def tensors_of(data: dict[str, Any], row_weight: np.ndarray, dtype: str) -> list[Tensor]:
    names = ("logits", "target", "weight")
    tensors = [to_tensor(data[name], dtype) for name in names if data[name] is not None]
    return [*tensors, to_tensor(row_weight), to_tensor(data["grad_loss"], dtype)]


def _cases(cases):
    for case in cases:
        for dtype in DTYPES:
            for backend in ("cpu", "composed"):
                yield pytest.param(
                    case, dtype, backend, "pynative", id=f"{case.name}-{dtype}-{backend}-pynative"
                )
                if case.name in COMPILED and dtype in ("float32", "bfloat16"):
                    yield pytest.param(
                        case, dtype, backend, "jit", id=f"{case.name}-{dtype}-{backend}-jit"
                    )


def _check(function, formula, gradient_formula, case: Case, dtype: str, backend: str, run) -> None:
    """`function(logits, target, weight, row_weight)` and its gradients; the reference sees no nonsense."""
    data = case.inputs(dtype)
    row_weight = row_weight_of(
        np.shape(data["target"]) if not case.probabilities else rows_of(case)
    )
    tensors = tensors_of(spoilt(data, row_weight), row_weight, dtype)
    arguments = (data["logits"], data["target"], data["weight"])
    settings = {**case.options, "row_weight": row_weight}
    expected = formula(*arguments, **settings)
    expected = getattr(expected, "loss", expected[0])
    gradients = gradient_formula(*arguments, **settings, grad_loss=data["grad_loss"])
    weighted = data["weight"] is not None

    if weighted:

        def value(logits, target, weight, row_weight):
            return function(logits, target, weight, row_weight)

        def loss(logits, target, weight, row_weight, upstream):
            return times(function(logits, target, weight, row_weight), upstream)

    else:

        def value(logits, target, row_weight):
            return function(logits, target, None, row_weight)

        def loss(logits, target, row_weight, upstream):
            return times(function(logits, target, None, row_weight), upstream)

    bound = tolerance(backend, dtype, "softcap" in case.options)
    check_close(to_numpy(run(value, *tensors[:-1])), expected, dtype, bound, "loss")
    wanted = [(0, gradients.logits)]
    wanted += [(1, gradients.target)] * (gradients.target is not None)
    wanted += [(2, gradients.weight)] * weighted
    positions = tuple(position for position, _ in wanted)
    computed = run(ms.grad(loss, positions), *tensors)
    computed = computed if len(positions) > 1 else (computed,)
    wide = bound._replace(absolute=bound.absolute * max(1.0, np.abs(data["grad_loss"]).max()))
    for (position, gradient), actual in zip(wanted, computed, strict=True):
        check_close(to_numpy(actual), gradient, dtype, wide, f"gradient {position}")


def rows_of(case: Case) -> tuple[int, ...]:
    return reference.rows_shape(case.shape)


@pytest.mark.parametrize(
    ("case", "dtype", "backend", "run"), list(_cases(LOSSES)), indirect=["run"]
)
def test_cross_entropy(case, dtype, backend, run):
    def function(logits, target, weight, row_weight):
        return ms_ce.cross_entropy(
            logits, target, weight, row_weight=row_weight, backend=backend, **case.options
        )

    formulas = reference.cross_entropy, reference.cross_entropy_grad
    _check(function, *formulas, case, dtype, backend, run)


@pytest.mark.parametrize(
    ("case", "dtype", "backend", "run"),
    list(_cases([case for case in NLL_CASES if case.name in NAMED])),
    indirect=["run"],
)
def test_nll_loss(case, dtype, backend, run):
    def function(log_prob, target, weight, row_weight):
        return ms_ce.nll_loss(
            log_prob, target, weight, row_weight=row_weight, backend=backend, **case.options
        )

    formulas = reference.nll_loss, reference.nll_loss_grad
    _check(function, *formulas, case, dtype, backend, run)


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("name", ("everything", "probabilities none"))
def test_statistics(name, backend, run):
    case = next(case for case in CASES if case.name == name)
    data, row_weight = case.inputs("float32"), row_weight_of(rows_of(case))
    arguments = (data["logits"], data["target"], data["weight"])
    settings = {**case.options, "row_weight": row_weight}
    expected = reference.cross_entropy(*arguments, **settings)
    weight = to_tensor(data["weight"], "float32")

    def statistics(logits, target, row_weight):
        return ms_ce.cross_entropy_with_stats(
            logits, target, weight, row_weight=row_weight, backend=backend, **case.options
        )

    bad = spoilt(data, row_weight)
    tensors = [to_tensor(bad["logits"]), to_tensor(bad["target"]), to_tensor(row_weight)]
    actual = run(statistics, *tensors)
    bound = tolerance(backend, "float32", "softcap" in case.options)
    bound = bound._replace(absolute=4 * bound.absolute)
    for name, got, value in zip(expected._fields, actual, expected, strict=True):
        check_close(to_numpy(got), np.asarray(value), "float32", bound, name)


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
def test_value_and_grad(backend, run):
    case = next(case for case in CASES if case.name == "everything")
    data, row_weight = case.inputs("float32"), row_weight_of(rows_of(case))
    arguments = (data["logits"], data["target"], data["weight"])
    settings = {**case.options, "row_weight": row_weight}

    def both(logits, target, weight, row_weight):
        return ms_ce.cross_entropy_value_and_grad(
            logits, target, weight, row_weight=row_weight, backend=backend, **case.options
        )

    tensors = tensors_of(spoilt(data, row_weight), row_weight, "float32")[:-1]
    loss, gradient = run(both, *tensors)
    bound = tolerance(backend, "float32", True)
    expected = reference.cross_entropy(*arguments, **settings).loss
    check_close(to_numpy(loss), expected, "float32", bound, "loss")
    expected = reference.cross_entropy_grad(*arguments, **settings).logits
    check_close(to_numpy(gradient), expected, "float32", bound, "gradient")


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
def test_second_derivative(backend, run):
    """The Hessian times a direction, and that no gradient reaches the row weights."""
    case = next(case for case in CASES if case.name == "weight")
    data, row_weight = case.inputs("float64"), row_weight_of(rows_of(case))
    direction = np.random.default_rng(1).normal(size=case.shape)
    fixed, weight = to_tensor(direction), to_tensor(data["weight"])

    def along(logits, target, row_weight):
        def loss(logits):
            return ms_ce.cross_entropy(
                logits, target, weight, row_weight=row_weight, backend=backend
            )

        return (ms.grad(loss)(logits) * fixed).sum()

    tensors = (to_tensor(data["logits"]), to_tensor(data["target"]), to_tensor(row_weight))
    actual = run(ms.grad(along), *tensors)
    arguments = (data["logits"], data["target"], data["weight"])
    expected = reference.cross_entropy_hvp(direction, *arguments, row_weight=row_weight)
    check_close(to_numpy(actual), expected, "float64", tolerance(backend, "float64"), "hvp")


@pytest.mark.parametrize("gradient_in_forward", (True, False))
@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
def test_gradient_in_forward(gradient_in_forward, run):
    case = next(case for case in CASES if case.name == "wide")
    data, row_weight = case.inputs("float32"), row_weight_of(rows_of(case)) + 0.5

    def loss(logits, target, row_weight):
        return ms_ce.cross_entropy(
            logits, target, row_weight=row_weight, gradient_in_forward=gradient_in_forward
        )

    tensors = (to_tensor(data["logits"]), to_tensor(data["target"]), to_tensor(row_weight))
    value, gradient = run(ms.value_and_grad(loss), *tensors)
    arguments = (data["logits"], data["target"])
    bound = tolerance("cpu", "float32")
    expected = reference.cross_entropy(*arguments, row_weight=row_weight).loss
    check_close(to_numpy(value), expected, "float32", bound, "loss")
    expected = reference.cross_entropy_grad(*arguments, row_weight=row_weight).logits
    check_close(to_numpy(gradient), expected, "float32", bound, "gradient")


class _Linear:
    """Hidden states, a table and targets of sequences, with nonsense where the weight is 0."""

    def __init__(self, probabilities: bool, dtype: str):
        random = np.random.default_rng(6)
        self.row_weight = row_weight_of((4, 9))
        self.hidden = random.normal(size=(4, 9, 5)).astype(np.float32)
        self.table = random.normal(size=(11, 5)).astype(np.float32)
        self.bias = random.normal(size=11).astype(np.float32)
        self.target = random.integers(0, 11, (4, 9))
        if probabilities:
            self.target = random.random((4, 9, 11)).astype(np.float32)
        if dtype == "bfloat16":
            tensors = (to_tensor(each, dtype) for each in (self.hidden, self.table, self.bias))
            self.hidden, self.table, self.bias = (to_numpy(each) for each in tensors)
        self.dtype = dtype

    def exact(self):
        return self.hidden, self.table, self.target, self.bias

    def tensors(self, shift: bool) -> list[Tensor]:
        hidden, target = self.hidden.copy(), self.target.copy()
        left_out = self.row_weight == 0
        target[left_out] = 99 if target.ndim == 2 else np.nan
        if shift:  # of the hidden state that answers for it
            left_out = np.concatenate([left_out[:, 1:], np.zeros_like(left_out[:, :1])], 1)
        hidden[left_out] = np.nan
        given = [to_tensor(each, self.dtype) for each in (hidden, self.table, self.bias)]
        target = to_tensor(target, self.dtype)
        return [given[0], given[1], target, given[2], to_tensor(self.row_weight)]


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("chunk_bytes", (4 * 11 * 4, None))
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("probabilities", (False, True))
@pytest.mark.parametrize("shift", (False, True))
def test_linear(shift, probabilities, reduction, chunk_bytes, dtype, backend):
    _check_linear(shift, probabilities, reduction, chunk_bytes, dtype, backend, lambda f, *x: f(*x))


@loop_in_a_bprop(reduction="none")
@pytest.mark.parametrize("run", ("jit",), indirect=True)
@pytest.mark.parametrize(
    ("shift", "probabilities", "reduction"), [(True, False, "mean"), (False, True, "none")]
)
def test_linear_compiled(shift, probabilities, reduction, backend, run):
    def compute(function, *tensors):
        return run(function, *tensors, composed_loop=backend == "composed")

    _check_linear(shift, probabilities, reduction, 4 * 11 * 4, "float32", backend, compute)


def _check_linear(shift, probabilities, reduction, chunk_bytes, dtype, backend, compute):
    problem = _Linear(probabilities, dtype)
    options = {"reduction": reduction, "shift": shift, "label_smoothing": 0.1, "z_loss": 0.01}

    def loss(input, linear_weight, target, linear_bias, row_weight):
        return ms_ce.linear_cross_entropy(
            input, linear_weight, target, linear_bias, row_weight=row_weight, chunk_bytes=chunk_bytes,
            backend=backend, **options,
        )  # fmt: skip

    expected = reference.linear_cross_entropy(
        *problem.exact(), row_weight=problem.row_weight, **options
    )
    tensors = problem.tensors(shift)
    value = compute(loss, *tensors)
    check_linear(to_numpy(value), expected.loss, backend, dtype, "loss")
    gradients = compute(ms.grad(loss, (0, 1, 3)), *tensors)
    wanted = reference.linear_cross_entropy_grad(
        *problem.exact(), row_weight=problem.row_weight, **options
    )
    for name, got in zip(("input", "linear_weight", "linear_bias"), gradients, strict=True):
        check_linear(to_numpy(got), getattr(wanted, name), backend, dtype, name)


@pytest.mark.parametrize("chunk_bytes", (4 * 11 * 4, None))
@pytest.mark.parametrize("probabilities", (False, True))
def test_linear_statistics(probabilities, chunk_bytes, backend):
    problem = _Linear(probabilities, "float32")
    hidden, table, target, bias, row_weight = problem.tensors(False)
    actual = ms_ce.linear_cross_entropy_with_stats(
        hidden, table, target, bias, row_weight=row_weight, z_loss=0.01, chunk_bytes=chunk_bytes, backend=backend
    )  # fmt: skip
    expected = reference.linear_cross_entropy(
        *problem.exact(), row_weight=problem.row_weight, z_loss=0.01
    )
    for name, got, value in zip(expected._fields, actual, expected, strict=True):
        check_linear(to_numpy(got), np.asarray(value), backend, "float32", name)


class _Step(nn.Cell):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def construct(self, logits, target, row_weight):
        return self.loss(logits, target, row_weight=row_weight)


@pytest.mark.parametrize("run", ("pynative", "jit", "graph"), indirect=True)
def test_cells(run):
    """By keyword, as the third input, and without one."""
    random = np.random.default_rng(2)
    logits, target = random.normal(size=(6, 5)).astype(np.float32), random.integers(0, 5, 6)
    row_weight = np.array([1, 0, 2, 0.5, 0, 1], np.float32)
    tensors = to_tensor(logits), to_tensor(target), to_tensor(row_weight)
    expected = reference.cross_entropy(logits, target, row_weight=row_weight).loss
    loss = ms_ce.CrossEntropyLoss()
    bound = {"rtol": 1e-6}
    np.testing.assert_allclose(to_numpy(run(_Step(loss), *tensors)), expected, **bound)
    np.testing.assert_allclose(to_numpy(run(loss, *tensors)), expected, **bound)
    plain = reference.cross_entropy(logits, target).loss
    np.testing.assert_allclose(to_numpy(run(loss, *tensors[:2])), plain, **bound)
    expected = reference.nll_loss(logits, target, row_weight=row_weight)[0]
    np.testing.assert_allclose(to_numpy(run(_Step(ms_ce.NLLLoss()), *tensors)), expected, rtol=1e-6)
    cell = ms_ce.LinearCrossEntropyLoss(5, 4)
    table, target = to_numpy(cell.linear_weight), target % 4
    expected = reference.linear_cross_entropy(logits, table, target, row_weight=row_weight).loss
    actual = run(_Step(cell), tensors[0], to_tensor(target), tensors[2])
    np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-5)


@pytest.mark.parametrize("value", (0.0, np.nan))
def test_weights_without_a_sum(value, backend):
    """Nothing that counts: nan as a mean over nothing is; a weight of nan makes the loss nan."""
    logits, target = Tensor(np.ones((2, 3), np.float32)), Tensor([0, 1])
    weight = Tensor([value, value], ms.float32)
    assert np.isnan(float(ms_ce.cross_entropy(logits, target, row_weight=weight, backend=backend)))


MESSAGES = {
    "shape": (Tensor([1.0, 2.0, 3.0], ms.float32), ValueError, r"row_weight must have shape \(2,\).*shape \(3,\)"),
    "rank": (Tensor([[1.0, 2.0]], ms.float32), ValueError, r"row_weight must have shape \(2,\)"),
    "dtype": (Tensor([1, 1]), TypeError, r"row_weight must have dtype .*float32.*got int64.*cast"),
    "list": ([1.0, 1.0], TypeError, r"row_weight must be a mindspore.Tensor, got list"),
}  # fmt: skip


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name, run):
    row_weight, error, text = MESSAGES[name]
    logits, target = Tensor(np.ones((2, 3), np.float32)), Tensor([0, 1])

    def plain(logits, target):
        return ms_ce.cross_entropy(logits, target, row_weight=row_weight)

    def linear(logits, target):
        return ms_ce.linear_cross_entropy(logits, logits, target, row_weight=row_weight)

    for function in (plain, linear):
        with pytest.raises(error, match=text):
            run(function, logits, target)
