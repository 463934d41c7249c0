"""A few cases of a fixed seed; `make fuzz` draws others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.fuzz import kernel, public
from tests.fuzz.bounds import check
from tests.fuzz.calls import Kernel, Made
from tests.fuzz.draw import STREAMED_BYTES
from tests.fuzz.families import FAMILIES
from tests.fuzz.properties import PROPERTIES, Case, chunks, offset_by_bias, way_of_storing
from tests.kernel.library import Library, cast, dtype_name, to_float64

SEED = 1
# The losses that a property is about, where these are not those of logits.
_ABOUT = {chunks: "linear", offset_by_bias: "distillation", way_of_storing: "top k"}


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_operations(first: int) -> None:
    library = Library()
    for number in range(first, first + 100):
        assert kernel.one(SEED, number, library) > 0


def _spoiled(made: Made) -> Made:
    if made.array.dtype.kind == "i":
        return made._replace(array=made.array + 1)
    values = to_float64(made.array)
    return made._replace(array=cast(values + 0.05 * (1 + np.abs(values)), dtype_name(made.array)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_notices(name: str) -> None:
    """Results that are off, in the first loss of a family in which something is known."""
    for number in range(20):
        random = np.random.default_rng([SEED, number])
        drawn = FAMILIES[name].draw(random)
        found, answers = (
            FAMILIES[name].results(Kernel(Library()), drawn),
            FAMILIES[name].answers(drawn),
        )
        known = [made for made in found.values() if made.of in answers and _has_numbers(made)]
        for made in known:
            check(made.of, made.array, answers[made.of], drawn.form.dtype)
            with pytest.raises(AssertionError, match=made.of):
                check(made.of, _spoiled(made).array, answers[made.of], drawn.form.dtype)
        if known:
            return
    pytest.fail("it knows of nothing")


def _has_numbers(made: Made) -> bool:
    return made.array.dtype != np.int64 and bool(np.any(np.isfinite(to_float64(made.array))))


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_a_property_notices(holds) -> None:
    """Results that are off in one of the calls that it compares, in one of the first losses that it is about."""
    right = FAMILIES[_ABOUT.get(holds, "losses")]
    wrong = right._replace(
        results=lambda *given: {n: _spoiled(m) for n, m in right.results(*given).items()}
    )
    for number in range(200):
        random = np.random.default_rng([SEED, number])
        case = Case(right, Kernel(Library()), right.draw(random), random)
        holds(case)
        case.family, found = wrong, case.found
        if holds.__name__ == "gradients_cancel":
            case.found = {name: _spoiled(made) for name, made in found.items()}
        try:
            holds(case)
        except AssertionError:
            return
    pytest.fail("it holds for whatever there is")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.streams])
def test_gradients_past_the_cache(name: str) -> None:
    """A gradient that large, and one whose bits depend on the place: in one row's last class, where it lies odd."""
    family = FAMILIES[name]
    drawn = replace(family.draw(np.random.default_rng([SEED, 0]), streamed=True), odd=0)
    assert drawn.logits.nbytes >= STREAMED_BYTES
    case = Case(family, Kernel(Library()), drawn, np.random.default_rng(SEED))
    kernel.check_streamed(case)

    def wrong(of: Kernel, moved):
        found = family.results(of, moved)
        grad = next(made.array for made in found.values() if made.of == "grad_logits")
        if moved.odd:
            grad.view(np.uint8).reshape(-1)[-1] ^= 1
        return found

    case.family = family._replace(results=wrong)
    with pytest.raises(AssertionError, match="threads, environment or place"):
        kernel.check_streamed(case)


def test_functions() -> None:
    for number in range(8):
        assert public.one(SEED, number, compiled=False) == 2 * public.AT_ONCE


def test_compiled_functions() -> None:
    for number in range(3):
        assert public.one(SEED, number, compiled=True) == public.VALUES_PER_GRAPH
