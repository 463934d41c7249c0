"""Each check of the host model against a kernel that is broken in just that way (broken_kernels.cpp)."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import pytest

from tests.ascend.host_model import (
    ADVERSARIAL,
    CHIPS,
    SATURATION_OFF,
    Chip,
    Counters,
    HostModelError,
    KindCounts,
    compile_library,
    launch,
)

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
    "exchange_4": "whose type is not MIX",
    "selects_1": "only equality",
    "selects_2": "Compare: a count",
    "selects_3": "a scalar needs its mode",
    "selects_4": "selects whole repeats",
    "selects_5": "Select reads unified buffer bytes nobody wrote",
    "selects_6": "Compare needs an address aligned to 32 bytes",
    "selects_7": "two tensors need their mode",
    "selects_8": "Select reads unified buffer bytes nobody wrote",
    "selects_9": "patterns 1 and 2",
    "selects_10": "GatherMask reads unified buffer bytes nobody wrote",
    "starts_at_the_end": "starts 512 elements into one of 512",
    "leaves_the_control_register": "control register is left changed",
    "reads_past_the_cache_twice": "bytes of x again that it read past the L2 cache",
}


@functools.cache
def entry():
    library = compile_library(Path(__file__).with_name("broken_kernels.cpp"), [], "-O1")
    return ctypes.CDLL(str(library)).broken_launch


def run(kernel: str, **order) -> np.ndarray:
    return count(kernel, **order)[0]


def count(kernel: str, **order) -> tuple[np.ndarray, Counters]:
    x = np.arange(BLOCKS * ELEMENTS, dtype=np.float32)
    y = np.full_like(x, np.nan)
    counters = launch(
        entry(),
        kernel,
        {"x": x},
        {"y": y},
        blocks=BLOCKS,
        workspace_bytes=8192,
        tiling=None,
        **order,
    )
    return y, counters


@pytest.mark.parametrize("kernel", FAULTS)
def test_fault_is_caught(kernel):
    with pytest.raises(HostModelError, match=FAULTS[kernel]):
        run(kernel)


@pytest.mark.parametrize("lazy", [0, *ADVERSARIAL])
@pytest.mark.parametrize("kernel", ["sound_queues", "flags_0"])
def test_sound_kernel_passes(kernel, lazy):
    expected = np.arange(BLOCKS * ELEMENTS, dtype=np.float32) + 1
    np.testing.assert_array_equal(run(kernel, lazy_pipes=lazy), expected)


@pytest.mark.parametrize("lazy", [0, *ADVERSARIAL])
def test_sound_selection(lazy):
    x = np.arange(BLOCKS * ELEMENTS).reshape(BLOCKS, ELEMENTS)[:, :64]
    y, counted = count("selects_0", lazy_pipes=lazy)
    selected, either, gathered = np.split(y.reshape(BLOCKS, ELEMENTS)[:, :192], 3, axis=1)
    np.testing.assert_array_equal(selected, np.where(x == 3, x, -1))
    np.testing.assert_array_equal(either, np.where(x == 3, x, -2))
    np.testing.assert_array_equal(gathered, np.hstack([x, x + 64])[:, 1::2])
    repeats = {kind: counted.kinds[kind].repeats for kind in ("Compare", "Select", "GatherMask")}
    assert repeats == {"Compare": BLOCKS, "Select": 2 * BLOCKS, "GatherMask": 2 * BLOCKS}


def test_sound_exchange_between_blocks():
    for falling in (False, True):
        y = run("exchange_0", falling_order=falling).reshape(BLOCKS, ELEMENTS)[:, 0]
        np.testing.assert_array_equal(y, (np.arange(BLOCKS) + 1) % BLOCKS)


def test_a_load_up_to_what_another_block_is_writing():
    for falling in (False, True):
        y = run("exchanges_twice", falling_order=falling).reshape(BLOCKS, ELEMENTS)
        expected = np.repeat(np.arange(BLOCKS), 8)
        np.testing.assert_array_equal(y[:, : 8 * BLOCKS], np.tile(expected, (BLOCKS, 1)))


@pytest.mark.parametrize("kernel", [name for name in FAULTS if name.startswith("flags_")])
def test_missing_flag_is_caught_in_every_order(kernel):
    for lazy in ADVERSARIAL:
        with pytest.raises(HostModelError):
            run(kernel, lazy_pipes=lazy)


NOT_NUMBERS = {"half": [0x7E00, 0x7C00, 0xFC00], "bfloat16_t": [0x7FC0, 0x7F80, 0xFF80]}
SATURATED = {"half": [0, 0x7BFF, 0xFBFF], "bfloat16_t": [0, 0x7F7F, 0xFF7F]}


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("control", [0, SATURATION_OFF])
@pytest.mark.parametrize("dtype", NOT_NUMBERS)
def test_conversion_saturates_unless_the_register_says_otherwise(dtype, control, keeps):
    y = run(f"converts<{dtype}, {str(keeps).lower()}>", chip=Chip(control))
    expected = NOT_NUMBERS if keeps or control else SATURATED
    assert y.view(np.uint16)[:3].tolist() == expected[dtype]


@pytest.mark.parametrize("chip", CHIPS)
def test_a_maximum_of_nan_is_what_the_launch_says(chip):
    y = run("maximum_of_nan", chip=chip)[:16]
    assert np.isnan(y).tolist() == [not chip.maximum_drops_nan] * 16


def test_instructions_are_counted_by_kind_with_those_that_are_waited_for():
    """Of the chain's five waits one is for the zeros that its first instruction reads; apart, that wait serves all."""
    chain, apart = (count(f"adds_four_times<{c}>")[1] for c in ("true", "false"))
    for counters, waits in ((chain, 3), (apart, 0)):
        assert counters.kinds["Adds"] == KindCounts(4 * BLOCKS, 8 * BLOCKS, waits * BLOCKS)
        assert counters.kinds["Duplicate"] == KindCounts(2 * BLOCKS, 16 * BLOCKS, BLOCKS)
        assert counters.vector_repeats == 24 * BLOCKS
        assert counters.waits == (waits + 1) * BLOCKS


