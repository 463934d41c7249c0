"""How far from the float64 reference each result may be: by the size of the terms that it is a sum of, not by its own.

A result of the kernel is a sum of terms, each computed in float32 or float64, rounded once at the end.
Cancelling weights, a class of probability 1 or an upstream gradient of any size then need no tolerance of their own.
"""

from __future__ import annotations

import numpy as np

from tests.fuzz.draw import Drawn
from tests.kernel.operations import reference
from tests.support.cases import round_to
from tests.support.tolerances import ulp

# The promise is 2e-6 (docs/backends.md): 40 roundings to float32. float64 is measured by its own, three times as many:
# its sums have no wider type beneath.
_ROUNDINGS = 40
_UNIT = {"float32": 2.0**-24, "float16": 2.0**-24, "bfloat16": 2.0**-24, "float64": 3 * 2.0**-53}


class Terms:
    """The reference's rows of one drawn loss, and what its results may be off by."""

    def __init__(self, drawn: Drawn):
        options = {n: v for n, v in drawn.options.items() if n != "z_loss"}
        given = (*drawn.exact, drawn.row_weight)
        self.drawn, self.z = drawn, drawn.options["z_loss"]
        with np.errstate(all="ignore"):
            self.r = r = reference._prepare(given, **options)
            self.unit = _ROUNDINGS * _UNIT[drawn.dtype]
            self.distance = np.where(np.isfinite(r.distance), np.abs(r.distance), 0.0)
            # What rounding a scaled or capped logit moves an exponent by.
            largest = np.abs(np.where(np.isfinite(r.x), r.x, 0.0)).max(-1, initial=0.0)
            largest = largest + options["softcap"]  # tanh is near to an absolute error
            moved = options["softcap"] or options["logit_scale"] != 1.0
            self.moved = 1.0 + (largest if moved else np.zeros_like(largest))
            # lse is a float64: what is left of log Σ in it reaches the gradients of targets and weights, lse - x.
            of_lse = np.abs(np.where(np.isfinite(r.lse), r.lse, 0.0))
            self.moved_by_lse = self.moved + of_lse * 2.0**-53 / _UNIT[drawn.dtype]
            self.least_p = 0.0  # a probability below may count as 0
            self.factor = np.abs(r.w * r.q)
            self.mass = self.factor.sum(-1)
            self.lse = of_lse
            self.z_slope = 2.0 * abs(self.z) * (self.lse + self.moved)
            self.counts = np.abs(r.row_weight)
            self.divisor = r.divisor

    def _rounded(self, expected, dtype: str) -> np.ndarray:
        """Half a place of the result's dtype, and the smallest number of the type computed in."""
        expected = np.abs(np.where(np.isfinite(expected), expected, 0.0))
        least = 1e-300 if self.drawn.dtype == "float64" else 1e-37
        if dtype in ("float16", "bfloat16"):
            return ulp(expected, dtype) + least
        return (
            2.0**-52 if dtype == "float64" and self.drawn.dtype == "float64" else 2.0**-23
        ) * expected + least

    def row_losses(self) -> np.ndarray:
        terms = (self.factor * (self.distance + self.moved[:, None])).sum(-1)
        return self.unit * self.counts * (terms + abs(self.z) * self.lse * (self.lse + self.moved))

    def known(self) -> bool:
        """Whether the loss is: no mean 0 / 0 whose numerator is 0 but for rounding."""
        if self.drawn.options["reduction"] != "mean" or self.divisor != 0:
            return True
        losses, squares = reference._row_losses(self.r, self.z)
        return not abs((losses + squares).sum()) <= self.row_losses().sum()

    def reduced(self, rows: np.ndarray) -> np.ndarray:
        if self.drawn.options["reduction"] == "none":
            return rows.reshape(self.drawn.rows)
        return np.asarray(rows.sum() / abs(self.divisor) if self.divisor else 0.0)

    def upstream(self) -> np.ndarray:
        """|what arrives at each row|."""
        with np.errstate(all="ignore"):
            return np.abs(reference._upstream(to64(self.drawn.upstream), self.r))

    def grad_logits(self) -> np.ndarray:
        arrives = self.upstream()[:, None] * abs(self.drawn.options["logit_scale"])
        p = np.where(np.isfinite(self.r.p), self.r.p, 0.0)
        slope = (self.mass + self.z_slope)[:, None] * p * (self.distance + self.moved[:, None])
        rows = self.unit * arrives * (slope + self.factor * self.moved[:, None])
        rows = rows + arrives * (self.mass + self.z_slope)[:, None] * self.least_p
        return reference.from_rows(rows, self.drawn.shape)

    def grad_target(self) -> np.ndarray:
        rows = (
            self.unit
            * self.upstream()[:, None]
            * np.abs(self.r.w)
            * (self.distance + self.moved_by_lse[:, None])
        )
        return reference.from_rows(rows, self.drawn.shape)

    def grad_weight(self) -> np.ndarray:
        arrives = self.upstream()[:, None]
        terms = (arrives * np.abs(self.r.q) * (self.distance + self.moved_by_lse[:, None])).sum(0)
        if self.drawn.options["reduction"] == "mean" and self.r.hard is not None and self.divisor:
            counts = np.bincount(self.r.hard, weights=self.counts, minlength=len(self.r.w))
            loss = self.row_losses().sum() / self.unit / abs(self.divisor)
            terms = terms + np.abs(to64(self.drawn.upstream)) * loss * counts / abs(self.divisor)
        return self.unit * terms

    def check(self, name: str, actual, expected, allowed, dtype: str) -> None:
        """Asserts it, nan and inf in the same places; what is beyond the dtype's largest number is inf there."""
        actual, expected = to64(actual), np.asarray(expected, np.float64)
        assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
        with np.errstate(all="ignore"):
            there = np.asarray(round_to(expected, dtype), np.float64)
            finite = np.isfinite(there)
            same = np.where(np.isnan(there), np.isnan(actual), actual == there)
            allowed = np.broadcast_to(allowed + self._rounded(expected, dtype), expected.shape)
            near = np.abs(actual - expected) <= allowed
        right = np.where(finite, near, same)
        if not np.all(right):
            worst = tuple(int(axis[0]) for axis in np.nonzero(~np.atleast_1d(right)))
            got, wanted, by = (np.atleast_1d(a)[worst] for a in (actual, expected, allowed))
            raise AssertionError(f"{name} at {worst}: {got!r}, not {wanted!r} within {by!r}")


def to64(values) -> np.ndarray:
    from tests.kernel.library import to_float64

    return np.asarray(to_float64(values))
