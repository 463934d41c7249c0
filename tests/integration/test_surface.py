"""The public surface: arguments, deprecated ones, Cells, the primitive, statistics, dtypes of results."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

import ms_ce
from ms_ce import reference
from tests.integration.conftest import DTYPES, to_numpy, to_tensor
from tests.support.cases import CASES
from tests.support.tolerances import check_close, tolerance

LOGITS = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32)
LABELS = np.array([2, 0], np.int32)


@pytest.mark.parametrize("cell", [ms_ce.CrossEntropyLoss, ms_ce.NLLLoss])
@pytest.mark.parametrize(
    ("size_average", "reduce", "expected"),
    [
        (None, True, "mean"),
        (True, None, "mean"),
        (False, None, "sum"),
        (False, True, "sum"),
        (None, False, "none"),
        (True, False, "none"),
        (False, False, "none"),
    ],
)
def test_deprecated_pair_overrides_reduction(cell, size_average, reduce, expected):
    given = "sum" if expected == "mean" else "mean"
    with pytest.warns(DeprecationWarning, match=f"use reduction='{expected}'"):
        made = cell(size_average=size_average, reduce=reduce, reduction=given)
    assert made.plan.options.reduction == expected


class _Step(nn.Cell):
    """A Cell that holds a loss, as networks do."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def construct(self, logits, target):
        return self.loss(logits, target)


@pytest.mark.parametrize("name", ["smoothing weight ignored", "everything", "probabilities none"])
def test_cell_equals_reference(name, backend, run):
    case = next(case for case in CASES if case.name == name)
    data = case.inputs("float32")
    cell = _Step(ms_ce.CrossEntropyLoss(to_tensor(data["weight"]), backend=backend, **case.options))
    tensors = (to_tensor(data["logits"], "float32"), to_tensor(data["target"], "float32"))
    arguments = (data["logits"], data["target"], data["weight"])
    bound = tolerance(backend, "float32", "softcap" in case.options)
    expected = reference.cross_entropy(*arguments, **case.options).loss
    check_close(to_numpy(run(cell, *tensors)), expected, "float32", bound)

    def total(logits, target):
        return cell(logits, target).sum()

    gradient = reference.cross_entropy_grad(
        *arguments, **case.options, grad_loss=np.ones(np.shape(expected))
    ).logits
    check_close(to_numpy(run(ms.grad(total), *tensors)), gradient, "float32", bound)


def test_parameter_as_weight_is_trained(backend, run):
    """A Parameter given as weight receives its gradient."""
    weight = ms.Parameter(ms.Tensor([1.0, 2.0, 0.5]), name="class_weight")
    probabilities = np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]], np.float32)
    cell = ms_ce.CrossEntropyLoss(weight, backend=backend)
    assert list(cell.trainable_params()) == [weight]

    def loss(logits, target):
        return cell(logits, target)

    gradient = run(
        ms.grad(loss, None, weights=cell.trainable_params()),
        to_tensor(LOGITS),
        to_tensor(probabilities),
    )
    expected = reference.cross_entropy_grad(LOGITS, probabilities, weight.asnumpy()).weight
    check_close(to_numpy(gradient[0]), expected, "float32", tolerance(backend, "float32"))


def test_nll_cell(backend, run):
    weight = np.array([0.5, 1.0, 2.0], np.float32)
    cell = _Step(ms_ce.NLLLoss(to_tensor(weight), ignore_index=0, backend=backend))
    expected, _ = reference.nll_loss(LOGITS, LABELS, weight, ignore_index=0)
    actual = run(cell, to_tensor(LOGITS), to_tensor(LABELS))
    check_close(to_numpy(actual), expected, "float32", tolerance(backend, "float32"))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_primitive_returns_total_weight(reduction, dtype, backend, run):
    random = np.random.default_rng(0)
    case = next(case for case in CASES if case.name == "weight")
    data = case.inputs(dtype)
    primitive = ms_ce.ops.NLLLoss(reduction, backend=backend)
    labels = random.integers(0, 6, 12).astype(np.int32)
    labels[3] = -100
    tensors = [to_tensor(data[name], dtype) for name in ("logits", "weight")]
    loss, total_weight = run(primitive, tensors[0], ms.Tensor(labels), tensors[1])
    assert loss.dtype == total_weight.dtype == getattr(ms, dtype)
    expected, expected_weight = reference.nll_loss(
        data["logits"], labels, data["weight"], reduction=reduction
    )
    bound = tolerance(backend, dtype)
    check_close(to_numpy(loss), expected, dtype, bound)
    check_close(to_numpy(total_weight), expected_weight, dtype, bound)


