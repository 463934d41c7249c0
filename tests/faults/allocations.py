"""`LD_PRELOAD=libfaults.so python -m tests.faults.allocations WHAT`: every allocation of a call fails in its turn.

WHAT is `calls`, each operation in a library that has been used; `first`, the first call of a process, with the pool;
`interface`, the other functions of the C interface; `shapes`, the inference of shapes; `onednn PATH`, its products. A
call must give the right result or our sentence, and the next one, in which nothing fails, the right result. Prints how
many failures there were.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.kernel.call import Call, Dtypes, Recorded
from tests.kernel.distillation_calls import DISTILLATION_CASES, DistillationCase, distillation_calls
from tests.kernel.library import PATH, Brain, Library, empty, to_float64
from tests.kernel.linear_calls import LINEAR_CASES, LinearCase, linear_calls
from tests.kernel.loss_calls import LossCase, block_calls, loss_calls, nll_calls, token_calls
from tests.support.cases import CASES, NLL_CASES, Case
from tests.support.tolerances import ulp

SENTENCE = b"ms_ce: there must be memory for what "
faults = ctypes.CDLL(None)
faults.FaultTry.restype = faults.FaultText.restype = faults.FaultInfer.restype = ctypes.c_char_p
_ints = ctypes.POINTER(ctypes.c_int64)


def is_near(tensor: Recorded, array: np.ndarray) -> bool:
    expected, allowed = tensor.expected, tensor.allowed
    bound = allowed.relative * np.abs(expected) + allowed.absolute
    if allowed.ulps:
        bound = bound + allowed.ulps * ulp(expected, tensor.dtype)
    actual = to_float64(array)
    with np.errstate(invalid="ignore"):
        near = (np.abs(actual - expected) <= bound) | (actual == expected)
    return bool((near | (np.isnan(actual) & np.isnan(expected))).all())


class Arguments:
    """Those of one call, made before any allocation fails."""

    def __init__(self, call: Call):
        self.tensors = call.tensors()
        self.arrays = [self._array(tensor) for tensor in self.tensors]
        count = len(self.arrays)
        self._shapes = [(ctypes.c_int64 * max(a.ndim, 1))(*a.shape) for a in self.arrays]
        self.ranks = (ctypes.c_int * count)(*[a.ndim for a in self.arrays])
        self.shapes = (_ints * count)(*[ctypes.cast(s, _ints) for s in self._shapes])
        self.all = (
            call.name.encode(),
            count,
            (ctypes.c_void_p * count)(*[a.ctypes.data for a in self.arrays]),
            self.ranks,
            self.shapes,
            (ctypes.c_char_p * count)(*[t.dtype.encode() for t in self.tensors]),
        )

    @staticmethod
    def _array(tensor: Recorded) -> np.ndarray:
        if tensor.given is None:
            return empty(tensor.shape, tensor.dtype)
        array = tensor.given.reshape(tensor.shape).copy()
        return array.view(Brain) if tensor.dtype == "bfloat16" else array

    def right(self) -> bool:
        pairs = zip(self.tensors, self.arrays, strict=True)
        return all(is_near(t, a) for t, a in pairs if t.expected is not None)


def failing(call: Call, nth: int, lasting: bool) -> int:
    """How many allocations failed in a call whose `nth` did."""
    made, failed = Arguments(call), ctypes.c_long()
    run = Library().handle.MsCeTry
    message = faults.FaultTry(run, nth, lasting, ctypes.byref(failed), *made.all)
    where = f"{call.name}, {call.dtype}: allocation {nth}{' and all later' if lasting else ''}"
    assert message is None or message.startswith(SENTENCE), f"{where}: {message!r}"
    assert failed.value or message is None, f"{where}: {message!r} without a failure"
    assert message is not None or made.right(), f"{where}: a wrong result"
    after = Arguments(call)
    message = run(*after.all)
    assert message is None, f"{where}: the next call: {message!r}"
    assert after.right(), f"{where}: the next call is wrong"
    return failed.value


def until_none_fails(work: Callable[[int, bool], int]) -> int:
    total = 0
    for lasting in (False, True):
        nth = 1
        while failed := work(nth, lasting):
            total, nth = total + failed, nth + 1
        assert nth > 1, "nothing was allocated"
    return total


def large_calls() -> Iterator[Call]:
    """With work for several threads."""
    for dtype in ("float32", "bfloat16"):
        own = Dtypes(dtype, "int64", dtype)
        yield from loss_calls(LossCase(Case("", (40, 9000), weight=True), own))
        yield from linear_calls(LinearCase((64,), 96, 700, 0, weight=True), dtype)
        yield from distillation_calls(DistillationCase((64,), (96, 48), 700, 0), dtype)
        yield from distillation_calls(DistillationCase((64,), (96, 48), 700, 0, top=9), dtype)


def small_calls() -> Iterator[Call]:
    """Each operation in some forms."""
    for dtype in ("float32", "float16"):
        own = Dtypes(dtype, dtype, dtype)
        for case in CASES:
            yield from loss_calls(LossCase(case, own, row_weight=True))
            if not case.probabilities:
                yield from token_calls(case, dtype)
        for case in NLL_CASES:
            yield from nll_calls(case, dtype)
        yield from block_calls(dtype, False)
        yield from block_calls(dtype, True)
        for linear in LINEAR_CASES[::6]:
            yield from linear_calls(linear, dtype)
        stored = [each for each in DISTILLATION_CASES if each.top]
        for distillation in (*DISTILLATION_CASES[3:6], *stored[1:6]):
            yield from distillation_calls(distillation, dtype)


def chosen_calls() -> list[Call]:
    """Each operation in up to three forms, and large ones."""
    chosen: dict[str, list[Call]] = {name: [] for name in Library().operations}
    for call in small_calls():
        if len(chosen[call.name]) < 3:
            chosen[call.name].append(call)
    # Of which a right call is a sentence.
    assert [name for name, some in chosen.items() if not some] == ["RefuseDerivative"]
    return [*itertools.chain.from_iterable(chosen.values()), *large_calls()]


def calls() -> int:
    Library().set_threads(3)
    return sum(
        until_none_fails(lambda nth, lasting, call=call: failing(call, nth, lasting))
        for call in chosen_calls()
    )


def onednn(path: str) -> int:
    """Products of bfloat16 by the oneDNN of `path`, on a thread that has used it: without memory for its variables of
    a thread, the C library ends the process at their first use."""
    ctypes.CDLL(path)
    made = list(linear_calls(LinearCase((64,), 96, 700, 0, weight=True), "bfloat16"))
    Library().set_threads(1)
    for call in made:
        failing(call, 1 << 60, False)
    return sum(
        until_none_fails(lambda nth, lasting, call=call: failing(call, nth, lasting))
        for call in made
    )


def in_child(work: Callable[[], int]) -> int:
    """work() in a forked child, to which nothing has happened yet."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        try:
            os.write(sender, str(work()).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    assert text, "the child failed"
    return int(text)


def first() -> int:
    """The library notes forks, counts threads, chooses an instruction set, looks for oneDNN and starts its pool."""
    made = [
        each
        for each in large_calls()
        if each.name in ("CrossEntropyValueAndGrad", "LinearCrossEntropyForward")
    ]
    assert len(made) == 4
    return sum(
        until_none_fails(
            lambda nth, lasting, call=call: in_child(lambda: failing(call, nth, lasting))
        )
        for call in made
    )


def text(function: Any, nth: int, lasting: bool) -> int:
    """Null or the right text; asked again, the text."""
    failed = ctypes.c_long()
    got = faults.FaultText(function, nth, lasting, ctypes.byref(failed))
    again = function()
    assert again, f"{function.__name__} has no answer"
    assert got in (None, again), got
    return failed.value


def threads(function: Any, nth: int, lasting: bool) -> int:
    """-1 or the number; asked again, the number."""
    failed = ctypes.c_long()
    got = faults.FaultNumber(function, 0, nth, lasting, ctypes.byref(failed))
    again = function(0)
    assert again >= 1
    assert got in (-1, again), (got, again)
    return failed.value


def interface() -> int:
    """What is no operation, each as the first call of a process."""
    with tempfile.TemporaryDirectory() as folder:  # of a copy, which nothing has used
        fresh = ctypes.CDLL(shutil.copy(PATH, folder))
    works = [functools.partial(threads, fresh.MsCeSetThreads)]
    for name in ("MsCeIsa", "MsCeIsaList", "MsCeDescribe"):
        function = getattr(fresh, name)
        function.restype = ctypes.c_char_p
        works.append(functools.partial(text, function))
    total = 0
    for work in works:
        for lasting in (False, True):
            nth = 1
            while failed := in_child(functools.partial(work, nth, lasting)):
                total, nth = total + failed, nth + 1
    return total


def shapes() -> int:
    def infer(call: Call, made: Arguments, nth: int, lasting: bool) -> int:
        failed = ctypes.c_long()
        function = ctypes.cast(getattr(Library().handle, f"{call.name}InferShape"), ctypes.c_void_p)
        outputs = len(Library().operations[call.name]["outputs"])
        given = (function, outputs, nth, lasting, ctypes.byref(failed), made.ranks, made.shapes)
        message = faults.FaultInfer(*given)
        assert message is None or message.startswith(SENTENCE), f"{call.name}: {message!r}"
        return failed.value

    each = {call.name: call for call in small_calls()}
    made = {name: Arguments(call) for name, call in each.items()}
    return sum(
        until_none_fails(
            lambda nth, lasting, name=name: infer(each[name], made[name], nth, lasting)
        )
        for name in each
    )


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    # This thread's text gets its memory; nothing else of the library is touched.
    ctypes.CDLL(str(PATH)).MsCeTry(None, 0, None, None, None, None)
    print(globals()[sys.argv[1]](*sys.argv[2:]))
