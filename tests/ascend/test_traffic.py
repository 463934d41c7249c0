"""What the kernels cost, counted on the host model: bytes from and to global memory, copy sizes and vector repeats."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.operators import Run, backward, encode, forward, forward_grad
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
    assert counted.read["logits"] / counted.copies["logits"] >= 8000


def test_counters_see_what_is_copied():
    """A forward of two rows reads at least its logits and its targets: the limits above are not met by
    counting nothing."""
    logits = np.zeros((2, 500), np.float32)
    _, counted = forward(logits, np.zeros(2, np.int32), None, "float32", run=Run(cores=1))
    assert counted.read["logits"] >= logits.nbytes
    assert counted.read["target"] == 8
    assert counted.written["lse"] == 8
    assert counted.vector_repeats > 0
