"""How near to the float64 reference a result must be, and where each number comes from.

A result y of reference value r passes where |y - r| ≤ relative·|r| + absolute + half·ulp(r), the last for the one
rounding to a 16-bit dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    """The bound of one dtype."""

    relative: float
    absolute: float
    ulps: float  # of the 16-bit output dtype


# The kernel accumulates in float32 with exp and log good to about 1 ulp: 2e-6 is the project's own promise, forward
# relative and gradient per unit of upstream gradient. float64 differs from the reference by its order of summation.
_KERNEL = {
    "float64": Tolerance(1e-12, 1e-12, 0),
    "float32": Tolerance(2e-6, 2e-6, 0),
    "float16": Tolerance(2e-6, 2e-6, 1),
    "bfloat16": Tolerance(2e-6, 2e-6, 1),
}
# MindSpore's CPU exp is good to 8.2e-6 relative in float32 and exact in float64; tanh to 1e-4 absolute in both. The
# composed backend can be no better than its parts.
_PRIMITIVES = {
    "float64": Tolerance(1e-12, 1e-12, 0),
    "float32": Tolerance(1e-5, 1e-5, 0),
    "float16": Tolerance(1e-5, 1e-5, 1),
    "bfloat16": Tolerance(1e-5, 1e-5, 1),
}
_TANH = 2e-4

# One backend in two modes runs the same operators; MindSpore may add their results in another order.
MODES_AGREE = {"rtol": 1e-6, "atol": 1e-6}

# 16-bit formats: bits of the significand after the point, smallest normal exponent.
_FORMATS = {"float16": (10, -14), "bfloat16": (7, -126)}


def tolerance(backend: str, dtype: str, softcap: bool = False) -> Tolerance:
    """The bound for a backend's result in `dtype`."""
    if backend == "cpu":
        return _KERNEL[dtype]
    bound = _PRIMITIVES[dtype]
    return bound._replace(absolute=_TANH, relative=_TANH) if softcap else bound


def ulp(values: np.ndarray, dtype: str) -> np.ndarray:
    """Distance between neighbours of `dtype` at each value."""
    bits, smallest = _FORMATS[dtype]
    exponent = np.floor(np.log2(np.maximum(np.abs(values), 2.0**smallest)))
    return 2.0 ** (exponent - bits)


def check_close(actual, expected, dtype: str, bound: Tolerance, what: str = "") -> None:
    """Asserts that `actual` is within `bound` of `expected`, nan and inf in the same places."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=what)
    actual, expected = actual[finite], expected[finite]
    allowed = bound.relative * np.abs(expected) + bound.absolute
    if bound.ulps:
        allowed = allowed + bound.ulps * ulp(expected, dtype)
    error = np.abs(actual - expected)
    worst = int(np.argmax(error - allowed)) if error.size else 0
    assert np.all(error <= allowed), (
        f"{what}: {actual.flat[worst]!r} is {error.flat[worst]:.3g} from {expected.flat[worst]!r}, "
        f"{allowed.flat[worst]:.3g} allowed; {np.sum(~(error <= allowed))} of {error.size} outside"
    )
