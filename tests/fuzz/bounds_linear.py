"""How far from the float64 reference the results of a linear loss may be.

A logit is a sum of H products and so off by H + 2 roundings of their sizes, in whatever order it is made; a matrix's
gradient likewise by its own sum, and by what the logits' gradient is off by.
"""

from __future__ import annotations

import numpy as np

from tests.fuzz.bounds import ROUNDING, Answer, Terms, TokenTerms, finite, to64
from tests.fuzz.draw_linear import HiddenLoss
from tests.kernel.library import Library
from tests.kernel.operations import reference

# Where a processor's products of bfloat16 are taken, the logits' gradient is rounded to it (docs/linear.md).
_NARROW = 2.0**-8
_LEAST = {"float32": 1e-37, "float64": 1e-300}


class Rows:
    """A layer's rows that are paired with a target: all, or under shift all but each sequence's last."""

    def __init__(
        self,
        layer: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        drawn: HiddenLoss,
        composed: bool = False,
        conversions: int = 0,
    ):
        """`layer` is hidden states, weight and bias. `composed` makes a row's loss as a difference, off by the logits'
        own size; `conversions` are roundings of a product's factors to the type computed in."""
        hidden, self.linear_weight, self.bias = layer
        self.shift, self.wide = drawn.form.shift, drawn.form.dtype == "float64"
        target = np.zeros(drawn.form.rows, int) if drawn.target is None else drawn.exact_target
        given = (hidden, self.linear_weight, target, self.bias, drawn.row_weight, self.shift)
        self.hidden, self.logits, self.target, self.row_weight, self.lead = reference._as_rows(
            *given
        )
        self.rounding = ROUNDING["float64" if self.wide else "float32"]
        self.least = _LEAST["float64" if self.wide else "float32"]
        features = self.linear_weight.shape[1]
        sizes = np.abs(self.hidden) @ np.abs(self.linear_weight).T
        sizes = sizes if self.bias is None else sizes + finite(self.bias)
        self.off = (features + 2 + conversions) * self.rounding * sizes + self.least
        if composed:
            largest = finite(self.logits).max(-1, initial=0.0, keepdims=True)
            self.off = self.off + 4 * self.rounding * largest

    def of_rows(self, values: np.ndarray) -> np.ndarray:
        """The rows that have a target, of an array of all rows."""
        values = to64(values)
        return (values[..., 1:] if self.shift and values.ndim else values).reshape(-1)

    def placed(self, answer: Answer, first: int = 0) -> Answer:
        """Results of rows where the kernel has them: at their targets, `first` in front."""
        value, allowed = (np.asarray(part) for part in answer)
        return Answer(self._front(value, first), self._front(allowed, 0))

    def _front(self, rows: np.ndarray, first: int) -> np.ndarray:
        if not rows.ndim:
            return rows
        rows = rows.reshape(self.lead)
        if not self.shift:
            return rows
        return np.concatenate([np.full((*self.lead[:-1], 1), first), rows], -1)

    def of_target(self, answer: Answer) -> Answer:
        """Of the probabilities' gradient."""
        return Answer(*(self._in_front(np.asarray(part)) for part in answer))

    def _in_front(self, rows: np.ndarray) -> np.ndarray:
        rows = rows.reshape(*self.lead, rows.shape[-1])
        if not self.shift:
            return rows
        return np.concatenate([np.zeros((*self.lead[:-1], 1, rows.shape[-1])), rows], -2)

    def _behind(self, rows: np.ndarray) -> np.ndarray:
        rows = rows.reshape(*self.lead, rows.shape[-1])
        if not self.shift:
            return rows
        return np.concatenate([rows, np.zeros((*self.lead[:-1], 1, rows.shape[-1]))], -2)

    def of_matrices(self, grad: Answer, narrow: bool) -> dict[str, Answer]:
        """The gradients of input, weight and bias, `grad` being that of the logits."""
        value, allowed = grad
        size = finite(value)
        bias = Answer(value.sum(0), (allowed + (len(size) + 2) * self.rounding * size).sum(0))
        allowed = allowed + self.least + (_NARROW * size if narrow else 0.0)
        table, hidden = np.abs(self.linear_weight), np.abs(self.hidden)
        of_rows = allowed + (size.shape[1] + 2) * self.rounding * size
        of_table = allowed + (len(size) + 2) * self.rounding * size
        return {
            "grad_input": Answer(
                self._behind(value @ self.linear_weight), self._behind(of_rows @ table)
            ),
            "grad_linear_weight": Answer(value.T @ self.hidden, of_table.T @ hidden),
            "grad_linear_bias": bias if self.bias is not None else Answer(np.zeros(()), 0.0),
        }


def is_narrow(drawn: HiddenLoss, composed: bool) -> bool:
    """Whether the products are the processor's of bfloat16, which MindSpore brings where it is loaded."""
    narrow = drawn.form.dtype == drawn.form.parameters == "bfloat16" and not composed
    return narrow and Library().handle.MsCeBfloat16Products() == b"oneDNN"


def linear_answers(drawn: HiddenLoss, composed: bool = False, **more) -> dict[str, Answer]:
    """Loss, statistics and gradients by name; "own" are those for an upstream of 1."""
    with np.errstate(all="ignore"):
        rows, narrow = Rows(drawn.exact_layer, drawn, composed), is_narrow(drawn, composed)
        upstream = rows.of_rows(drawn.upstream) if drawn.per_row else to64(drawn.upstream)
        exact = (rows.logits, rows.target, drawn.exact_weight)
        given = (exact, rows.row_weight, drawn.options, drawn.form.dtype, upstream, rows.off)
        answers = Terms(*given, **more).answers()
        for name in ("loss", "row_losses", "lse", "z_loss", "entropy"):
            if name in answers:
                answers[name] = rows.placed(answers[name])
        answers["predicted"] = rows.placed(answers["predicted"], -1)
        for own in ("", "own "):
            if f"{own}grad_target" in answers:
                answers[f"{own}grad_target"] = rows.of_target(answers[f"{own}grad_target"])
            if f"{own}grad_logits" in answers:
                made = rows.of_matrices(answers.pop(f"{own}grad_logits"), narrow)
                answers |= {own + name: answer for name, answer in made.items()}
    return answers


def linear_token_answers(
    drawn: HiddenLoss, grads: dict[str, np.ndarray], composed: bool = False, **more
) -> dict[str, Answer]:
    """`grads` are grad_rows and grad_entropy, of all rows."""
    with np.errstate(all="ignore"):
        rows, narrow = Rows(drawn.exact_layer, drawn, composed), is_narrow(drawn, composed)
        options = {n: v for n, v in drawn.options.items() if n != "has_entropy"}
        arriving = {name: rows.of_rows(values) for name, values in grads.items()}
        given = ((rows.logits, rows.target, None), None, options, drawn.form.dtype)
        terms = TokenTerms(*given, arriving["grad_rows"], rows.off, **more)
        if drawn.options["has_entropy"]:
            terms.grad_entropy = arriving["grad_entropy"]
        answers = terms.token_answers()
        made = rows.of_matrices(answers.pop("grad_logits"), narrow)
        placed = {name: rows.placed(answer) for name, answer in answers.items()}
    return placed | made
