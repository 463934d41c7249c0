"""Calls that MindSpore would not make: `python -m tests.kernel.hostile SEED COUNT [aloud]` makes COUNT of them.

Each is a right call of an operation with one to three of its arguments' facts changed. It must run, or be refused by a
sentence of ours. Only what the library cannot know is left out: a shape that claims more memory than there is behind a
pointer. Every tensor lies in memory that is larger than the small shapes drawn here.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from tests.kernel.call import Call, Dtypes
from tests.kernel.distillation_calls import DistillationCase, distillation_calls
from tests.kernel.library import Library
from tests.kernel.linear_calls import LinearCase, linear_calls
from tests.kernel.loss_calls import LossCase, block_calls, loss_calls, nll_calls, refusal_call
from tests.support.cases import Case

_BEHIND = 1 << 20  # bytes of each tensor's memory
_SIZES = (-1, -(2**40), -(2**63), 2**62, 2**63 - 1, 0, 1, 2, 3, 5)
_RANKS = (-(2**31), -1, 0, 1, 2, 3, 7, 16, 17, 2**31 - 1)
_DTYPES = (b"float16", b"bfloat16", b"float32", b"float64", b"int32", b"int64", b"uint8", b"int8", b"", b"Float32",
           b"complex64", b"\xff" * 300, None)  # fmt: skip
_DOUBLES = (np.nan, np.inf, -np.inf, -1.0, 2.0, 1e308, 5e-324)
_INTEGERS = (-(2**63), -1, 0, 1, 2, 3, 7, 2**31, 2**63 - 1)


class RawCall:
    """What reaches MsCeTry, each fact to be changed by itself."""

    def __init__(self, call: Call, random: np.random.Generator):
        self.name: bytes | None = call.name.encode()
        self.kept: list[Any] = []
        self.data: list[int | None] = []
        self.shapes: list[list[int] | None] = []
        self.dtypes: list[bytes | None] = []
        for tensor in call.tensors():
            memory = np.zeros(_BEHIND + 64, np.uint8)
            begin = -memory.ctypes.data % 64
            if tensor.given is not None:
                values = np.ascontiguousarray(tensor.given)
                taken = np.frombuffer(values.tobytes(), np.uint8)
                memory[begin : begin + taken.size] = taken
            self.kept.append(memory)
            self.data.append(memory.ctypes.data + begin)
            self.shapes.append(list(tensor.shape))
            self.dtypes.append(tensor.dtype.encode())
        self.ranks = [len(shape or ()) for shape in self.shapes]
        self.count = len(self.data)
        self.random = random

    def pick(self, values: Any) -> Any:
        return values[self.random.integers(len(values))]

    def change(self) -> str:
        """Changes one fact, and says which."""
        which = int(self.random.integers(len(self.data)))
        shape = self.shapes[which]
        kind = self.pick(
            ("count", "rank", "size", "size", "dtype", "null", "odd", "option", "name", "shape")
        )
        if kind == "count":
            self.count = int(self.pick((-(2**31), -1, 0, self.count - 1, min(self.count, 1))))
        elif kind == "rank":
            self.ranks[which] = int(self.pick(_RANKS))
        elif kind == "size" and shape:
            shape[self.random.integers(len(shape))] = int(self.pick(_SIZES))
        elif kind == "shape":
            self.shapes[which] = None
        elif kind == "dtype":
            self.dtypes[which] = self.pick(_DTYPES)
        elif kind == "null":
            self.data[which] = None
        elif kind == "odd" and self.data[which] is not None:
            self.data[which] += 1
        elif kind == "option":
            self.change_option()
        elif kind == "name" and self.random.integers(20) == 0:
            self.name = self.pick((None, b"", b"CrossEntropy", b"\xff"))
        return f"{kind} of argument {which}"

    def change_option(self) -> None:
        """One slot of the options or of the plan, where the call has them."""
        places = [
            i for i, name in enumerate(self.dtypes) if name == b"int64" and self.ranks[i] == 1
        ]
        if not places or self.data[places[0]] is None:
            return
        where = self.pick(places)
        if self.data[where] is None or not self.shapes[where]:
            return
        slots = max(0, min(16, self.shapes[where][0]))
        if slots == 0:
            return
        slot = self.data[where] + 8 * int(self.random.integers(slots))
        if self.random.integers(2):
            ctypes.c_double.from_address(slot).value = float(self.pick(_DOUBLES))
        else:
            ctypes.c_int64.from_address(slot).value = int(self.pick(_INTEGERS))

    def made(self, library: Library) -> bytes | None:
        """The message, None where the call was served."""
        count = len(self.data)
        # A rank may be more than a shape has sizes.
        sizes = [
            None if shape is None else (ctypes.c_int64 * 32)(*shape, *[1] * (32 - len(shape)))
            for shape in self.shapes
        ]
        pointers = [
            ctypes.cast(each, ctypes.POINTER(ctypes.c_int64)) if each is not None else None
            for each in sizes
        ]
        return library.handle.MsCeTry(
            self.name,
            self.count,
            (ctypes.c_void_p * count)(*self.data),
            (ctypes.c_int * count)(*self.ranks),
            (ctypes.POINTER(ctypes.c_int64) * count)(*pointers),
            (ctypes.c_char_p * count)(*self.dtypes),
        )


def right_calls() -> list[Call]:
    """Every operation, in several forms and dtypes."""
    calls: list[Call] = [refusal_call()]
    for dtype in ("float32", "float16", "float64"):
        for options in ({"reduction": "none"}, {"label_smoothing": 0.1, "softcap": 3.0}):
            for probabilities in (False, True):
                case = Case("", (4, 3, 2), probabilities, weight=True, options=options)
                target = dtype if probabilities else case.label_dtype
                calls += loss_calls(LossCase(case, Dtypes(dtype, target, dtype), grad_z=True))
        calls += nll_calls(Case("", (5, 4), weight=True), dtype)
        calls += nll_calls(Case("", (5, 4), options={"reduction": "none"}), dtype)
        calls += block_calls(dtype, False) + block_calls(dtype, True)
        for reduction in ("mean", "none"):
            calls += linear_calls(
                LinearCase((3, 2), 3, 5, 2, reduction, weight=True, shift=True), dtype
            )
        for reduction in ("sum", "none"):
            for top in (0, 3):
                case = DistillationCase((3, 2), (3, 4), 5, 2, reduction, shift=True, top=top)
                calls += distillation_calls(case, dtype)
    return calls


def run(seed: int, count: int, aloud: bool) -> dict[str, int]:
    """How many calls were served and how many refused; raises where a message is not ours."""
    random, library, calls = np.random.default_rng(seed), Library(), right_calls()
    outcome = {"served": 0, "refused": 0}
    for number in range(count):
        raw = RawCall(calls[random.integers(len(calls))], random)
        changes = [raw.change() for _ in range(random.integers(1, 4))]
        if aloud:  # before the call: a crash says nothing
            print(number, raw.name, changes, file=sys.stderr)
        message = raw.made(library)
        if message is not None and not message.startswith(b"ms_ce: "):
            raise AssertionError(
                f"seed {seed}, call {number}: {raw.name!r} with {changes}: {message!r}"
            )
        outcome["served" if message is None else "refused"] += 1
    return outcome


if __name__ == "__main__":
    print(run(int(sys.argv[1]), int(sys.argv[2]), "aloud" in sys.argv))
