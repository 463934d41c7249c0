"""What the kernels cost, counted on the host model: bytes from and to global memory, copy sizes and vector repeats."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.operators import Run, backward, encode, forward, forward_grad, model
from tests.ascend.problems import DTYPES

LIMIT = 1.02
# A core may not pay for small copies where a larger one was possible.
COPY_BYTES = 16384
SHAPES = (
    (4096, 128, 48),
    (512, 1000, 48),
    (96, 4096, 48),
    (48, 32000, 48),
    (96, 32000, 48),
    (4, 128256, 48),
)


def arguments(shape, dtype):
    rows, classes, cores = shape
    logits = encode(np.zeros((rows, classes), np.float32), dtype)
    return (logits, np.zeros(rows, np.int32), None, dtype), Run(cores=cores)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_reads_once_and_writes_no_matrix(dtype, shape):
    call, run = arguments(shape, dtype)
    _, counted = forward(*call, run=run)
    assert counted.read["logits"] <= LIMIT * call[0].nbytes
    written = sum(counted.written.values())
    # Per row: lse. Per core: a record. Split rows: lane statistics, 1 KB for each slice.
    assert written <= shape[0] * 4 + 48 * (128 + 1024) + 64


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_reads_once_and_writes_once(dtype, shape):
    call, run = arguments(shape, dtype)
    lse = np.full(shape[0], np.log(shape[1]), np.float32)
    _, counted = backward(np.ones(1), call[0], call[1], None, lse, np.ones(1), dtype, run=run)
    assert counted.read["logits"] <= LIMIT * call[0].nbytes
    assert counted.written["grad_logits"] <= LIMIT * call[0].nbytes


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_resident_rows_are_read_once_for_loss_and_gradient(dtype, shape):
    call, run = arguments(shape, dtype)
    _, counted = forward_grad(*call, run=run)
    assert counted.read["logits"] <= LIMIT * call[0].nbytes
    assert counted.written["grad_logits"] <= LIMIT * call[0].nbytes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_read_last_leaves_nothing_in_the_cache(shape):
    """The backward operators and, where it reads a row once, MsCeForwardGrad. What the forward operators have read is
    read again."""
    call, run = arguments(shape, "bfloat16")
    lse = np.full(shape[0], np.log(shape[1]), np.float32)
    assert forward(*call, run=run)[1].bypassing_bytes == 0
    last = (np.ones(1), *call[:3], lse, np.ones(1), "bfloat16")
    assert backward(*last, run=run)[1].bypassing_bytes == call[0].nbytes
    both = forward_grad(*call, run=run)[1].bypassing_bytes
    assert both == (call[0].nbytes if shape[1] < 100_000 else 0)


def test_longer_rows_are_read_twice():
    """Stated in docs/ascend.md: a row of 128,256 does not fit the unified buffer."""
    call, run = arguments((4, 128256, 48), "bfloat16")
    _, counted = forward_grad(*call, run=run)
    assert 1.9 < counted.read["logits"] / call[0].nbytes <= 2 * LIMIT
    assert counted.written["grad_logits"] <= LIMIT * call[0].nbytes


@pytest.mark.parametrize(
    "shape",
    [(1024, 1000, 48), (96, 4096, 48), (96, 8192, 48), (96, 32000, 48), (48, 128256, 48)],
    ids=str,
)
def test_vector_repeats_of_the_bfloat16_forward(shape):
    call, run = arguments(shape, "bfloat16")
    _, counted = forward(*call, run=run)
    assert counted.vector_repeats / (call[0].size / 64) <= 6.0


@pytest.mark.parametrize(
    "shape", [(8192, 64, 48), (4096, 200, 48), (2048, 1000, 48), (768, 4096, 48)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_rows_share_a_copy(dtype, shape):
    """Beside the tiles, rows that are not handled as a matrix have their target's logit fetched, one element each."""
    call, run = arguments(shape, dtype)
    tiles = forward(*call, run=run)[1].copies["logits"] - (shape[0] if shape[1] > 1024 else 0)
    assert call[0].nbytes / tiles >= COPY_BYTES
    assert call[0].nbytes / forward_grad(*call, run=run)[1].copies["logits"] >= COPY_BYTES / 2


