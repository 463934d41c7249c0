"""How near to the float64 reference a result of the linear loss must be."""

from __future__ import annotations

import numpy as np

# float32: sums of up to 1300 products of unit size, so 1e-5 of the largest result. The 16-bit dtypes add the one
# rounding of the result, and on backend cpu bfloat16 that of the logits' gradient (2^-8 of each of its terms).
RELATIVE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
# MindSpore's CPU exp and tanh: see tests/support/tolerances.py.
PRIMITIVES = 1e-4


def check_linear(actual, expected, backend: str, dtype: str, what: str) -> None:
    """Asserts that every element is near, by the measure of the largest one, and nan in the same places."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    known = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~known], expected[~known], err_msg=what)
    actual, expected = actual[known], expected[known]
    bound = RELATIVE[dtype] + (PRIMITIVES if backend != "cpu" else 0.0)
    allowed = bound * max(np.abs(expected).max(initial=0.0), 1e-3)
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= allowed, f"{what}: off by {error:.3g}, {allowed:.3g} allowed"
