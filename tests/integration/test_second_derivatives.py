"""Hessian-vector products, a full Hessian and mixed second derivatives, against the reference."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

import ms_ce
from ms_ce import reference
from tests.integration.conftest import to_numpy, to_tensor
from tests.support.cases import CASES, Case
from tests.support.tolerances import check_close, tolerance

# One of each formula: the options' second derivatives differ, shapes and dtypes were covered by the first.
NAMES = (
    "plain",
    "ignored none",
    "smoothing weight ignored",
    "probabilities",
    "probabilities smoothing weight",
    "z-loss",
    "softcap",
    "everything",
    "everything probabilities",
)
SECOND = tuple(case for case in CASES if case.name in NAMES)


def _direction(case: Case) -> np.ndarray:
    return np.random.default_rng(1).normal(size=case.shape)


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", SECOND, ids=lambda case: case.name.replace(" ", "-"))
def test_hessian_vector_product(case, dtype, backend, run):
    data = case.inputs(dtype)
    weight = to_tensor(data["weight"], dtype)

    def loss(logits, target, upstream):
        value = ms_ce.cross_entropy(logits, target, weight, backend=backend, **case.options)
        return (value * upstream).sum()

    def slope(logits, target, upstream, direction):
        return (ms.grad(loss)(logits, target, upstream) * direction).sum()

    direction = _direction(case).astype(dtype)
    arguments = (data["logits"], data["target"], data["grad_loss"], direction)
    actual = run(ms.grad(slope), *(to_tensor(array, dtype) for array in arguments))
    expected = reference.cross_entropy_hvp(
        direction,
        data["logits"],
        data["target"],
        data["weight"],
        **case.options,
        grad_loss=data["grad_loss"],
    )
    bound = tolerance(backend, dtype, "softcap" in case.options)
    scale = max(np.abs(direction).max() * np.abs(data["grad_loss"]).max(), 1.0)
    bound = bound._replace(absolute=bound.absolute * scale)
    check_close(to_numpy(actual), expected, dtype, bound, case.name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hessian_vector_product_of_half_precision(dtype, backend, run):
    case = next(case for case in CASES if case.name == "probabilities smoothing weight")
    data = case.inputs(dtype)
    weight = to_tensor(data["weight"], dtype)
    direction = np.ones(case.shape)
    direction[:, 0] = -1.0

    def loss(logits, target):
        return ms_ce.cross_entropy(logits, target, weight, backend=backend, **case.options)

    def slope(logits, target, direction):
        gradient = ms.grad(loss)(logits, target).astype(ms.float32)
        return (gradient * direction).sum()

    tensors = [to_tensor(data["logits"], dtype), to_tensor(data["target"], dtype)]
    if dtype == "bfloat16" and backend == "cpu" and run.compiles:
        with pytest.raises(TypeError, match="AddN"):  # MindSpore's CPU adds no bfloat16 in a graph
            run(ms.grad(slope), *tensors, to_tensor(direction, "float32"))
        return
    actual = run(ms.grad(slope), *tensors, to_tensor(direction, "float32"))
    expected = reference.cross_entropy_hvp(
        direction, data["logits"], data["target"], data["weight"], **case.options
    )
    bound = tolerance(backend, dtype)
    check_close(to_numpy(actual), expected, dtype, bound._replace(ulps=2), case.name)


def test_full_hessian(backend, run):
    logits = np.array([0.3, -1.0, 2.0])

    def loss(logits, target):
        return ms_ce.cross_entropy(logits, target, backend=backend)

    def slope(logits, target, direction):
        return (ms.grad(loss)(logits, target) * direction).sum()

    columns = [
        to_numpy(
            run(
                ms.grad(slope),
                to_tensor(logits, "float64"),
                ms.Tensor(2, ms.int32),
                to_tensor(np.eye(3)[index], "float64"),
            )
        )
        for index in range(3)
    ]
    p = np.exp(logits) / np.exp(logits).sum()
    check_close(
        np.stack(columns), np.diag(p) - np.outer(p, p), "float64", tolerance(backend, "float64")
    )


def test_gradient_of_upstream_gradient(backend, run):
    """d/dg of Σ direction·(g·∇loss) is Σ direction·∇loss: the derivative used by gradient penalties."""
    case = next(case for case in CASES if case.name == "ignored none")
    data = case.inputs("float32")
    direction = _direction(case).astype(np.float32)

    def loss(logits, target, upstream):
        value = ms_ce.cross_entropy(logits, target, backend=backend, **case.options)
        return (value * upstream).sum()

    def slope(logits, target, upstream, direction):
        return (ms.grad(loss)(logits, target, upstream) * direction).sum()

    arguments = (data["logits"], data["target"], data["grad_loss"], direction)
    actual = run(ms.grad(slope, 2), *(to_tensor(array, "float32") for array in arguments))
    rows = reference.cross_entropy_grad(
        data["logits"], data["target"], **case.options, grad_loss=np.ones(len(data["logits"]))
    ).logits
    bound = tolerance(backend, "float32")._replace(absolute=2e-5)
    check_close(to_numpy(actual), (rows * direction).sum(1), "float32", bound)


def test_nll_loss_is_linear(backend, run):
    """The second derivative with respect to log_prob is 0, with respect to the upstream gradient -w_y·d_y."""
    log_prob = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    target = np.array([0, 3, -100, 2, 1], np.int32)
    direction = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    upstream = np.arange(5, dtype=np.float32)

    def loss(log_prob, target, upstream):
        value = ms_ce.nll_loss(log_prob, target, reduction="none", backend=backend)
        return (value * upstream).sum()

    def slope(log_prob, target, upstream, direction):
        return (ms.grad(loss)(log_prob, target, upstream) * direction).sum()

    tensors = [to_tensor(array) for array in (log_prob, target, upstream, direction)]
    by_input, by_upstream = run(ms.grad(slope, (0, 2)), *tensors)
    np.testing.assert_array_equal(to_numpy(by_input), np.zeros((5, 4)))
    expected = np.where(target >= 0, -direction[np.arange(5), np.maximum(target, 0)], 0.0)
    np.testing.assert_array_equal(to_numpy(by_upstream), expected)


def test_third_derivative_of_the_kernel_is_refused(run):
    """Nothing silent: the compiled kernel ends at the second order."""

    def loss(logits, target):
        return ms_ce.cross_entropy(logits, target, backend="cpu")

    def first(logits, target):
        return ops.square(ms.grad(loss)(logits, target)).sum()

    def second(logits, target):
        return ops.square(ms.grad(first)(logits, target)).sum()

    arguments = ms.Tensor([[0.1, 0.2]]), ms.Tensor([0])
    with pytest.raises(
        (NotImplementedError, RuntimeError), match=r"ms_ce: derivatives .* second order"
    ):
        to_numpy(run(ms.grad(second), *arguments))


def _difference(function, point, direction, step=1e-6):
    """Derivative of the reference's gradients along a direction, by central differences in float64."""
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)


