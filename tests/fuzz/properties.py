"""What must hold between results, whatever they are.

The same bits where nothing that counts has changed: threads, the floating-point environment, where tensors lie, what
ignored rows hold, chunks, the order of the rows, a row alone, how a teacher's classes are stored. Within the bounds of
rounding where a sum runs in another order or over other numbers: a common offset of the logits, an order of the
classes, a factor of the weights. The bounds are those of tests/fuzz/bounds.py, by the sizes of the terms; the
reference's values are not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.fuzz.bounds import Answer, rounding, to64
from tests.fuzz.calls import Kernel, Made, bits_of
from tests.fuzz.draw import Loss, taken
from tests.fuzz.draw_distillation import OFFSET, DivergenceLoss
from tests.fuzz.draw_linear import HiddenLoss, bytes_computed
from tests.fuzz.draw_logits import LogitsLoss
from tests.fuzz.draw_top_k import TopKLoss
from tests.fuzz.families import Family
from tests.kernel.float_environment import ENVIRONMENTS, changed
from tests.kernel.library import cast, dtype_name, to_float64
from tests.support.cases import round_to

Found = dict[str, Made]
Answers = dict[str, Answer]
Move = Callable[[np.ndarray, Made], np.ndarray]

# Outputs of which each row is made by itself; the loss is where it has rows, the target where it has probabilities.
_BY_ROW = {"rows", "logits", "input", "loss", "target", "partial"}
# Such that small multiples of 1/4 keep their places in every dtype.
_FACTORS = (0.5, 2.0, 3.0, 5.0)
_OF_LOGITS = ("logits", "target", "log_prob", "grad_loss", "grad_z_loss")
_NAMES = (*_OF_LOGITS, "input", "linear_weight", "linear_bias")
_GRADIENTS = [f"{own}grad_{name}" for name in _NAMES for own in ("", "own ")]
_PROPORTIONAL = ("loss", "z_loss", *_GRADIENTS)


class Case:
    """A drawn loss with its results and the reference's answers."""

    def __init__(self, family: Family, kernel: Kernel, drawn: Any, random: np.random.Generator):
        self.family, self.kernel, self.drawn, self.random = family, kernel, drawn, random
        self.found: Found = family.results(kernel, drawn)

    @functools.cached_property
    def answers(self) -> Answers:
        return self.family.answers(self.drawn)

    def results(self, drawn: Any) -> Found:
        return self.family.results(self.kernel, drawn)

    def of(self, drawn: Any) -> Case:
        return Case(self.family, self.kernel, drawn, self.random)


def same_bits(what: str, one: Found, other: Found) -> None:
    for name, made in one.items():
        assert bits_of(made.array) == bits_of(other[name].array), f"{what} changes {name}"


def rows_have_the_bits(what: str, one: Found, other: Found, move: Move) -> None:
    for name, made in one.items():
        if made.extent not in _BY_ROW or not made.array.ndim:
            continue
        moved = move(made.array, made)
        assert bits_of(moved) == bits_of(other[name].array), f"{what} changes {name}"


def near(
    what: str,
    case: Case,
    other: Found,
    move: Move = lambda values, _: values,
    factors: dict[str, float] | None = None,
    offset: np.ndarray | float = 0.0,
    answers: Answers | None = None,
) -> None:
    """`other` is the case's results moved, times the factor of its name, and lse moved on by `offset`. The case's
    answers bound its error, and moved the other's, where `answers` do not."""
    of_others = case.answers if answers is None else answers
    for name, made in case.found.items():
        if made.of not in case.answers or made.of not in of_others:
            continue
        if (
            made.extent == "partial"
        ):  # what follows from all blocks is compared, and rows of each by their bits
            continue
        factor, shape, kind = (
            (factors or {}).get(made.of, 1.0),
            made.array.shape,
            dtype_name(made.array),
        )
        allowed = factor * move(np.broadcast_to(case.answers[made.of].allowed, shape), made)
        of_other = allowed if answers is None else np.broadcast_to(answers[made.of].allowed, shape)
        expected = factor * move(to64(made.array), made) + (offset if made.of == "lse" else 0.0)
        actual = to64(other[name].array)
        with np.errstate(all="ignore"):
            places = (factor + 1) * rounding(expected, kind, case.drawn.form.dtype)
            bound = allowed + of_other + places
            if kind.startswith("int"):  # each anywhere between the ends of its own
                bound, there = 2 * bound, np.isfinite(expected)
            else:  # beside the dtype's largest number one may round to inf
                there = np.isfinite(np.asarray(round_to(2 * expected, kind), np.float64))
            right = np.where(
                there, np.abs(actual - expected) <= bound, np.isnan(actual) == np.isnan(expected)
            )
        if not np.all(right):
            worst = tuple(int(axis[0]) for axis in np.nonzero(~np.atleast_1d(right)))
            got, wanted, by = (np.atleast_1d(a)[worst] for a in (actual, expected, bound))
            raise AssertionError(
                f"{what}: {name} at {worst}: {got!r}, not {wanted!r} within {by!r}"
            )


