"""Each check of the host model against a kernel that is broken in just that way (broken_kernels.cpp)."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import pytest

from tests.ascend.host_model import ADVERSARIAL, HostModelError, compile_library, launch

BLOCKS, ELEMENTS = 3, 512

FAULTS = {
    "over_capacity": "over capacity",
    "unaligned_vector": "aligned to 32 bytes",
    "unaligned_copy": "aligned to 32 bytes",
    "past_local_buffer": "runs past its buffer",
    "past_input": "past the end of x",
    "past_output": "past the end of y",
    "writes_input": "writes its input x",
    "reads_unwritten": "bytes nobody wrote",
    "reads_padding": "bytes nobody wrote",
    "leaks": "never freed",
    "frees_twice": "freed|already free",
    "takes_too_many": "no free buffer",
    "uses_after_free": "was freed",
    "dequeues_nothing": "empty queue",
    "runs_out_of_events": "event ids",
    "uses_before_dequeue": "missing synchronisation",
    "blocks_overlap": "write the same bytes of y",
    "repeats_256": "its range is",
    "mask_65": "mask of 65",
    "stride_256": "its range is",
    "copies_4096_rows": "its range is",
    "operands_overlap": "overlap in part",
    "flag_nobody_sets": "nobody set",
    "flag_left_set": "left set",
    "casts_with_the_wrong_rounding": "round mode",
    "stale_cache": "data cache",
    "flags_1": "missing synchronisation: .* on V .* MTE2",
    "flags_2": "missing synchronisation: .* on MTE3 .* V",
    "flags_3": "missing synchronisation: .* on MTE2 .* V",
    "flags_4": "missing synchronisation: .* on V .* MTE3",
    "flags_5": "missing synchronisation: .* on S .* V",
    "flags_6": "missing synchronisation: .* on MTE3 .* S",
    "exchange_1": "wait in SyncAll",
    "exchange_2": "missing synchronisation|nobody wrote",
    "exchange_3": "nobody wrote",
}


@functools.cache
def entry():
    library = compile_library(Path(__file__).with_name("broken_kernels.cpp"), [], "-O1")
    return ctypes.CDLL(str(library)).broken_launch


def run(kernel: str, **order) -> np.ndarray:
    x = np.arange(BLOCKS * ELEMENTS, dtype=np.float32)
    y = np.full_like(x, np.nan)
    launch(
        entry(),
        kernel,
        {"x": x},
        {"y": y},
        blocks=BLOCKS,
        workspace_bytes=8192,
        tiling=None,
        **order,
    )
    return y


@pytest.mark.parametrize("kernel", FAULTS)
def test_fault_is_caught(kernel):
    with pytest.raises(HostModelError, match=FAULTS[kernel]):
        run(kernel)


@pytest.mark.parametrize("lazy", [0, *ADVERSARIAL])
@pytest.mark.parametrize("kernel", ["sound_queues", "flags_0"])
def test_sound_kernel_passes(kernel, lazy):
    expected = np.arange(BLOCKS * ELEMENTS, dtype=np.float32) + 1
    np.testing.assert_array_equal(run(kernel, lazy_pipes=lazy), expected)


def test_sound_exchange_between_blocks():
    for falling in (False, True):
        y = run("exchange_0", falling_order=falling).reshape(BLOCKS, ELEMENTS)[:, 0]
        np.testing.assert_array_equal(y, (np.arange(BLOCKS) + 1) % BLOCKS)


@pytest.mark.parametrize("kernel", [name for name in FAULTS if name.startswith("flags_")])
def test_missing_flag_is_caught_in_every_order(kernel):
    for lazy in ADVERSARIAL:
        with pytest.raises(HostModelError):
            run(kernel, lazy_pipes=lazy)