MIXED_NAMES = ("probabilities smoothing weight", "probabilities", "everything probabilities")
MIXED = [case for case in CASES if case.name in MIXED_NAMES]


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("case", MIXED, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("first", [0, 1, 2], ids=["logits", "target", "weight"])
def test_mixed_second_derivatives_of_probabilities(case, first, backend, run):
    """Σ direction·∂loss/∂(argument `first`), differentiated by logits, target and weight."""
    data = case.inputs("float64")
    weight = np.random.default_rng(2).random(case.shape[1]) + 0.5
    points = [data["logits"], data["target"], weight]
    direction = np.random.default_rng(1).normal(size=points[first].shape)

    def loss(logits, target, weight):
        return ms_ce.cross_entropy(logits, target, weight, backend=backend, **case.options)

    def slope(logits, target, weight, direction):
        return (ms.grad(loss, first)(logits, target, weight) * direction).sum()

    tensors = [to_tensor(point, "float64") for point in points]
    actual = run(ms.grad(slope, (0, 1, 2)), *tensors, to_tensor(direction, "float64"))
    for second, name in enumerate(("logits", "target", "weight")):

        def gradient(value, second=second):
            moved = [*points[:first], value, *points[first + 1 :]]
            return reference.cross_entropy_grad(*moved, **case.options)[second]

        expected = _difference(gradient, points[first], direction)
        bound = tolerance(backend, "float64", "softcap" in case.options)
        bound = bound._replace(absolute=max(bound.absolute, 2e-5))
        check_close(to_numpy(actual[second]), expected, "float64", bound, name)


WEIGHED = [
    (ms_ce.cross_entropy, reference.cross_entropy_grad, "weight"),
    (ms_ce.cross_entropy, reference.cross_entropy_grad, "smoothing weight ignored"),
    (ms_ce.cross_entropy, reference.cross_entropy_grad, "weight none"),
    (ms_ce.cross_entropy, reference.cross_entropy_grad, "everything"),
    (ms_ce.nll_loss, reference.nll_loss_grad, "weight"),
    (ms_ce.nll_loss, reference.nll_loss_grad, "weight none"),
    (ms_ce.nll_loss, reference.nll_loss_grad, "weight image"),
]


@pytest.mark.parametrize(
    ("function", "gradients", "name"),
    WEIGHED,
    ids=[f"{function.__name__}-{name.replace(' ', '-')}" for function, _, name in WEIGHED],
)
def test_derivative_of_the_weight_gradient_of_class_indices(
    function, gradients, name, backend, run
):
    case = next(case for case in CASES if case.name == name)
    data = case.inputs("float64")
    direction = np.random.default_rng(1).normal(size=data["weight"].shape)
    upstream = np.ones(data["grad_loss"].shape)

    def loss(logits, target, weight):
        return function(logits, target, weight, backend=backend, **case.options).sum()

    def slope(logits, target, weight, direction):
        return (ms.grad(loss, 2)(logits, target, weight) * direction).sum()

    arguments = (data["logits"], data["target"], data["weight"], direction)
    actual = run(ms.grad(slope), *(to_tensor(array, "float64") for array in arguments))

    def gradient(weight):
        return gradients(
            data["logits"], data["target"], weight, **case.options, grad_loss=upstream
        ).logits

    expected = _difference(gradient, data["weight"], direction)
    bound = tolerance(backend, "float64", "softcap" in case.options)
    bound = bound._replace(absolute=max(bound.absolute, 2e-5))
    check_close(to_numpy(actual), expected, "float64", bound, name)


@pytest.mark.parametrize("weighted_rows", [False, True], ids=["", "row_weight"])
@pytest.mark.parametrize(
    ("function", "gradients", "name"),
    WEIGHED,
    ids=[f"{function.__name__}-{name.replace(' ', '-')}" for function, _, name in WEIGHED],
)
def test_second_derivative_by_the_weight(function, gradients, name, weighted_rows, backend, run):
    """Of a mean over class indices, whose divisor is a sum of weights, among others."""
    case = next(case for case in CASES if case.name == name)
    data = case.inputs("float64")
    random = np.random.default_rng(1)
    direction = random.normal(size=data["weight"].shape)
    rows = random.random(data["target"].shape) + 0.5 if weighted_rows else None
    upstream = np.full(data["grad_loss"].shape, 1.5)

    options = {"row_weight": to_tensor(rows, "float64"), "backend": backend, **case.options}

    def loss(logits, target, weight):
        return (function(logits, target, weight, **options) * 1.5).sum()

    def slope(logits, target, weight, direction):
        return (ms.grad(loss, 2)(logits, target, weight) * direction).sum()

    arguments = (data["logits"], data["target"], data["weight"], direction)
    actual = run(ms.grad(slope, 2), *(to_tensor(array, "float64") for array in arguments))

    def gradient(weight):
        given = {"row_weight": rows, "grad_loss": upstream, **case.options}
        return gradients(data["logits"], data["target"], weight, **given).weight

    expected = _difference(gradient, data["weight"], direction)
    bound = tolerance(backend, "float64", "softcap" in case.options)
    bound = bound._replace(absolute=max(bound.absolute, 2e-5))
    check_close(to_numpy(actual), expected, "float64", bound, name)


@pytest.mark.parametrize("run", ["pynative", "jit"], indirect=True)
@pytest.mark.parametrize("order", [(0, 2), (2, 0), (2, 2)], ids=["x-w", "w-x", "w-w"])
@pytest.mark.parametrize("output", ["loss", "z_loss"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_mixed_second_derivatives_of_statistics(reduction, output, order, backend, run):
    """Of a loss and of its z-loss, by logits and weight of class indices, with everything that transforms a logit."""
    data = next(case for case in CASES if case.name == "everything").inputs("float64")
    options = {"label_smoothing": 0.1, "z_loss": 0.05, "softcap": 4.0, "logit_scale": 1.5}
    options.update(ignore_index=-1, reduction=reduction)
    rows = np.random.default_rng(3).random(data["target"].shape) + 0.25
    points = [data["logits"], data["target"], data["weight"]]
    first, second = order
    direction = np.random.default_rng(1).normal(size=points[first].shape)
    row_weight, place = to_tensor(rows), {"loss": 0, "z_loss": 3}[output]

    def loss(logits, target, weight):
        stats = ms_ce.cross_entropy_with_stats(
            logits, target, weight, row_weight=row_weight, backend=backend, **options
        )
        return stats[place].sum()

    def slope(logits, target, weight, direction):
        return (ms.grad(loss, first)(logits, target, weight) * direction).sum()

    tensors = [to_tensor(each) for each in (*points, direction)]
    actual = run(ms.grad(slope, second), *tensors)

    def gradient(value):
        moved = [*points[:first], value, *points[first + 1 :]]
        upstream = np.ones(rows.shape if reduction == "none" else ())
        given = {**options, "row_weight": rows, "grad_loss": upstream}
        whole = reference.cross_entropy_grad(*moved, **given)[second]
        if output == "loss":
            return whole
        return whole - reference.cross_entropy_grad(*moved, **{**given, "z_loss": 0.0})[second]

    expected = _difference(gradient, points[first], direction)
    bound = tolerance(backend, "float64", softcap=True)
    bound = bound._replace(absolute=max(bound.absolute, 2e-5))
    check_close(to_numpy(actual), expected, "float64", bound, output)
