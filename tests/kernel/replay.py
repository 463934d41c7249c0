"""Writes calls of every operation with what they must return, for the stand-alone binary to run again.

    python -m tests.kernel.replay FILE

The expected values come from ms_ce/reference.py in float64. A file is little-endian and holds calls one after the
other until it ends:

    text    name of the operation; a text is int64 length and its bytes
    int64   number of tensors, inputs first
    tensor  text dtype, int64 rank, each size, each period, int64 kind, then by kind
            0  an input: its elements
            1  an output: result
            2  an input that is changed where it lies: as 0, then as 1
    result  float64 expected elements; float64 relative, absolute and rounding error allowed, the last in steps of
            the dtype; text label: results of one label have the same bits, where it is not empty

A tensor repeats itself along each axis with its period, and the file holds one period of it.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tests.kernel.call import DTYPES, Call, Dtypes
from tests.kernel.distillation_calls import DISTILLATION_CASES, distillation_calls
from tests.kernel.drawn_cases import drawn_cases
from tests.kernel.linear_calls import LINEAR_CASES, linear_calls
from tests.kernel.loss_calls import (
    LossCase,
    block_calls,
    loss_calls,
    nll_calls,
    refusal_call,
    token_calls,
)
from tests.support.cases import CASES, NLL_CASES


def calls() -> Iterator[Call]:
    """Every case of tests/support/cases.py, what is drawn beside them, and the linear loss, in every dtype."""
    for dtype in DTYPES:
        own = Dtypes(dtype, dtype, dtype)
        for case in CASES:
            yield from loss_calls(LossCase(case, own))
            yield from loss_calls(LossCase(case, own, row_weight=True))
        for case in NLL_CASES:
            yield from nll_calls(case, dtype)
            yield from nll_calls(case, dtype, weighted_rows=True)
        for case in CASES:
            if not case.probabilities:
                yield from token_calls(case, dtype)
        for probabilities in (False, True):
            yield from block_calls(dtype, probabilities)
        for linear in LINEAR_CASES:
            yield from linear_calls(linear, dtype)
        for distillation in DISTILLATION_CASES:
            yield from distillation_calls(distillation, dtype)
    for drawn in drawn_cases():
        yield from loss_calls(drawn)
    yield refusal_call()


def _write_text(out: BinaryIO, text: str) -> None:
    out.write(struct.pack("<q", len(text)) + text.encode())


def _write_call(out: BinaryIO, call: Call) -> None:
    _write_text(out, call.name)
    tensors = call.tensors()
    out.write(struct.pack("<q", len(tensors)))
    for tensor in tensors:
        rank, kind = len(tensor.shape), tensor.kind
        _write_text(out, tensor.dtype)
        out.write(struct.pack(f"<q{2 * rank}qq", rank, *tensor.shape, *tensor.period, kind))
        if tensor.given is not None:
            out.write(tensor.given.tobytes())
        if tensor.expected is not None:
            out.write(tensor.expected.astype("<f8").tobytes())
            out.write(struct.pack("<3d", *tensor.allowed))
            _write_text(out, tensor.label)


def write(path: Path) -> None:
    """All calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for call in calls():
            _write_call(out, call)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
