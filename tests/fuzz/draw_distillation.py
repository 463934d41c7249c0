"""Divergences between a student's and a teacher's distributions drawn at random: what those of every kind share, and
those of two models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.fuzz.draw import DTYPES, Array, Random, draw_softmax, fill_rows, replaced, taken
from tests.fuzz.draw_linear import (
    HiddenForm,
    HiddenLoss,
    bias_given,
    draw_chunk_bytes,
    draw_layer,
    draw_layer_form,
    draw_sizes,
)
from tests.kernel.library import cast, to_float64

# A bias is a multiple of this below that, and so is what is left of it after an offset, in any dtype.
_GRID, _MOST = 1 / 8, 8.0
OFFSET = 8.0


@dataclass(frozen=True, kw_only=True)
class DivergenceForm(HiddenForm):
    """Of a divergence; the student is the layer. `absent` names the models of which some classes have no
    probability."""

    teacher: str  # the dtype of its tensors
    absent: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DivergenceLoss(HiddenLoss):
    """A divergence."""

    @property
    def biases(self) -> dict[str, str]:
        """Those that there are, with their dtypes."""
        return {} if self.linear_bias is None else {"linear_bias": self.form.parameters}

    def with_offset(self, name: str, offset: float) -> Any:
        """With all logits of a model moved by its bias."""
        moved = to_float64(getattr(self, name)) + offset
        return replace(self, **{name: cast(moved, self.biases[name])})


@dataclass(frozen=True, kw_only=True)
class DistillationForm(DivergenceForm):
    """Of two models."""

    teacher_features: int
    teacher_bias: bool


@dataclass(frozen=True, kw_only=True)
class DistillationLoss(DivergenceLoss):
    """Of two models."""

    teacher_hidden: Array
    teacher_weight: Array
    teacher_bias: Array | None

    @property
    def exact_teacher(self) -> tuple[Array, Array, Array | None]:
        """As exact_layer."""
        bias = None if self.teacher_bias is None else to_float64(self.teacher_bias)
        return to_float64(self.teacher_hidden), to_float64(self.teacher_weight), bias

    @property
    def biases(self) -> dict[str, str]:
        teacher = {} if self.teacher_bias is None else {"teacher_bias": self.form.teacher}
        return super().biases | teacher

    def given(self) -> dict[str, Array]:
        return {
            "teacher_hidden": self.teacher_hidden,
            "teacher_weight": self.teacher_weight,
            "teacher_bias": bias_given(self.teacher_bias, self.form.teacher),
            **super().given(),
        }

    def of_rows(self, rows: Array) -> DistillationLoss:
        return replace(super().of_rows(rows), teacher_hidden=taken(self.teacher_hidden, rows))

    def of_classes(self, order: Array) -> DistillationLoss:
        names = ("linear_weight", "linear_bias", "teacher_weight", "teacher_bias")
        return replace(self, **{name: taken(getattr(self, name), order) for name in names})

    def with_spoiled(self, value: float) -> DistillationLoss:
        spoiled = np.expand_dims(~self.counting, -1)
        teacher = replaced(self.teacher_hidden, spoiled, cast([value], self.form.teacher))
        return replace(super().with_spoiled(value), teacher_hidden=teacher)

    def __str__(self) -> str:
        form = self.form
        teacher = f"{form.teacher_features} features, {form.teacher}, bias {form.teacher_bias}"
        return f"{super().__str__()}, teacher of {teacher}, absent {form.absent}"


def draw_divergence(random: Random, dtype: str) -> dict[str, Any]:
    """The fields of a form of any kind beside a student of that dtype, but for `absent`."""
    return {
        "row_weight": bool(random.random() < 0.4),
        "options": {
            "reduction": str(random.choice(("none", "sum"))),
            "beta": float(random.choice((0.0, 1.0, 0.5, random.random(), 1e-3))),
            **draw_softmax(random),
        },
        "teacher": str(random.choice((dtype, *DTYPES))),
    }


def may_be_absent(random: Random, options: dict[str, Any]) -> bool:
    """Whether classes may have logits of -inf, which another sign would make +inf."""
    return options["logit_scale"] > 0 and bool(random.random() < 0.3)


def draw_distillation_form(random: Random, mixed: bool = False) -> DistillationForm:
    layer = draw_layer_form(random, mixed)
    given = draw_divergence(random, str(layer["dtype"]))
    models = ("student", "teacher")
    teacher_bias, features = bool(random.random() < 0.5), draw_sizes(random)[1]
    biased = [name for name, has in zip(models, (layer["bias"], teacher_bias), strict=True) if has]
    absent = may_be_absent(random, given["options"])
    return DistillationForm(
        **layer,
        **given,
        teacher_features=features,
        teacher_bias=teacher_bias,
        absent=tuple(name for name in biased if absent and random.random() < 0.7),
    )


def fill_distillation(random: Random, form: DistillationForm) -> DistillationLoss:
    """Values for a form; a class without probability for one model has it for the other, or has it for neither."""
    student = fill_student(random, form)
    teacher = draw_layer(random, form, form.teacher_features, (form.teacher, form.teacher))
    return DistillationLoss(
        **student,
        teacher_hidden=teacher[0],
        teacher_weight=teacher[1],
        teacher_bias=_bias(random, form, "teacher", form.teacher) if form.teacher_bias else None,
        **fill_rows(random, form),
    )


def fill_student(random: Random, form: DivergenceForm) -> dict[str, Any]:
    """Values of the fields that are not the teacher's and not of every loss."""
    hidden, weight = draw_layer(random, form, form.features, (form.dtype, form.parameters))
    return {
        "form": form,
        "hidden": hidden,
        "linear_weight": weight,
        "linear_bias": _bias(random, form, "student", form.parameters) if form.bias else None,
        "chunk_bytes": draw_chunk_bytes(random, form),
    }


def _bias(random: Random, form: DivergenceForm, model: str, dtype: str) -> Array:
    values = np.clip(np.round(3 * random.normal(size=form.classes) / _GRID) * _GRID, -_MOST, _MOST)
    if model in form.absent:
        values = np.where(random.random(form.classes) < 0.3, -np.inf, values)
    return cast(values, dtype)
