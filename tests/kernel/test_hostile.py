"""Whatever a caller passes to an operation, it runs or is refused by a sentence of ours; tests/kernel/hostile.py."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tests.kernel.library import ROOT, Library


def test_calls_with_wrong_facts() -> None:
    """In a process of its own, which a fault would end."""
    command = [sys.executable, "-m", "tests.kernel.hostile", "7", "4000"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-500:]
    assert "'served': 0" not in finished.stdout
    assert "'refused': 0" not in finished.stdout


def message(default_library: Library, **changes) -> str:
    """Of CrossEntropyForward, whose tensors are all (2, 3) float32 at one address, with some facts changed."""
    memory = (ctypes.c_double * 64)()
    count = 7
    facts = {
        "name": b"CrossEntropyForward",
        "count": count,
        "data": [ctypes.addressof(memory)] * count,
        "ranks": [2] * count,
        "shape": (2, 3),
        "dtype": b"float32",
        **changes,
    }
    shape = (ctypes.c_int64 * 32)(*facts["shape"])
    text = default_library.handle.MsCeTry(
        facts["name"],
        facts["count"],
        None if facts["data"] is None else (ctypes.c_void_p * count)(*facts["data"]),
        (ctypes.c_int * count)(*facts["ranks"]),
        (ctypes.POINTER(ctypes.c_int64) * count)(
            *[ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))] * count
        ),
        (ctypes.c_char_p * count)(*[facts["dtype"]] * count),
    )
    return text.decode()


MESSAGES = {
    "no name": ({"name": None}, "there is no operation (null)"),
    "no pointers": (
        {"data": None},
        "the call must have pointers to data, ranks, shapes and dtypes",
    ),
    "negative count": ({"count": -1}, "logits must be argument 0, got -1 arguments in all"),
    "negative rank": ({"ranks": [-1] * 7}, "logits must have at most 16 dimensions, got -1"),
    "large rank": ({"ranks": [17] * 7}, "logits must have at most 16 dimensions, got 17"),
    "negative size": ({"shape": (2, -3)}, "logits must have no negative size, got shape (2, -3)"),
    "overflow": ({"shape": (2**40, 2**40)}, "logits must have less than 2^63 bytes, got shape"),
    "overflow beside none": ({"shape": (0, 2**62)}, "logits must have less than 2^63 bytes"),
    "no dtype": ({"dtype": None}, "int64 or uint8, got a null pointer"),
    "unknown dtype": ({"dtype": b"int8"}, "int64 or uint8, got int8"),
}


@pytest.mark.parametrize("wrong", MESSAGES)
def test_message(default_library: Library, wrong: str) -> None:
    changes, expected = MESSAGES[wrong]
    got = message(default_library, **changes)
    assert got.startswith("ms_ce: ")
    assert expected in got
