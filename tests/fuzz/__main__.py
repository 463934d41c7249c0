"""`make fuzz`: draws losses until SECONDS are over, and stops at the first that is wrong with the case to repeat it by.

python -m tests.fuzz [--seconds S | --count N] [--seed S] [--public pynative|compiled] [--case N] [--go-on] [--onednn]
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator

_TELL_EVERY = 60.0  # seconds


def _one_of(public: str | None) -> Callable[[int, int], int]:
    """The function that draws and checks one case of a seed."""
    if public is None:
        from tests.fuzz import kernel
        from tests.kernel.library import Library

        library = Library()
        return lambda seed, number: kernel.one(seed, number, library)
    from tests.fuzz import public as functions

    gc.collect()  # MindSpore collects garbage before it compiles; what is loaded by now is none
    gc.freeze()
    return lambda seed, number: functions.one(seed, number, public == "compiled")


def _numbers(arguments: argparse.Namespace) -> Iterator[int]:
    if arguments.case is not None:
        return iter([arguments.case])
    if arguments.count is not None:
        return iter(range(arguments.count))
    end = time.monotonic() + arguments.seconds
    return itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31)
    parser.add_argument("--public", choices=("pynative", "compiled"))
    parser.add_argument("--case", type=int)
    parser.add_argument("--onednn", action="store_true", help="products of bfloat16 by MindSpore's")
    parser.add_argument("--go-on", action="store_true", help="tell a failure and draw the next")
    arguments = parser.parse_args()
    if arguments.onednn:
        importlib.import_module("mindspore")  # brings it
    one, cases, calls, failures = _one_of(arguments.public), 0, 0, 0
    told = time.monotonic()
    print(f"seed {arguments.seed}", flush=True)
    for number in _numbers(arguments):
        try:
            calls += one(arguments.seed, number)
        except AssertionError as failure:
            failures += 1
            print(f"after {calls} calls: {failure}", flush=True)
            if not arguments.go_on:
                break
        cases += 1
        if time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            print(f"so far {cases} cases, {calls} calls, {failures} failures", flush=True)
    print(f"{cases} cases, {calls} calls, {failures} failures", flush=True)
    sys.exit(failures != 0)


if __name__ == "__main__":
    main()
