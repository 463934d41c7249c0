"""How far from the float64 reference second derivatives may be: those of Σ direction·grad_logits."""

from __future__ import annotations

import numpy as np

from tests.fuzz.bounds import STEEPEST, Answer, Terms, terms_of, to64
from tests.fuzz.draw_logits import LogitsLoss
from tests.kernel.operations import reference


class SecondTerms:
    """With d' = d·dx'/dx and m = Σ p·d' of a row, and the sizes of both."""

    def __init__(self, terms: Terms, direction: np.ndarray):
        self.terms, self.r = terms, terms.r
        self.raw = reference.to_rows(direction)
        self.moved = self.raw * self.r.slope
        scale = abs(terms.options["logit_scale"])
        self.size, self.of_moved = np.abs(self.moved), terms.unit * scale * np.abs(self.raw)
        self.mean_size = (terms.p * self.size).sum(-1, keepdims=True)
        self.of_mean = (terms.p * (self.size * terms.of_p + self.of_moved)).sum(-1, keepdims=True)
        self.mean = np.where(self.r.keep > 0, (self.r.p * self.moved).sum(-1), 0.0)[:, None]
        # What multiplies an upstream gradient on its way to a row.
        divisor = self.r.divisor
        self.share = self.r.row_weight[:, None] / divisor if divisor else 0.0 * terms.counts

    def reduced(self, rows: np.ndarray) -> np.ndarray:
        none = self.terms.options["reduction"] == "none"
        return self.terms.of_rows(rows) if none else np.asarray(rows.sum())

    def grad_grad_loss(self) -> tuple[Answer, np.ndarray]:
        """The answer, and each row's size."""
        terms, share = self.terms, np.abs(self.share[:, 0])
        settings = {**terms.options, "row_weight": terms.row_weight}
        ones = np.ones(np.shape(terms.grad_loss))
        unit = reference.cross_entropy_grad(*terms.exact, **settings, grad_loss=ones).logits
        rows = (reference.to_rows(unit) * self.raw).sum(-1)
        scale = abs(terms.options["logit_scale"])
        size = share * (np.abs(self.raw) * scale * terms.inner()).sum(-1)
        allowed = share * (np.abs(self.raw) * terms.of_slope()).sum(-1)
        return Answer(self.reduced(rows), self.reduced(allowed)), size

    def grad_grad_z_loss(self) -> Answer:
        terms, z = self.terms, 2 * self.terms.z
        rows = self.share * z * np.where(self.r.keep > 0, self.r.lse, 0.0)[:, None] * self.mean
        error = terms.of_lse * self.mean_size + (terms.lse + terms.of_lse) * self.of_mean
        allowed = np.abs(self.share * z) * error
        return Answer(self.reduced(rows[:, 0]), self.reduced(allowed[:, 0]))

    def grad_logits(self) -> Answer:
        terms, z, cap = self.terms, 2 * abs(self.terms.z), self.terms.options["softcap"]
        scale = abs(terms.options["logit_scale"])
        settings = {**terms.options, "row_weight": terms.row_weight}
        direction = reference.from_rows(self.raw, terms.shape)
        value = reference.cross_entropy_hvp(
            direction, *terms.exact, **settings, grad_loss=terms.grad_loss
        )
        slope, away = terms.mass + z * terms.lse, self.size + self.mean_size
        size = terms.p * (slope * away + z * self.mean_size)
        error = slope * (terms.of_p * away + self.of_moved + self.of_mean)
        error = error + z * (terms.of_lse * away + terms.of_p * self.mean_size + self.of_mean)
        allowed = scale * (terms.p * error + terms.unit * size)
        if cap:
            steepest = STEEPEST * scale**2 / cap
            inner = terms.of_slope() / max(scale, 1e-300) + 3 * terms.unit * terms.inner()
            allowed = allowed + np.abs(self.raw) * steepest * inner
        return Answer(value, reference.from_rows(terms.upstream() * allowed, terms.shape))

    def answers(self) -> dict[str, Answer]:
        terms, r, form = self.terms, self.r, self.terms.options
        (by_loss, size), arrives = self.grad_grad_loss(), terms.upstream()
        answers = {
            "grad_grad_loss": by_loss,
            "grad_grad_z_loss": self.grad_grad_z_loss(),
            "grad_logits": self.grad_logits(),
        }
        if r.divisor != 0:
            allowed = terms.of_rows(self.of_mean[:, 0])
            answers["direction_mean"] = Answer(terms.of_rows(self.mean[:, 0]), allowed)
        upstream = reference._upstream(terms.grad_loss, r)[:, None]
        off = self.of_mean + self.of_moved + terms.unit * (self.size + self.mean_size)
        keep = 1.0 - form["label_smoothing"]
        if r.hard is None:
            value = upstream * keep * r.w * (self.mean - self.moved)
            made = (value, arrives * np.abs(r.w) * off)
            answers["grad_target"] = Answer(*(reference.from_rows(p, terms.shape) for p in made))
        value = (upstream * r.q * (self.mean - self.moved)).sum(0)
        allowed = (arrives * np.abs(r.q) * off).sum(0)
        if r.hard is not None and form["reduction"] == "mean" and r.divisor != 0:
            hits = np.bincount(r.hard, r.row_weight, len(r.w)) / r.divisor
            value = value - terms.grad_loss * by_loss.value * hits
            hits = np.bincount(r.hard, np.abs(r.row_weight), len(r.w)) / abs(r.divisor)
            of_whole = by_loss.allowed + terms.unit * size.sum()
            allowed = allowed + np.abs(terms.grad_loss) * of_whole * hits
        answers["grad_weight"] = Answer(value, allowed)
        return answers


def second_answers(drawn: LogitsLoss, direction: np.ndarray) -> dict[str, Answer]:
    with np.errstate(all="ignore"):
        return SecondTerms(terms_of(drawn), to64(direction)).answers()
