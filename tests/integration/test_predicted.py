"""The class that each row predicts, in the statistics of every form: which one, and where there is none."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import ms_ce
from ms_ce import reference
from tests.integration.conftest import DTYPES, to_numpy, to_tensor
from tests.support.cases import CASES

NAN, INF = np.nan, np.inf
# Rows with the class that they predict. Those without a softmax predict none.
ROWS = (
    ([0.5, 2.0, 1.0], 1),
    ([3.0, -1.0, 3.0], 0),
    ([-1.0, 3.0, 3.0], 1),
    ([-INF, -INF, 0.0], 2),
    ([1.0, NAN, 2.0], -1),
    ([NAN, 1.0, 2.0], -1),
    ([1.0, INF, 2.0], -1),
    ([-INF, -INF, -INF], -1),
)
LOGITS = np.array([row for row, _ in ROWS], np.float32)
PREDICTED = np.array([predicted for _, predicted in ROWS], np.int32)
# Hidden states and a table whose products are LOGITS[:4]: the others would be nan throughout.
FINITE = np.where(LOGITS[:4] == -INF, -1e4, LOGITS[:4])
TABLE = np.eye(3, dtype=np.float32)
ONE_CHUNK, CHUNKS = 1 << 20, 2 * 3 * 4


def check(actual: Tensor, expected: np.ndarray) -> None:
    assert actual.dtype == ms.int32
    np.testing.assert_array_equal(to_numpy(actual), expected, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name != "wide"], ids=lambda case: case.name
)
def test_every_option(case, dtype, backend):
    data = case.inputs(dtype)
    tensors = [to_tensor(data[name], dtype) for name in ("logits", "target", "weight")]
    actual = ms_ce.cross_entropy_with_stats(*tensors, backend=backend, **case.options)
    arguments = (data["logits"], data["target"], data["weight"])
    expected = reference.cross_entropy(*arguments, **case.options)
    check(actual.predicted, expected.predicted)
    assert int(actual.num_correct) == expected.num_correct


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ("class indices", "probabilities"))
def test_ties_and_rows_without_a_softmax(form, dtype, backend, run):
    """Of equally large logits the first; and a row that predicts nothing is not right."""
    target = np.maximum(PREDICTED, 1)
    if form == "probabilities":
        target = np.eye(3)[target]

    def statistics(logits, target):
        return ms_ce.cross_entropy_with_stats(logits, target, reduction="none", backend=backend)

    found = run(statistics, to_tensor(LOGITS, dtype), to_tensor(target, dtype))
    check(found[6], PREDICTED)
    assert int(found[4]) == 3


def test_one_row(backend, run):
    def statistics(logits, target):
        return ms_ce.cross_entropy_with_stats(logits, target, backend=backend)

    found = run(statistics, to_tensor(LOGITS[2]), to_tensor(np.array(1)))
    check(found[6], np.array(1, np.int32))
    assert int(found[4]) == 1


def test_logits_that_float32_takes_for_equal(backend):
    logits = np.array([[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]])
    found = ms_ce.cross_entropy_with_stats(Tensor(logits), Tensor([1, 1]), backend=backend)
    check(found.predicted, np.array([1, 0], np.int32))
    assert int(found.num_correct) == 1


def test_the_sign_of_the_scale(backend):
    """The largest is that of the logits after scale and softcap."""
    target, options = Tensor([2, 0, 0, 0]), {"logit_scale": -1.0, "softcap": 30.0}
    found = ms_ce.cross_entropy_with_stats(Tensor(FINITE), target, backend=backend, **options)
    check(found.predicted, np.array([0, 1, 0, 0], np.int32))


@pytest.mark.parametrize("ignore_index", (-100, -1, 1))
def test_rows_that_do_not_count(ignore_index, backend, run):
    """By their target or their weight, whatever they hold; -1 in them is not their target."""
    target = np.array([ignore_index, 0, ignore_index, 2, 0, ignore_index, 0, 0])
    row_weight = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0], np.float32)

    def statistics(logits, target, row_weight):
        return ms_ce.cross_entropy_with_stats(
            logits, target, row_weight=row_weight, ignore_index=ignore_index, backend=backend
        )

    tensors = to_tensor(LOGITS), to_tensor(target), to_tensor(row_weight)
    found = run(statistics, *tensors)
    check(found[6], np.array([-1, 0, -1, -1, -1, -1, -1, -1], np.int32))
    assert int(found[4]) == 1


@pytest.mark.parametrize("probabilities", (False, True))
@pytest.mark.parametrize("shape", ((0, 3), (2, 3, 0)))
def test_empty_batches(shape, probabilities, backend, run):
    """MindSpore's Argmax takes none."""

    def statistics(logits, target):
        return ms_ce.cross_entropy_with_stats(logits, target, reduction="sum", backend=backend)

    rows = np.zeros(reference.rows_shape(shape), np.int32)
    logits = to_tensor(np.zeros(shape, np.float32))
    found = run(statistics, logits, logits if probabilities else to_tensor(rows))
    check(found[6], rows)
    assert int(found[4]) == 0