@pytest.mark.parametrize(
    "name", ["plain", "weight none", "everything", "probabilities", "unbatched"]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_statistics(name, dtype, backend, run):
    case = next(case for case in CASES if case.name == name)
    data = case.inputs(dtype)
    weight = to_tensor(data["weight"], dtype)

    def statistics(logits, target):
        return ms_ce.cross_entropy_with_stats(
            logits, target, weight, backend=backend, **case.options
        )

    stats = run(statistics, to_tensor(data["logits"], dtype), to_tensor(data["target"], dtype))
    assert isinstance(stats, tuple if run.compiles else ms_ce.LossStats)
    stats = ms_ce.LossStats(*stats)
    arguments = (data["logits"], data["target"], data["weight"])
    expected = reference.cross_entropy(*arguments, **case.options)
    bound = tolerance(backend, dtype, "softcap" in case.options)
    for field in stats._fields:
        exact = field in ("total_weight", "lse")
        check_close(
            to_numpy(getattr(stats, field)),
            getattr(expected, field),
            "float32" if exact else dtype,
            bound._replace(ulps=0) if exact else bound,
            f"{name}: {field}",
        )


def test_gradients_of_statistics(backend, run):
    """They flow through loss and z_loss, each in its own right."""
    case = next(case for case in CASES if case.name == "z-loss")
    data = case.inputs("float32")

    def mixed(logits, target):
        stats = ms_ce.cross_entropy_with_stats(logits, target, backend=backend, **case.options)
        return 2.0 * stats[0] + 3.0 * stats[3]

    actual = run(ms.grad(mixed), to_tensor(data["logits"], "float32"), to_tensor(data["target"]))
    arguments = (data["logits"], data["target"])
    whole = reference.cross_entropy_grad(*arguments, **case.options).logits
    without = reference.cross_entropy_grad(*arguments).logits
    expected = 2.0 * whole + 3.0 * (whole - without)
    bound = tolerance(backend, "float32")
    check_close(to_numpy(actual), expected, "float32", bound._replace(absolute=1e-5))


@pytest.mark.parametrize("name", ["ignored", "image", "everything", "probabilities sum"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_in_one_sweep(name, dtype, backend, run):
    case = next(case for case in CASES if case.name == name)
    data = case.inputs(dtype)
    weight = to_tensor(data["weight"], dtype)

    def function(logits, target):
        return ms_ce.cross_entropy_value_and_grad(
            logits, target, weight, backend=backend, **case.options
        )

    loss, gradient = run(function, *(to_tensor(data[key], dtype) for key in ("logits", "target")))
    arguments = (data["logits"], data["target"], data["weight"])
    bound = tolerance(backend, dtype, "softcap" in case.options)
    expected = reference.cross_entropy(*arguments, **case.options).loss
    check_close(to_numpy(loss), expected, dtype, bound)
    expected = reference.cross_entropy_grad(*arguments, **case.options).logits
    check_close(to_numpy(gradient), expected, dtype, bound)


@pytest.mark.parametrize(
    "field", [1, 2, 4, 5, 6], ids=["total_weight", "lse", "num_correct", "entropy", "predicted"]
)
def test_what_is_only_logged_has_no_gradient(field, backend, run):
    case = next(case for case in CASES if case.name == "weight none")
    data = case.inputs("float32")
    weight = to_tensor(data["weight"], "float32")

    def logged(logits, target):
        stats = ms_ce.cross_entropy_with_stats(logits, target, weight, backend=backend)
        return stats[field].astype(ms.float32).sum()

    gradient = run(ms.grad(logged), to_tensor(data["logits"], "float32"), to_tensor(data["target"]))
    np.testing.assert_array_equal(to_numpy(gradient), np.zeros(case.shape))


def test_half_logits_with_float32_weight_and_probabilities(backend, run):
    """What torch.amp hands over: half-precision logits beside float32 everything else."""
    case = next(case for case in CASES if case.name == "probabilities smoothing weight")
    logits = to_tensor(case.inputs("float16")["logits"], "float16")
    data = case.inputs("float32")

    def loss(logits, target, weight):
        return ms_ce.cross_entropy(logits, target, weight, backend=backend, **case.options)

    tensors = (logits, to_tensor(data["target"]), to_tensor(data["weight"]))
    arguments = (to_numpy(logits), data["target"], data["weight"])
    expected = reference.cross_entropy(*arguments, **case.options)
    bound = tolerance(backend, "float16")
    check_close(to_numpy(run(loss, *tensors)), expected.loss, "float16", bound)
    gradients = run(ms.grad(loss, (0, 1, 2)), *tensors)
    wanted = reference.cross_entropy_grad(*arguments, **case.options)
    for gradient, tensor, values in zip(gradients, tensors, wanted, strict=True):
        assert gradient.dtype == tensor.dtype
        dtype = str(tensor.dtype).lower()
        check_close(to_numpy(gradient), values, dtype, tolerance(backend, dtype))


def test_one_graph_serves_every_shape(backend):
    """Dynamic shape: N and C unknown when compiled, forward and gradient, compiled once."""
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        loss = _Step(ms_ce.CrossEntropyLoss(label_smoothing=0.1, backend=backend))
        gradient = _Gradient(loss)
        for cell in (loss, gradient):
            cell.set_inputs(
                ms.Tensor(shape=[None, None], dtype=ms.float32),
                ms.Tensor(shape=[None], dtype=ms.int32),
            )
        phases = {"loss": set(), "gradient": set()}
        for rows, classes in ((4, 5), (7, 3), (1, 1), (3, 200)):
            random = np.random.default_rng(rows)
            logits = random.normal(size=(rows, classes)).astype(np.float32)
            target = random.integers(0, classes, rows).astype(np.int32)
            actual = loss(ms.Tensor(logits), ms.Tensor(target))
            slope = gradient(ms.Tensor(logits), ms.Tensor(target))
            phases["loss"] |= set(loss.compile_cache)
            phases["gradient"] |= set(gradient.compile_cache)
            bound = tolerance(backend, "float32")
            expected = reference.cross_entropy(logits, target, label_smoothing=0.1)
            check_close(to_numpy(actual), expected.loss, "float32", bound)
            wanted = reference.cross_entropy_grad(logits, target, label_smoothing=0.1)
            check_close(to_numpy(slope), wanted.logits, "float32", bound)
        assert {name: len(compiled) for name, compiled in phases.items()} == {
            "loss": 1,
            "gradient": 1,
        }
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


class _Gradient(nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.gradient = ms.ops.GradOperation()

    def construct(self, logits, target):
        return self.gradient(self.network)(logits, target)


def test_dynamic_shapes_are_checked_by_the_kernel():
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        loss = _Step(ms_ce.CrossEntropyLoss(backend="cpu"))
        loss.set_inputs(
            ms.Tensor(shape=[None, None], dtype=ms.float32),
            ms.Tensor(shape=[None], dtype=ms.int32),
        )
        with pytest.raises(RuntimeError, match="target must"):
            to_numpy(loss(ms.Tensor(LOGITS), ms.Tensor(np.zeros(3, np.int32))))
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_available_backends_give_reasons():
    table = {row.name: row for row in ms_ce.available_backends()}
    assert table["cpu"].reason is None
    assert table["composed"].reason is None
    assert "device target Ascend" in table["ascend"].reason


def test_training_with_a_cell():
    """A stock MindSpore training loop, graph mode: the loss falls."""
    ms.set_seed(0)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        network = nn.Dense(4, 3)
        optimizer = nn.SGD(network.trainable_params(), 0.5)
        step = nn.TrainOneStepCell(nn.WithLossCell(network, ms_ce.CrossEntropyLoss()), optimizer)
        random = np.random.default_rng(0)
        data = ms.Tensor(random.normal(size=(32, 4)).astype(np.float32))
        labels = ms.Tensor(random.integers(0, 3, 32).astype(np.int32))
        losses = [float(step(data, labels)) for _ in range(20)]
        assert losses[-1] < losses[0] - 0.1
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