def test_waits():
    """Two chains in lock-step share their waits; an instruction that overwrites another's result waits for it; the
    scalar pipe waits for the vector pipe, which then starts anew."""
    pairs = count("adds_in_pairs")[1]
    assert pairs.waits == 3 * BLOCKS
    assert count("overwrites")[1].kinds["Duplicate"].waited == BLOCKS
    returned = count("returns_from_the_scalar_pipe")[1]
    assert returned.kinds["Duplicate"].waited == returned.kinds["Adds"].waited == BLOCKS
    assert (pairs.starts, returned.starts) == (0, BLOCKS)


@pytest.mark.parametrize(
    ("kernel", "conflicts"),
    [
        ("adds_two_sources<16>", 1),
        ("adds_two_sources<8>", 0),
        ("adds_two_sources<4>", 1),
        ("adds_one_block<4>", 1),
        ("adds_one_block<8>", 0),
    ],
)
def test_two_sources_in_one_bank_group_conflict(kernel, conflicts):
    assert count(kernel)[1].bank_conflicts == conflicts * BLOCKS


def test_operands_are_counted_by_bank_group():
    first, second = count("adds_two_sources<8>")[1].groups[1:]
    assert (first[0], second[8]) == (BLOCKS, BLOCKS)
    assert sum(second) == BLOCKS


def test_blocks_of_copies_that_cost_more_than_their_bytes():
    counters = count("copies_blocks")[1]
    assert counters.unaligned_blocks == BLOCKS
    assert counters.small_block_bytes == 4 * 64 * BLOCKS
    assert counters.lone_blocks == BLOCKS


def test_scalar_accesses_and_cache_hints_are_counted():
    counters = count("sums_on_the_scalar_pipe")[1]
    assert (counters.scalar_reads, counters.scalar_writes) == (ELEMENTS * BLOCKS, BLOCKS)
    counters = count("reads_past_the_cache")[1]
    assert (counters.cache_hints, counters.bypassing_bytes) == (BLOCKS, BLOCKS * ELEMENTS * 4)