def test_narrow_rows_fill_the_unified_buffer():
    """A row of 8 takes at least 32 bytes of unified buffer, so tiles are as large as they can be, below 16 KB."""
    call, run = arguments((65536, 8, 48), "bfloat16")
    _, counted = forward(*call, run=run)
    assert counted.read["logits"] / counted.copies["logits"] >= 7000


@pytest.mark.parametrize(
    "shape", [(96, 1000, 48), (96, 16000, 48), (96, 32000, 48), (1, 32000, 48)], ids=str
)
def test_a_core_reads_the_weights_once(shape):
    """With label smoothing every class's weight counts. Beside that, each row looks its class's weight up, in forward
    twice where rows are split and in MsCeForwardGrad for the mean's divisor. Split backward adds them up once more."""
    (logits, target, _, dtype), run = arguments(shape, "bfloat16")
    rows, classes, _ = shape
    weight, smoothed = np.ones(classes, np.float32), {"labelSmoothing": 0.1, "run": run}
    lse = np.full(rows, np.log(classes), np.float32)
    given = (logits, target, weight)
    counted = {
        "forward": forward(*given, dtype, **smoothed)[1],
        "backward": backward(np.ones(1), *given, lse, np.ones(1), dtype, **smoothed)[1],
        "forward_grad": forward_grad(*given, dtype, **smoothed)[1],
    }
    cores = (
        model(dtype)
        .tiling(model(dtype).problem("forward", rows, classes, labelSmoothing=0.1, hasWeight=1))
        .usedCores
    )
    slices = rows < 48
    bound = 4 * classes * (1 if slices else cores) * LIMIT + 2 * 4 * (rows + cores)
    assert counted["forward"].read["weight"] <= bound
    assert counted["backward"].read["weight"] <= bound + slices * 4 * classes
    if classes <= 16000:
        assert counted["forward_grad"].read["weight"] <= bound
    else:  # a row that is read twice takes its weights along
        assert counted["forward_grad"].read["weight"] <= 2 * rows * 4 * classes * LIMIT


# Of the bfloat16 kernels by shape: waits a row for a vector instruction, repeats of each 64 logits whose two sources
# lie in one bank group, scalar accesses a row to the unified buffer. The numbers are those of the kernels as they are
# and 2 %; what makes one of them larger makes them slower.
COSTS = {
    ((384, 32000, 48), "forward"): (34.43, 0.02, 4.7),
    ((384, 32000, 48), "backward"): (15.18, 1.02, 4.4),
    ((384, 32000, 48), "forward_grad"): (45.1, 0.03, 8.1),
    ((2048, 1000, 48), "forward"): (2.18, 0.13, 3.4),
    ((2048, 1000, 48), "backward"): (1.39, 1.06, 2.2),
    ((2048, 1000, 48), "forward_grad"): (5.36, 1.26, 5.8),
    ((4096, 64, 48), "forward"): (0.29, 1.2, 0.2),
    ((4096, 64, 48), "backward"): (0.19, 1.65, 0.1),
    ((4096, 64, 48), "forward_grad"): (0.75, 3.55, 0.3),
}


@pytest.mark.parametrize(("shape", "operator"), COSTS, ids=str)
def test_waits_bank_conflicts_and_scalar_accesses(shape, operator):
    call, run = arguments(shape, "bfloat16")
    lse = np.full(shape[0], np.log(shape[1]), np.float32)
    if operator == "backward":
        counted = backward(np.ones(1), *call[:3], lse, np.ones(1), "bfloat16", run=run)[1]
    else:
        counted = (forward if operator == "forward" else forward_grad)(*call, run=run)[1]
    waits, conflicts, scalar = COSTS[shape, operator]
    assert counted.waits / shape[0] <= waits
    assert counted.bank_conflicts / (call[0].size / 64) <= conflicts
    assert (counted.scalar_reads + counted.scalar_writes) / shape[0] <= scalar


def test_counters_see_what_is_copied():
    """A forward of two rows reads at least its logits and its targets: the limits above are not met by
    counting nothing."""
    logits = np.zeros((2, 500), np.float32)
    _, counted = forward(logits, np.zeros(2, np.int32), None, "float32", run=Run(cores=1))
    assert counted.read["logits"] >= logits.nbytes
    assert counted.read["target"] == 8
    assert counted.written["lse"] == 8
    assert counted.vector_repeats > 0