def test_a_bad_class_index_where_nothing_can_raise(run):
    """In graphs of composed the row predicts nothing, in one chunk or in several; PyNative raises."""

    def whole(logits, target):
        return ms_ce.cross_entropy_with_stats(logits, target, backend="composed")

    def linear(chunk_bytes):
        def statistics(hidden, table, target):
            return ms_ce.linear_cross_entropy_with_stats(
                hidden, table, target, chunk_bytes=chunk_bytes, backend="composed"
            )

        return statistics

    target = to_tensor(np.array([3, 0, -1, 2]))
    calls = [(whole, (to_tensor(FINITE), target))]
    for chunk_bytes in (ONE_CHUNK, CHUNKS):
        calls.append((linear(chunk_bytes), (to_tensor(FINITE), to_tensor(TABLE), target)))
    for function, tensors in calls:
        if not run.compiles:
            with pytest.raises(ValueError, match="target 3 at position"):
                run(function, *tensors)
            continue
        found = run(function, *tensors, composed_loop=True)
        check(found[6], np.array([-1, 0, -1, 2], np.int32))
        assert int(found[4]) == 2


@pytest.mark.parametrize("reduction", ("none", "mean"))
@pytest.mark.parametrize("chunk_bytes", (ONE_CHUNK, CHUNKS))
@pytest.mark.parametrize("probabilities", (False, True))
def test_the_linear_loss(probabilities, chunk_bytes, reduction, backend, run):
    """Row weights and ignored rows, which chunks take out of their order."""
    target = np.array([1, -100, 0, 2])
    if probabilities:
        target = np.eye(3, dtype=np.float32)[np.abs(target) % 3]
    row_weight = np.array([2.0, 1.0, 1.0, 0.0], np.float32)

    def statistics(hidden, table, target, row_weight):
        return ms_ce.linear_cross_entropy_with_stats(
            hidden,
            table,
            target,
            row_weight=row_weight,
            reduction=reduction,
            chunk_bytes=chunk_bytes,
            backend=backend,
        )

    arrays = FINITE, TABLE, target
    tensors = [to_tensor(each) for each in (*arrays, row_weight)]
    found = run(statistics, *tensors, composed_loop=backend == "composed")
    expected = reference.linear_cross_entropy(*arrays, row_weight=row_weight, reduction=reduction)
    check(found[6], expected.predicted)
    assert int(found[4]) == expected.num_correct


