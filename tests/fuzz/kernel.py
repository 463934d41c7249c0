"""One drawn loss through every operation of the kernel that takes it, against the reference and against itself."""

from __future__ import annotations

import numpy as np

from tests.fuzz.bounds import check
from tests.fuzz.calls import Kernel
from tests.fuzz.draw import SMALL_FOR_ONE_STREAMED
from tests.fuzz.families import FAMILIES, SHARES
from tests.fuzz.properties import (
    PROPERTIES,
    Case,
    few_of_streamed,
    threads_environment_and_place,
)
from tests.kernel.library import Library

_PLACES = 3


def check_all(case: Case) -> None:
    """Its results against the reference, and whatever must hold between them."""
    for result, made in case.found.items():
        if made.of in case.answers:
            check(result, made.array, case.answers[made.of], case.drawn.form.dtype)
    for holds in PROPERTIES:
        holds(case)


def check_streamed(case: Case) -> None:
    """What costs little of a loss this large: its bits in several places, and everything of a few rows."""
    for _ in range(_PLACES):
        threads_environment_and_place(case)
    check_all(few_of_streamed(case))


def one(seed: int, number: int, library: Library) -> int:
    """Draws and checks loss `number` of `seed`; returns the calls made. AssertionError says what is wrong."""
    random = np.random.default_rng([seed, number])
    name = str(random.choice(list(SHARES), p=list(SHARES.values())))
    family, kernel = FAMILIES[name], Kernel(library)
    streamed = family.streams and random.integers(SMALL_FOR_ONE_STREAMED) == 0
    drawn = family.draw(random, streamed=True) if streamed else family.draw(random)
    library.set_isa(str(random.choice(library.isas())))
    try:
        case = Case(family, kernel, drawn, random)
        (check_streamed if streamed else check_all)(case)
    except (AssertionError, RuntimeError) as failure:
        isa = library.handle.MsCeIsa().decode()
        text = f"seed {seed}, case {number}, {name}: {drawn}, odd {drawn.odd}, {isa}: {failure}"
        raise AssertionError(text) from failure
    finally:
        library.set_isa("auto")
    return kernel.calls
