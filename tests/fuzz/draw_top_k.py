"""Divergences drawn at random between a student and what is stored of a teacher: log-probabilities of k classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tests.fuzz.draw import Array, Random, fill_rows, replaced, taken
from tests.fuzz.draw_distillation import (
    DivergenceForm,
    DivergenceLoss,
    draw_divergence,
    fill_student,
    may_be_absent,
)
from tests.fuzz.draw_linear import draw_layer_form
from tests.kernel.library import cast, dtype_name, to_float64

_INDICES = ("int32", "int64")
_TOPS = (1, 1, 2, 5, 17, 64)
# Rows times k times classes: the reference holds that many numbers, a row at a time.
_MOST_OUTCOMES = 8_000_000
# Of log-probabilities: products with them fit the type computed in.
_FURTHEST = {"float16": -6e4, "bfloat16": -1e25, "float32": -1e25, "float64": -1e25}


@dataclass(frozen=True, kw_only=True)
class TopKForm(DivergenceForm):
    """Of a divergence from stored log-probabilities, whose dtype is `teacher`. `invalid`: some may be nan, and some
    classes none or there twice."""

    top: int
    tail: bool
    indices: str
    invalid: bool


@dataclass(frozen=True, kw_only=True)
class TopKLoss(DivergenceLoss):
    """A divergence from stored log-probabilities."""

    teacher_log_probs: Array
    teacher_indices: Array

    @property
    def invalid(self) -> Array:
        """Which classes are none, or are there before."""
        given = np.asarray(self.teacher_indices)
        order = np.argsort(given, -1, kind="stable")
        ordered = np.take_along_axis(given, order, -1)
        twice = np.zeros(given.shape, bool)
        before = ordered[..., 1:] == ordered[..., :-1]
        np.put_along_axis(twice, order[..., 1:], before, -1)
        return twice | (given < 0) | (given >= self.form.classes)

    def given(self) -> dict[str, Array]:
        return {
            "teacher_log_probs": self.teacher_log_probs,
            "teacher_indices": self.teacher_indices,
            "tail": np.array(float(self.form.tail)),
            **super().given(),
        }

    def of_rows(self, rows: Array) -> TopKLoss:
        stored = ("teacher_log_probs", "teacher_indices")
        given = {name: taken(getattr(self, name), rows) for name in stored}
        return replace(super().of_rows(rows), **given)

    def of_classes(self, order: Array) -> TopKLoss:
        given = self.teacher_indices
        known = (given >= 0) & (given < self.form.classes)
        new = np.where(known, np.argsort(order)[np.where(known, given, 0)], given)
        layer = {
            name: taken(getattr(self, name), order) for name in ("linear_weight", "linear_bias")
        }
        return replace(self, **layer, teacher_indices=new.astype(given.dtype))

    def with_spoiled(self, value: float) -> TopKLoss:
        spoiled = np.expand_dims(~self.counting_places, -1)
        log_probs = replaced(self.teacher_log_probs, spoiled, cast([value], self.form.teacher))
        indices = replaced(self.teacher_indices, spoiled, -5)
        given = {"teacher_log_probs": log_probs, "teacher_indices": indices}
        return replace(super().with_spoiled(value), **given)

    def stored_otherwise(self, random: Random) -> TopKLoss:
        """The k in another order and in the widest dtypes."""
        order = np.broadcast_to(np.arange(self.form.top), self.teacher_indices.shape)
        order = random.permuted(order, axis=-1)
        log_probs = np.take_along_axis(to_float64(self.teacher_log_probs), order, -1)
        indices = np.take_along_axis(self.teacher_indices, order, -1).astype(np.int64)
        form = replace(self.form, teacher="float64", indices="int64")
        return replace(self, form=form, teacher_log_probs=log_probs, teacher_indices=indices)

    def __str__(self) -> str:
        form = self.form
        stored = (
            f"{form.top} in {dtype_name(self.teacher_log_probs)}, {form.indices}, tail {form.tail}"
        )
        return f"{super().__str__()}, stored {stored}, absent {form.absent}"


def draw_top_k_form(random: Random, mixed: bool = False, may_be_invalid: bool = True) -> TopKForm:
    """Where rows are invalid no class is absent, and their results are nan throughout."""
    layer = draw_layer_form(random, mixed)
    given, classes = draw_divergence(random, str(layer["dtype"])), int(layer["classes"])
    rows = max(int(np.prod(layer["rows"])), 1)
    top = int(random.choice((*_TOPS, classes, random.integers(1, classes + 1))))
    models = ("student", "teacher") if layer["bias"] else ("teacher",)
    absent = ()
    if may_be_absent(random, given["options"]):
        absent = tuple(name for name in models if random.random() < 0.7)
    invalid = may_be_invalid and bool(random.random() < 0.1)
    return TopKForm(
        **layer,
        **given,
        top=min(top, classes, max(_MOST_OUTCOMES // (rows * classes), 1)),
        tail=bool(random.random() < 0.65),
        indices=str(random.choice(_INDICES)),
        invalid=invalid,
        absent=() if invalid else absent,
    )


def fill_top_k(random: Random, form: TopKForm) -> TopKLoss:
    """Values for a form."""
    log_probs, indices = _stored(random, form)
    return TopKLoss(
        **fill_student(random, form),
        teacher_log_probs=cast(log_probs, form.teacher),
        teacher_indices=indices.astype(form.indices),
        **fill_rows(random, form),
    )


def _stored(random: Random, form: TopKForm) -> tuple[Array, Array]:
    """The likeliest classes of a softmax, or any; and what storing them, or whoever did it, may have made of them."""
    logits = random.normal(size=(*form.rows, form.classes)) * 10.0 ** random.uniform(-1, 1.2)
    if "teacher" in form.absent:
        logits = np.where(random.random(logits.shape) < 0.3, -np.inf, logits)
    with np.errstate(invalid="ignore"):
        log_probs = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    log_probs = np.nan_to_num(log_probs, nan=-np.inf, neginf=-np.inf)  # of a row without any class
    likeliest = random.random() < 0.7
    indices = np.argsort(
        -log_probs if likeliest else random.random(logits.shape), -1, kind="stable"
    )
    indices = indices[..., : form.top]
    if random.random() < 0.5:
        indices = random.permuted(indices, axis=-1)
    stored = np.take_along_axis(log_probs, indices, -1)
    some, kind = random.random(stored.shape) < random.choice((0.05, 0.4)), random.integers(10)
    if kind == 0:  # the k are all there are, but for rounding
        with np.errstate(invalid="ignore"):
            stored = stored - np.logaddexp.reduce(stored, -1, keepdims=True)
        stored = np.nan_to_num(stored, nan=-np.inf, neginf=-np.inf)
    elif kind == 1:  # and more than that
        stored = np.where(some, -(2.0**-12), stored) + random.choice((2.0**-20, 2.0**-8))
    elif kind == 2:  # places that stand empty
        stored = np.where(some, -np.inf, stored)
    elif kind == 3:
        stored = np.where(some, random.choice((-90.0, -750.0, _FURTHEST[form.teacher])), stored)
    elif kind == 4:  # a teacher that is sure
        stored = np.where(np.arange(form.top) == 0, 0.0, random.choice((-np.inf, -1e3)))
        stored = np.broadcast_to(stored, indices.shape)
    if form.invalid:
        stored, indices = _invalid(random, form, stored, indices, some)
    return stored, indices


def _invalid(
    random: Random, form: TopKForm, stored: Array, indices: Array, some: Array
) -> tuple[Array, Array]:
    kind = random.integers(3)
    if kind == 0:
        return np.where(some, np.nan, stored), indices
    if kind == 1:
        outside = random.choice((-1, form.classes, 2**31 - 1, -(2**31)))
        return stored, np.where(some, outside, indices)
    return stored, np.where(some, indices[..., :1], indices)
