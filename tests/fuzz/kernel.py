"""One drawn loss through every operation of the kernel that takes it, against the reference and against itself."""

from __future__ import annotations

import numpy as np

from tests.fuzz.bounds import check
from tests.fuzz.calls import Kernel
from tests.fuzz.families import FAMILIES, SHARES
from tests.fuzz.properties import PROPERTIES, Case
from tests.kernel.library import Library


def one(seed: int, number: int, library: Library) -> int:
    """Draws and checks loss `number` of `seed`; returns the calls made. AssertionError says what is wrong."""
    random = np.random.default_rng([seed, number])
    name = str(random.choice(list(SHARES), p=list(SHARES.values())))
    drawn, kernel = FAMILIES[name].draw(random), Kernel(library)
    library.set_isa(str(random.choice(library.isas())))
    try:
        case = Case(FAMILIES[name], kernel, drawn, random)
        for result, made in case.found.items():
            if made.of in case.answers:
                check(result, made.array, case.answers[made.of], drawn.form.dtype)
        for holds in PROPERTIES:
            holds(case)
    except (AssertionError, RuntimeError) as failure:
        isa = library.handle.MsCeIsa().decode()
        text = f"seed {seed}, case {number}, {name}: {drawn}, odd {drawn.odd}, {isa}: {failure}"
        raise AssertionError(text) from failure
    finally:
        library.set_isa("auto")
    return kernel.calls
