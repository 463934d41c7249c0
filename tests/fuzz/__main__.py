"""`make fuzz`: draws losses until SECONDS are over, and stops at the first that is wrong with the case to repeat it by.

python -m tests.fuzz [--seconds S | --count N] [--seed S] [--public pynative|compiled] [--case N]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator


def _one_of(public: str | None) -> Callable[[int, int], int]:
    """The function that draws and checks one case of a seed."""
    if public is None:
        from tests.fuzz import kernel
        from tests.kernel.library import Library

        library = Library()
        return lambda seed, number: kernel.one(seed, number, library)
    from tests.fuzz import public as functions

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
    arguments = parser.parse_args()
    one, cases, calls = _one_of(arguments.public), 0, 0
    print(f"seed {arguments.seed}", flush=True)
    for number in _numbers(arguments):
        try:
            calls += one(arguments.seed, number)
        except AssertionError as failure:
            sys.exit(f"after {calls} calls: {failure}")
        cases += 1
    print(f"{cases} cases, {calls} calls")


if __name__ == "__main__":
    main()
