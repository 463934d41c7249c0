"""The linear loss in chunks of MindSpore's matrix products: what backend composed does with more than one chunk."""

from __future__ import annotations

import mindspore as ms
import mindspore.train.mind_ir_pb2 as mindir_protocol
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.common.api import _cell_graph_executor

import ms_ce
from ms_ce import _versions, reference
from ms_ce.ops.chunks import DEFAULT_CHUNK
from ms_ce.ops.cpu import library
from ms_ce.ops.linear import sweep as linear_sweep
from tests.integration.test_linear import CASES, run_case
from tests.support.linear_tolerances import check_linear

ROWS, FEATURES, CLASSES, CHUNK_ROWS = 23, 4, 30, 4
OPTIONS = {"backend": "composed", "chunk_bytes": CHUNK_ROWS * CLASSES * 4}


def draw(rows: int = ROWS, ignored: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(12)
    hidden = random.normal(size=(rows, FEATURES)).astype(np.float32)
    linear_weight = random.normal(size=(CLASSES, FEATURES)).astype(np.float32)
    target = random.integers(0, CLASSES, rows).astype(np.int32)
    target[:ignored] = -100
    return hidden, linear_weight, target


class WithGradients(nn.Cell):
    """(loss, gradients of hidden and linear_weight)."""

    def __init__(self, **options):
        super().__init__()

        def loss(hidden, linear_weight, target):
            return ms_ce.linear_cross_entropy(
                hidden, linear_weight, target, **{**OPTIONS, **options}
            )

        self.compute = ms.value_and_grad(loss, (0, 1))

    def construct(self, hidden, linear_weight, target):
        return self.compute(hidden, linear_weight, target)


def check(computed, hidden, linear_weight, target) -> None:
    loss, (grad_hidden, grad_weight) = computed
    expected = reference.linear_cross_entropy_grad(hidden, linear_weight, target)
    value = reference.linear_cross_entropy(hidden, linear_weight, target).loss
    for actual, wanted, what in (
        (loss, value, "loss"),
        (grad_hidden, expected.input, "gradient of hidden"),
        (grad_weight, expected.linear_weight, "gradient of linear_weight"),
    ):
        check_linear(actual.asnumpy(), wanted, "composed", "float32", what)


# What "auto" does not choose in test_linear.py: one sweep in a graph, two where Python runs.
@pytest.mark.parametrize(
    ("name", "dtype", "run", "gradient_in_forward"),
    [
        ("everything", "float32", "jit", True),
        ("everything", "float32", "pynative", False),
        ("weight", "float16", "pynative", False),
    ],
    indirect=["run"],
)
def test_sweeps(name, dtype, run, gradient_in_forward):
    case = next(case for case in CASES if case.name == name)
    run_case(case, dtype, "composed", run, gradient_in_forward)


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_dynamic_number_of_rows(gradient_in_forward, graph_mode):
    """One compilation serves every number of rows, also fewer than a chunk has."""
    network = WithGradients(gradient_in_forward=gradient_in_forward)
    network.set_inputs(
        Tensor(shape=(None, FEATURES), dtype=ms.float32),
        Tensor(np.ones((CLASSES, FEATURES), np.float32)),
        Tensor(shape=(None,), dtype=ms.int32),
    )
    for rows in (ROWS, 8, 3):
        data = draw(rows, ignored=2)
        check(network(*map(Tensor, data)), *data)


@pytest.mark.parametrize(
    ("dtype", "rows", "classes", "features", "chunk_bytes", "expected"),
    (
        (ms.float32, 10, 100, 64, 4 * 100 * 4, 4),  # 4 rows fit: 3 chunks, of 4, 4 and 2 rows
        (ms.float64, 10, 100, 64, 4 * 100 * 4, 2),
        (ms.bfloat16, 9, 100, 64, 5 * 100 * 4, 5),  # logits are float32
        (ms.float32, 10, 100, 64, 1, 1),
        (ms.float32, 16, 65536, 64, 0, 16),  # the default is at least 4 MiB,
        (ms.float32, 32, 65536, 64, 0, 16),
        (ms.float32, 16384, 262144, 64, 0, 128),  # at most 128 MiB,
        # and with two copies of its hidden states and 1.5 MiB a twentieth: 51.2 - 1.5 MiB of 272 KiB a row
        (ms.float32, 4096, 65536, 2048, 0, 187),  # 187.1 fit
        (ms.float32, None, 10, 64, 0, 1024),
        (ms.float32, None, 262144, 64, 0, 128),
    ),
)
def test_rows_of_a_chunk(dtype, rows, classes, features, chunk_bytes, expected):
    assert linear_sweep.rows_of_chunk(dtype, rows, classes, features, chunk_bytes) == expected


def test_the_default_chunk_is_the_kernels():
    assert library.description()["default_chunk"] == DEFAULT_CHUNK


def _nodes(network, *inputs) -> int:
    phase, _ = _cell_graph_executor.compile(network, *inputs)
    model = mindir_protocol.ModelProto()
    executor = _cell_graph_executor._graph_executor
    model.ParseFromString(executor.get_func_graph_proto(phase, "mind_ir", False))
    return sum(len(graph.node) for graph in (model.graph, *model.functions))


def test_a_graph_does_not_grow_with_the_chunks(graph_mode):
    """One loop: 3 chunks or 30."""
    counts = []
    for chunks in (3, 30):
        network = WithGradients(gradient_in_forward=True)
        counts.append(_nodes(network, *map(Tensor, draw(CHUNK_ROWS * chunks))))
    assert counts[0] == counts[1] < 400, counts


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_a_chunk_of_logits_at_a_time_and_none_of_ignored_rows(gradient_in_forward, monkeypatch):
    shapes = []
    product = linear_sweep._product_with_transpose

    def recorded(hidden, matrix):
        logits = product(hidden, matrix)
        shapes.append(logits.shape)
        return logits

    monkeypatch.setattr(linear_sweep, "_product_with_transpose", recorded)
    data = draw(ignored=ROWS - 2 * CHUNK_ROWS)
    check(WithGradients(gradient_in_forward=gradient_in_forward)(*map(Tensor, data)), *data)
    sweeps = 1 if gradient_in_forward else 2
    assert shapes == [(CHUNK_ROWS, CLASSES)] * 2 * sweeps


def whole(hidden, linear_weight, target):
    return ms_ce.linear_cross_entropy(
        hidden, linear_weight, target, backend="composed", chunk_bytes=ROWS * CLASSES * 4
    )


def chunked(hidden, linear_weight, target):
    return ms_ce.linear_cross_entropy(hidden, linear_weight, target, **OPTIONS)


def test_second_derivative_where_one_chunk_holds_all(run):
    """The Hessian times the gradient."""
    hidden, linear_weight, target = draw()

    def slope(hidden, linear_weight, target):
        return (ms.grad(whole)(hidden, linear_weight, target) ** 2).sum() / 2

    actual = run(ms.grad(slope), *map(Tensor, (hidden, linear_weight, target)))
    matrix = linear_weight.astype(np.float64)
    gradient = reference.linear_cross_entropy_grad(hidden, matrix, target).input
    expected = reference.cross_entropy_hvp(gradient @ matrix.T, hidden @ matrix.T, target) @ matrix
    check_linear(actual.asnumpy(), expected, "composed", "float32", "second derivative")


def test_second_derivative_in_chunks_raises():
    def slope(hidden, linear_weight, target):
        return (ms.grad(chunked)(hidden, linear_weight, target) ** 2).sum()

    with pytest.raises(NotImplementedError, match="a chunk_bytes that holds all logits"):
        ms.grad(slope)(*map(Tensor, draw())).asnumpy()


@pytest.mark.parametrize(
    ("shift", "position"), [(False, r"\(3, 2\)"), (True, r"\(3, 2\)")], ids=("plain", "shift")
)
def test_target_out_of_range_names_its_position_in_the_whole(shift, position):
    hidden, linear_weight, target = draw(24)
    target = target.reshape(4, 6)
    target[3, 2] = CLASSES
    target[0, 0] = -7 if shift else 0  # the first target of a sequence is not used under shift
    arguments = map(Tensor, (hidden.reshape(4, 6, FEATURES), linear_weight, target))
    with pytest.raises(ValueError, match=f"target {CLASSES} at position {position}"):
        ms_ce.linear_cross_entropy(*arguments, shift=shift, **OPTIONS)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_nothing_counts(reduction, gradient_in_forward):
    hidden, linear_weight, target = map(Tensor, draw(ignored=ROWS))

    def total(hidden, linear_weight):
        return ms_ce.linear_cross_entropy(
            hidden,
            linear_weight,
            target,
            reduction=reduction,
            gradient_in_forward=gradient_in_forward,
            **OPTIONS,
        ).sum()

    loss, gradients = ms.value_and_grad(total, (0, 1))(hidden, linear_weight)
    assert np.isnan(loss.asnumpy()) if reduction == "mean" else not loss.asnumpy().any()
    for gradient in gradients:
        assert not gradient.asnumpy().any()


@pytest.mark.parametrize("place", (0, 1, 2))
def test_views_of_other_tensors_in_a_graph(place, run):
    """MindSpore's loops read such a tensor from the wrong place."""
    random = np.random.default_rng(4)
    hidden = random.normal(size=(3, ROWS, FEATURES)).astype(np.float32)
    table = random.normal(size=(3, CLASSES, FEATURES)).astype(np.float32)
    bias, weight = random.random((2, 3, CLASSES)).astype(np.float32)
    labels = random.integers(0, CLASSES, (3, ROWS))
    arrays = (hidden, table, labels, bias, weight)

    def loss(hidden, table, labels, bias, weight):
        return ms_ce.linear_cross_entropy(hidden, table, labels, bias, weight, **OPTIONS)

    views = [Tensor(array)[place] for array in arrays]
    gradients = run(ms.grad(loss, (0, 1, 3)), *views)
    one = [array[place] for array in arrays]
    expected = reference.linear_cross_entropy_grad(*one)
    wanted = (expected.input, expected.linear_weight, expected.linear_bias)
    for gradient, right in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), right, rtol=1e-4, atol=1e-6)


def test_a_mindspore_that_compiles_no_loop_in_a_bprop(monkeypatch):
    """Gradients are made in the forward pass there; where that cannot be, the gradient is refused by name."""
    monkeypatch.setattr(_versions, "loops_in_bprops", False)
    data = draw(ROWS - 1)

    def loss(hidden, linear_weight, target):
        return ms_ce.linear_cross_entropy(hidden, linear_weight, target, **OPTIONS)

    def rows(hidden, linear_weight, target):
        return ms_ce.linear_cross_entropy(
            hidden, linear_weight, target, reduction="none", **OPTIONS
        ).sum()

    check(ms.jit(ms.value_and_grad(loss, (0, 1)))(*map(Tensor, data)), *data)
    with pytest.raises(NotImplementedError, match="in several chunks with reduction 'none'"):
        ms.jit(ms.grad(rows))(*map(Tensor, data))