def by_order(order: np.ndarray, axes: dict[str, int]) -> Move:
    """Results by their extent along the axis that an order changes."""

    def move(values: np.ndarray, made: Made) -> np.ndarray:
        if made.extent not in axes or not values.ndim:
            return values
        return taken(values, order, axes[made.extent])

    return move


def class_axes(drawn: Loss) -> dict[str, int]:
    axes = {"weight": 0, "linear_weight": 0, "linear_bias": 0}
    axis = -1
    if isinstance(drawn, LogitsLoss):
        axis = axes["logits"] = drawn.form.axis
    return axes | ({"target": axis} if drawn.form.probabilities else {})


def threads_environment_and_place(case: Case) -> None:
    library = case.kernel.library
    environment = ENVIRONMENTS[str(case.random.choice(list(ENVIRONMENTS)))]
    library.set_threads(int(case.random.choice((1, 2, 3, 8))))
    library.around = lambda: changed(environment)
    try:
        moved = replace(case.drawn, odd=int(case.random.integers(0, 9)))
        same_bits("threads, environment or place", case.found, case.results(moved))
    finally:
        library.set_threads(0)
        del library.around


def ignored_rows(case: Case) -> None:
    """They may hold anything."""
    if not np.all(case.drawn.counting):
        spoiled = case.drawn.with_spoiled(float(case.random.choice((np.nan, np.inf, -7.0))))
        same_bits("what an ignored row holds", case.found, case.results(spoiled))


def chunks(case: Case) -> None:
    """Rows of the linear loss have the same bits in any chunks; sums over them are near."""
    if not isinstance(case.drawn, HiddenLoss):
        return
    form = case.drawn.form
    chunk_bytes = int(case.random.integers(1, 9)) * bytes_computed(form) * form.classes
    other = case.results(replace(case.drawn, chunk_bytes=chunk_bytes))
    rows_have_the_bits("the size of chunks", case.found, other, lambda values, _: values)
    near("the size of chunks", case, other)


def order_of_rows(case: Case) -> None:
    """Each row has its bits in any order of the first axis and alone, sums over rows are near."""
    drawn, rows = case.drawn, case.drawn.form.rows
    if not rows or not rows[0] or (len(rows) == 1 and getattr(drawn.form, "shift", False)):
        return
    order = case.random.permutation(rows[0])
    move, other = by_order(order, dict.fromkeys(_BY_ROW, 0)), case.results(drawn.of_rows(order))
    rows_have_the_bits("the order of rows", case.found, other, move)
    near("the order of rows", case, other, move)
    if drawn.per_row:
        alone = order[:1]
        other = case.results(drawn.of_rows(alone))
        move = by_order(alone, dict.fromkeys(_BY_ROW, 0))
        rows_have_the_bits("what stands beside a row", case.found, other, move)


def order_of_classes(case: Case) -> None:
    """One class may be the ignored one and keeps its place."""
    drawn, order = case.drawn, np.arange(case.drawn.form.classes)
    free = order[order != drawn.kept_class]
    order[free] = case.random.permutation(free)
    other, axes = case.results(drawn.of_classes(order)), class_axes(drawn)
    found = case.found
    case.found = {name: made for name, made in found.items() if made.of != "predicted"}
    near("the order of classes", case, other, by_order(order, axes))
    case.found = found
    new_places = np.append(np.argsort(order), -1)  # of a class, and of none
    for name, made in found.items():
        if made.of == "predicted":
            unsure = np.broadcast_to(case.answers[made.of].allowed, made.array.shape) > 0
            moved = (new_places[made.array] == other[name].array) | unsure
            assert np.all(moved), f"the order of classes: {name} is another class"


def factor_of_row_weight(case: Case) -> None:
    """A mean does not change, since its divisor has the same factor; a sum is multiplied."""
    if case.drawn.row_weight is None:
        return
    factor = float(case.random.choice(_FACTORS))
    factors = {"total_weight": factor, "row_losses": factor}
    if case.drawn.options["reduction"] != "mean":
        factors |= {**dict.fromkeys(_PROPORTIONAL, factor), "grad_weight": factor}
    other = case.results(replace(case.drawn, row_weight=case.drawn.row_weight * factor))
    near("a factor of row_weight", case, other, factors=factors)