@pytest.mark.parametrize("chunk_bytes", (ONE_CHUNK, CHUNKS))
@pytest.mark.parametrize("name", ("hidden", "bias"))
def test_the_linear_loss_of_rows_without_a_softmax(name, chunk_bytes, backend):
    hidden, bias = FINITE.copy(), np.zeros(3, np.float32)
    if name == "hidden":
        hidden[1] = NAN
    else:
        bias[:] = -INF
    tensors = Tensor(hidden), Tensor(TABLE), Tensor([1, 0, 1, 2]), Tensor(bias)
    found = ms_ce.linear_cross_entropy_with_stats(
        *tensors, chunk_bytes=chunk_bytes, backend=backend
    )
    expected = [1, -1, 1, 2] if name == "hidden" else [-1, -1, -1, -1]
    check(found.predicted, np.array(expected, np.int32))
    assert int(found.num_correct) == (3 if name == "hidden" else 0)


def test_classes_beyond_what_float32_tells_apart(backend):
    """2^24 + 1, under shift, where rows are moved."""
    classes = 2**24 + 2
    table = np.zeros((classes, 1), np.float32)
    table[classes - 1] = 1.0
    target = np.array([[0, classes - 1, 0]])
    found = ms_ce.linear_cross_entropy_with_stats(
        Tensor(np.ones((1, 3, 1), np.float32)),
        Tensor(table),
        Tensor(target),
        shift=True,
        chunk_bytes=4 * classes,
        backend=backend,
    )
    check(found.predicted, np.array([[classes - 1, classes - 1]], np.int32))
    assert int(found.num_correct) == 1


@pytest.mark.mindspore(
    ">=2.8",
    reason="vmap of Select fails where only some of its arguments are mapped",
    always=False,
    only={"backend": "composed"},
)
@pytest.mark.parametrize("axes", ((0, None), (0, 0), (None, 0)))
def test_vmap(axes, backend):
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 4, 5)).astype(np.float32)
    logits[1, 2] = NAN
    target = random.integers(0, 5, (3, 4))
    target[:, 1] = -100
    arrays = [
        array if axis == 0 else array[1] for array, axis in zip((logits, target), axes, strict=True)
    ]

    def statistics(logits, target):
        found = ms_ce.cross_entropy_with_stats(logits, target, backend=backend)
        return found[4], found[6]

    num_correct, predicted = ms.vmap(statistics, axes)(*[Tensor(array) for array in arrays])
    for i in range(3):
        own = [array[i] if axis == 0 else array for array, axis in zip(arrays, axes, strict=True)]
        expected = reference.cross_entropy(*own)
        check(predicted[i], expected.predicted)
        assert int(num_correct[i]) == expected.num_correct


@pytest.mark.mindspore(
    ">=2.8",
    reason="vmap of Select fails where only some of its arguments are mapped",
    always=False,
    only={"backend": "composed"},
)
def test_vmap_of_the_linear_loss(backend):
    hidden = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)

    def statistics(hidden, table, target):
        found = ms_ce.linear_cross_entropy_with_stats(hidden, table, target, backend=backend)
        return found[6]

    target = np.array([0, -100, 1, 2])
    tensors = Tensor(hidden), Tensor(TABLE), Tensor(target)
    predicted = ms.vmap(statistics, (0, None, None))(*tensors)
    check(predicted, np.where(target == -100, -1, hidden.argmax(-1)).astype(np.int32))


class _Network(nn.Cell):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def construct(self, logits, target):
        return ms_ce.cross_entropy_with_stats(logits, target, backend=self.backend)


def test_one_graph_serves_every_shape(backend, graph_mode):
    network = _Network(backend)
    unknown = ms.Tensor(shape=[None, None], dtype=ms.float32)
    network.set_inputs(unknown, ms.Tensor(shape=[None], dtype=ms.int32))
    for rows, classes in ((4, 5), (1, 1), (3, 200)):
        random = np.random.default_rng(rows)
        logits = random.normal(size=(rows, classes)).astype(np.float32)
        target = random.integers(0, classes, rows).astype(np.int32)
        found = network(Tensor(logits), Tensor(target))
        check(found[6], reference.cross_entropy(logits, target).predicted)
    assert len(network.compile_cache) == 1
