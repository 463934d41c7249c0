"""How far from the float64 reference each result may be: by the size of the terms that it is a sum of, not by its own.

A result of the kernel is a sum of terms, each computed in float32 or float64, rounded once at the end. Cancelling
weights, a class of probability 1 or an upstream gradient of any size then need no tolerance of their own. Logits that
are themselves computed may be off by `off`, which every derivative of the softmax passes on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.draw_logits import BlocksLoss, LogitsLoss, rows_of
from tests.kernel.library import dtype_name, to_float64
from tests.kernel.operations import reference
from tests.support.cases import round_to
from tests.support.tolerances import ulp

# The promise is 2e-6 (docs/backends.md): 40 roundings to float32. float64 is measured by its own, three times as many:
# its sums have no wider type beneath.
ROUNDINGS = 40
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-24, "bfloat16": 2.0**-24, "float64": 3 * 2.0**-53}
# The steepest that 1 - tanh² gets, 2·tanh·(1 - tanh²).
STEEPEST = 0.77


class Answer(NamedTuple):
    """What a result is, and how far from it it may be before it is rounded to its dtype."""

    value: Any
    allowed: Any


def finite(values) -> np.ndarray:
    """|values|, 0 where they are none."""
    return np.abs(np.where(np.isfinite(values), values, 0.0))


class Terms:
    """The reference's rows of one loss of logits, and its answers. `coarse` multiplies what a rounding costs."""

    def __init__(
        self,
        exact: tuple,
        row_weight: np.ndarray | None,
        options: dict[str, Any],
        dtype: str,
        upstream: np.ndarray,
        off: np.ndarray | None = None,
        coarse: float = 1.0,
        least_p: float = 0.0,
    ):
        self.exact, self.row_weight, self.options = exact, row_weight, options
        self.shape, self.dtype, self.grad_loss = np.shape(exact[0]), dtype, upstream
        self.unit, self.least_p = coarse * ROUNDINGS * ROUNDING[dtype], least_p
        self.z = options["z_loss"]
        names = ("ignore_index", "reduction", "label_smoothing", "softcap", "logit_scale")
        given = {name: options[name] for name in names}
        self.r = r = reference._prepare((*exact, row_weight), **given)
        # What rounding a scaled or capped logit moves an exponent by; tanh is near to an absolute error.
        moved = bool(options["softcap"] or options["logit_scale"] != 1.0)
        largest = finite(r.x).max(-1, initial=0.0) + options["softcap"]
        self.moved = (1.0 + moved * largest)[:, None]
        scale = abs(options["logit_scale"])
        self.off = np.zeros_like(r.x) if off is None else scale * off
        self.furthest = self.off.max(-1, initial=0.0)[:, None]
        self.distance, self.p, self.lse = finite(r.distance), finite(r.p), finite(r.lse)[:, None]
        # Absolute, of lse - x; relative, of p.
        self.of_distance = self.unit * (self.distance + self.moved) + self.off + self.furthest
        self.of_p = self.unit * (self.distance + self.moved) + np.expm1(2 * self.furthest)
        self.of_lse = self.unit * (self.lse + self.moved) + self.furthest
        # lse is a float64: what is left of log Σ in it reaches the gradients of targets and weights, lse - x.
        self.of_saved_distance = self.of_distance + ROUNDINGS * coarse * self.lse * 2.0**-53
        self.factor = np.abs(r.w * r.q)
        self.mass = self.factor.sum(-1, keepdims=True)
        self.counts = np.abs(r.row_weight)[:, None]

    def of_rows(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(rows_of(self.shape))

    def of_squares(self) -> np.ndarray:
        return self.counts[:, 0] * (abs(self.z) * self.of_lse * (2 * self.lse + self.of_lse))[:, 0]

    def of_row_losses(self) -> np.ndarray:
        return self.counts[:, 0] * (self.factor * self.of_distance).sum(-1) + self.of_squares()

    def of_entropies(self) -> np.ndarray:
        """Of Σ p·(lse - x)."""
        error = self.of_p * self.distance + self.of_distance * (1 + self.of_p)
        return self.at_p(error).sum(-1)

    def at_p(self, values: np.ndarray) -> np.ndarray:
        """p·values, 0 where p is: the distance of such a class has no bound."""
        return np.where(self.p == 0, 0.0, self.p * values)

    def reduced(self, rows: np.ndarray, divisor: float) -> np.ndarray:
        if self.options["reduction"] == "none":
            return self.of_rows(rows)
        return np.asarray(rows.sum() / abs(divisor) if divisor else 0.0)

    def known(self) -> bool:
        """Whether the loss is: no mean 0 / 0 whose numerator is 0 but for rounding."""
        if self.options["reduction"] != "mean" or self.r.divisor != 0:
            return True
        losses, squares = reference._row_losses(self.r, self.z)
        return not abs((losses + squares).sum()) <= self.of_row_losses().sum()

    def upstream(self) -> np.ndarray:
        """|what arrives at each row|, (n, 1)."""
        return np.abs(reference._upstream(self.grad_loss, self.r))[:, None]

    def inner(self) -> np.ndarray:
        """The sizes of the terms of a gradient of x', for 1 that arrives, (n, C)."""
        return (self.mass + 2 * abs(self.z) * self.lse) * self.p + self.factor

    def of_slope(self) -> np.ndarray:
        """What a gradient of logits is off by for 1 that arrives, (n, C)."""
        slope = self.mass + 2 * abs(self.z) * self.lse
        error = slope * self.p * self.of_p + self.unit * self.factor * self.moved
        error = error + 2 * abs(self.z) * self.of_lse * self.p * (1 + self.of_p)
        error = error + (self.mass + 2 * abs(self.z) * (self.lse + self.moved)) * self.least_p
        if self.options["softcap"]:
            steep = self.unit + STEEPEST * self.off / self.options["softcap"]
            error = error + steep * self.inner()
        return abs(self.options["logit_scale"]) * error

    def of_grad_logits(self) -> np.ndarray:
        """(n, C)."""
        return self.upstream() * self.of_slope()

    def of_grad_target(self) -> np.ndarray:
        return self.upstream() * np.abs(self.r.w) * self.of_saved_distance

    def of_grad_weight(self) -> np.ndarray:
        terms = (self.upstream() * np.abs(self.r.q) * self.of_saved_distance).sum(0)
        divisor = abs(self.r.divisor)
        if self.options["reduction"] == "mean" and self.r.hard is not None and divisor:
            hits = np.bincount(self.r.hard, weights=self.counts[:, 0], minlength=len(self.r.w))
            ratio = np.abs(self.grad_loss) * self.of_row_losses().sum() / divisor**2
            losses, squares = reference._row_losses(self.r, self.z)
            sized = np.abs(self.grad_loss) * (finite(losses) + finite(squares)).sum() / divisor**2
            terms = terms + np.where(hits == 0, 0.0, (ratio + self.unit * sized) * hits)
        return terms

    def correct(self) -> Answer:
        """Between the rows that are right whatever rounding does, and those that may be."""
        r, margin = self.r, 2 * (self.unit * self.moved + self.furthest)[:, 0]
        best, clear = r.hard, np.ones(len(r.keep), bool)
        if best is None:
            q = reference.to_rows(np.asarray(self.exact[1], np.float64))
            best = q.argmax(-1)
            clear = (q == q.max(-1, initial=0.0, keepdims=True)).sum(-1) == 1
        rows, others = np.arange(len(best)), r.x.copy()
        own = others[rows, best]
        others[rows, best] = -np.inf
        most = others.max(-1)
        predicts = (r.keep > 0) & np.isfinite(r.lse)
        sure = predicts & clear & (own > most + margin)
        never = ~predicts | (clear & (own < most - margin))
        fewest, possible = int(sure.sum()), int((~never).sum())
        return Answer((fewest + possible) / 2, (possible - fewest) / 2)

    def of_block(self, classes: slice) -> Answer:
        """lse, Σ w·q'·x' and Σ w·q' over some classes, (rows, 3): 0 where the row does not count."""
        r, x = self.r, self.r.x[:, classes]
        top = x.max(-1, keepdims=True)
        log_sum = np.log(np.exp(x - top).sum(-1, keepdims=True))
        alone = np.isneginf(top)
        lse = np.where(alone, -np.inf, top + log_sum)
        dot = reference._weighted_sum(r.factor[:, classes], x)
        values = np.stack([lse[:, 0], dot, r.factor[:, classes].sum(-1)], -1)
        factor = self.factor[:, classes]
        mass = factor.sum(-1)
        of_lse = self.unit * (finite(log_sum) + self.moved) + 2 * self.furthest
        away = finite(top) + finite(top - x)
        of_dot = (factor * (self.unit * (away + self.moved) + 2 * self.furthest)).sum(-1)
        allowed = np.stack([of_lse[:, 0], of_dot, self.unit * mass], -1)
        keep = r.keep[:, None] > 0
        shape = (*rows_of(self.shape), 3)
        values = np.where(keep, values, 0.0).reshape(shape)
        return Answer(values, np.where(keep, allowed, 0.0).reshape(shape))

    def predicted(self, value: np.ndarray) -> Answer:
        """A class, or any where rounding may raise another one to the largest."""
        x, margin = self.r.x, 2 * (self.unit * self.moved + self.furthest)[:, 0]
        near = (x >= x.max(-1, initial=-np.inf, keepdims=True) - margin[:, None]).sum(-1) > 1
        return Answer(value, self.of_rows(np.where((self.r.keep > 0) & near, x.shape[1], 0)))

    def answers(self) -> dict[str, Answer]:
        """Loss, statistics and gradients by name; "own" are those for an upstream of 1."""
        settings = {**self.options, "row_weight": self.row_weight}
        result = reference.cross_entropy(*self.exact, **settings)
        divisor, reduced = self.r.divisor, self.options["reduction"] != "none"
        counted = self.r.keep.sum() if self.options["reduction"] == "mean" else 1.0
        answers = {
            "lse": Answer(result.lse, self.of_rows(self.of_lse[:, 0])),
            "total_weight": Answer(result.total_weight, 1e-13 * np.abs(result.total_weight)),
            "entropy": Answer(result.entropy, self.reduced(self.of_entropies(), counted)),
            "num_correct": self.correct(),
            "predicted": self.predicted(result.predicted),
        }
        if self.known():
            answers["loss"] = Answer(result.loss, self.reduced(self.of_row_losses(), divisor))
        of_rows = reference.cross_entropy(*self.exact, **{**settings, "reduction": "none"})
        answers["row_losses"] = Answer(of_rows.loss, self.of_rows(self.of_row_losses()))
        if divisor != 0:
            answers["z_loss"] = Answer(result.z_loss, self.reduced(self.of_squares(), divisor))
        grads = reference.cross_entropy_grad(*self.exact, **settings, grad_loss=self.grad_loss)
        for name in ("logits", "target", "weight"):
            if getattr(grads, name) is not None:
                allowed = getattr(self, f"of_grad_{name}")()
                if name != "weight":
                    allowed = reference.from_rows(allowed, self.shape)
                answers[f"grad_{name}"] = Answer(getattr(grads, name), allowed)
        if reduced:
            unit = reference.cross_entropy_grad(*self.exact, **settings, grad_loss=1.0)
            arriving = max(float(np.abs(self.grad_loss)), 1e-300)
            for name in ("logits", "target"):
                if getattr(unit, name) is not None:
                    allowed = answers[f"grad_{name}"].allowed / arriving
                    answers[f"own grad_{name}"] = Answer(getattr(unit, name), allowed)
        return answers


def terms_of(drawn: LogitsLoss, **more: Any) -> Terms:
    with np.errstate(all="ignore"):
        upstream = to64(drawn.upstream)
        return Terms(
            drawn.exact, drawn.row_weight, drawn.options, drawn.form.dtype, upstream, **more
        )


def loss_answers(drawn: LogitsLoss, **more: float) -> dict[str, Answer]:
    with np.errstate(all="ignore"):
        return terms_of(drawn, **more).answers()


def block_answers(drawn: BlocksLoss) -> dict[str, Answer]:
    """Of the whole loss, and of each block lse, Σ w·q'·x and Σ w·q' of its classes. Devices exchange float64, which a
    logit's size takes places of."""
    with np.errstate(all="ignore"):
        raw = reference.to_rows(finite(to64(drawn.logits)))
        off = np.broadcast_to(
            ROUNDINGS * 2.0**-53 * raw.max(-1, initial=0.0, keepdims=True), raw.shape
        )
        terms = terms_of(drawn, off=off)
        answers, first = terms.answers(), 0
        for i, end in enumerate(drawn.ends):
            answers[f"block {i}"] = terms.of_block(slice(first, end))
            first = end
        return answers


def nll_answers(drawn: LogitsLoss, coarse: float = 1.0, least_p: float = 0.0) -> dict[str, Answer]:
    """A row's loss is a product, its gradient one of numbers that are given. A product below `least_p` may be 0."""
    options, upstream = drawn.options, to64(drawn.upstream)
    settings = {name: options[name] for name in ("ignore_index", "reduction")}
    settings["row_weight"] = drawn.row_weight
    rows = terms_of(drawn).r
    with np.errstate(all="ignore"):
        loss, total_weight = reference.nll_loss(*drawn.exact, **settings)
        grads = reference.nll_loss_grad(*drawn.exact, **settings, grad_loss=upstream)
        unit = coarse * ROUNDINGS * ROUNDING[drawn.form.dtype]
        at_target = rows.x[np.arange(len(rows.x)), rows.hard] * rows.w[rows.hard]
        terms = unit * np.abs(rows.row_weight) * finite(at_target) + least_p * (rows.keep > 0)
        answers = {
            "total_weight": Answer(total_weight, 1e-13 * np.abs(total_weight)),
            "grad_log_prob": Answer(grads.logits, unit * finite(grads.logits)),
        }
        if options["reduction"] == "none":
            allowed = terms.reshape(drawn.form.rows)
        else:
            allowed = terms.sum() / abs(rows.divisor) if rows.divisor else 0.0
        losses = rows.row_weight * at_target
        if rows.divisor or not abs(losses.sum()) <= terms.sum():
            answers["loss"] = Answer(loss, allowed)
        if grads.weight is not None:
            allowed = unit * finite(reference._upstream(upstream, rows)[:, None] * rows.q * rows.x)
            of_mean = 0.0
            if options["reduction"] == "mean" and rows.divisor:
                hits = np.bincount(rows.hard, np.abs(rows.row_weight), len(rows.w))
                of_mean = 2 * np.abs(upstream) * terms.sum() * hits / rows.divisor**2
            answers["grad_weight"] = Answer(grads.weight, allowed.sum(0) + of_mean)
    return answers


class TokenTerms(Terms):
    """Log-probabilities and entropies of rows; `grad_loss` arrives at -log p, `grad_entropy` at the entropy."""

    grad_entropy: np.ndarray | None = None

    def entropy_gradient(self) -> Answer:
        """(n, C) of Σ grad_entropy·entropy by the logits."""
        options = {n: self.options[n] for n in ("ignore_index", "softcap", "logit_scale")}
        value = reference.entropy_grad(*self.exact[:2], self.grad_entropy, **options)
        arrives = np.abs(self.grad_entropy).reshape(-1, 1) * self.r.keep[:, None]
        entropy = (self.p * self.distance).sum(-1, keepdims=True)
        from_mean = self.distance + entropy
        error = self.of_p * from_mean + self.of_distance * (1 + self.of_p)
        error = error + self.of_entropies()[:, None]
        if self.options["softcap"]:
            error = error + from_mean * (self.unit + STEEPEST * self.off / self.options["softcap"])
        error = self.at_p(error) + self.least_p * (1 + from_mean)
        allowed = arrives * abs(self.options["logit_scale"]) * error
        return Answer(reference.to_rows(value), allowed)

    def token_answers(self) -> dict[str, Answer]:
        made = self.answers()
        loss, lse, entropy = made["loss"], made["lse"], made["entropy"]
        if self.grad_entropy is None:
            return {
                "log_prob": Answer(-loss.value, loss.allowed),
                "lse": lse,
                "entropy": Answer(np.zeros_like(entropy.value), np.zeros_like(entropy.allowed)),
                "grad_logits": made["grad_logits"],
            }
        slope, grad = self.entropy_gradient(), made["grad_logits"]
        return {
            "log_prob": Answer(-loss.value, loss.allowed),
            "lse": lse,
            "entropy": entropy,
            "grad_logits": Answer(
                grad.value + reference.from_rows(slope.value, self.shape),
                grad.allowed + reference.from_rows(slope.allowed, self.shape),
            ),
        }


def token_answers(
    drawn: LogitsLoss, grads: dict[str, np.ndarray], **more: float
) -> dict[str, Answer]:
    """`grads` are grad_rows and grad_entropy."""
    with np.errstate(all="ignore"):
        options = {n: v for n, v in drawn.options.items() if n != "has_entropy"}
        given = (drawn.exact, None, options, drawn.form.dtype, grads["grad_rows"])
        terms = TokenTerms(*given, **more)
        if drawn.options["has_entropy"]:
            terms.grad_entropy = grads["grad_entropy"]
        return terms.token_answers()


def rounding(expected, dtype: str, computed: str) -> np.ndarray:
    """A place of the result's dtype, and the smallest number of the type `computed` in."""
    expected = finite(expected)
    least = 1e-300 if computed == "float64" else 1e-37
    if dtype in ("float16", "bfloat16"):
        return ulp(expected, dtype) + least
    return (2.0**-52 if dtype == computed == "float64" else 2.0**-23) * expected + least


def check(
    name: str,
    actual,
    answer: Answer,
    computed: str,
    places: float = 1.0,
    dtype: str | None = None,
) -> None:
    """Asserts it, nan and inf in the same places; what is beyond the largest number of its `dtype` is inf there."""
    dtype = dtype or dtype_name(actual)
    actual, expected = to64(actual), np.asarray(answer.value, np.float64)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    with np.errstate(all="ignore"):
        there = expected
        if not dtype.startswith("int"):
            there = np.asarray(round_to(expected, dtype), np.float64)
        same = np.where(np.isnan(there), np.isnan(actual), actual == there)
        allowed = answer.allowed + places * rounding(expected, dtype, computed)
        near = np.abs(actual - expected) <= allowed
    right = np.where(np.isfinite(there), near, same)
    if not np.all(right):
        allowed = np.broadcast_to(allowed, expected.shape)
        worst = tuple(int(axis[0]) for axis in np.nonzero(~np.atleast_1d(right)))
        got, wanted, by = (np.atleast_1d(a)[worst] for a in (actual, expected, allowed))
        raise AssertionError(f"{name} at {worst}: {got!r}, not {wanted!r} within {by!r}")


def to64(values) -> np.ndarray:
    return np.asarray(to_float64(values))