def factor_of_weight(case: Case) -> None:
    """As of row_weight; that of probabilities is not in a mean's divisor. Without z-loss, which has no class weight."""
    if case.drawn.weight is None:
        return
    if case.drawn.options["z_loss"]:
        case = case.of(case.drawn.with_options(z_loss=0.0))
    factor, drawn = float(case.random.choice(_FACTORS)), case.drawn
    factors = dict.fromkeys(_PROPORTIONAL, factor)
    if not drawn.form.probabilities:
        divided = drawn.options["reduction"] == "mean"
        factors = {"grad_weight": 1 / factor} if divided else factors
        factors["total_weight"] = factor
    factors["row_losses"] = factor
    weight = cast(to_float64(drawn.weight) * factor, dtype_name(drawn.weight))
    near("a factor of weight", case, case.results(replace(drawn, weight=weight)), factors=factors)


def common_offset(case: Case) -> None:
    """Of all logits. They are put on a grid on which an offset of a power of two is exact."""
    if not case.family.of_softmax or not isinstance(case.drawn, LogitsLoss):
        return
    drawn, values = case.drawn.with_options(z_loss=0.0, softcap=0.0), to_float64(case.drawn.logits)
    largest = np.abs(values[np.isfinite(values)]).max(initial=1.0)
    if largest > 1000:
        return
    power = np.ceil(np.log2(largest)) + case.random.integers(1, 3)
    offset = float(case.random.choice((-1, 1))) * 2.0**power
    moved = cast(values + offset, drawn.form.dtype)
    back = to_float64(moved) - offset
    one = case.of(replace(drawn, logits=cast(back, drawn.form.dtype)))
    assert np.array_equal(to_float64(one.drawn.logits), back, equal_nan=True), "no grid"
    other = case.of(replace(drawn, logits=moved))
    near(
        "a common offset",
        one,
        other.found,
        offset=np.where(drawn.counting, offset * drawn.options["logit_scale"], 0.0),
        answers=other.answers,
    )


def offset_by_bias(case: Case) -> None:
    """Of all logits of a model: its distribution does not change."""
    drawn = case.drawn
    if not isinstance(drawn, DivergenceLoss) or drawn.options["softcap"]:
        return
    for name in drawn.biases:
        other = case.of(drawn.with_offset(name, float(case.random.choice((-1, 1))) * OFFSET))
        near(f"an offset by {name}", case, other.found, answers=other.answers)


def way_of_storing(case: Case) -> None:
    """The k of a row may lie in any order and in any dtype that holds them."""
    if isinstance(case.drawn, TopKLoss):
        other = case.results(case.drawn.stored_otherwise(case.random))
        same_bits("how a teacher is stored", case.found, other)


def gradients_cancel(case: Case) -> None:
    """A common offset of a row's logits changes no loss: its gradients add up to 0."""
    if case.drawn.options.get("z_loss") or case.drawn.options["softcap"]:
        return
    axes = {"grad_logits": class_axes(case.drawn).get("logits"), "grad_linear_bias": 0}
    for name, made in case.found.items():
        axis = axes.get(made.of)
        if axis is None or not made.array.ndim or made.of not in case.answers:
            continue
        answer, grad = case.answers[made.of], to64(made.array)
        with np.errstate(all="ignore"):
            allowed = answer.allowed + rounding(grad, dtype_name(made.array), case.drawn.form.dtype)
            left, most = np.abs(grad.sum(axis)), allowed.sum(axis)
            wrong = np.isfinite(left) & (left > most)  # a gradient may be beyond the dtype
        assert not np.any(wrong), f"{name} adds up to {left[wrong]}"


PROPERTIES = (
    threads_environment_and_place,
    ignored_rows,
    chunks,
    order_of_rows,
    order_of_classes,
    factor_of_row_weight,
    factor_of_weight,
    common_offset,
    offset_by_bias,
    way_of_storing,
    gradients_cancel,
)


def few_of_streamed(case: Case) -> Case:
    """Some rows of a loss whose gradients go past the cache have the bits that they have alone, where the gradients
    stay in it; of these everything else is asked."""
    rows = case.drawn.form.rows[0]
    few = case.random.choice(rows, min(rows, 2), replace=False)
    alone = case.of(case.drawn.of_rows(few))
    move = by_order(few, dict.fromkeys(_BY_ROW, 0))
    rows_have_the_bits("a gradient past the cache", case.found, alone.found, move)
    return alone
