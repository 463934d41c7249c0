"""Which public function is called, on what tensors, with which options, and what it must return."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

import ms_ce
from tests.fuzz.bounds import Answer, loss_answers, nll_answers, to64, token_answers
from tests.fuzz.bounds_distillation import distillation_answers
from tests.fuzz.bounds_linear import linear_answers, linear_token_answers
from tests.fuzz.bounds_top_k import top_k_answers
from tests.fuzz.draw import Array, Loss, Random
from tests.fuzz.draw_distillation import (
    DistillationForm,
    DivergenceForm,
    draw_distillation_form,
    fill_distillation,
)
from tests.fuzz.draw_linear import HiddenForm, bytes_computed, draw_linear_form, fill_linear
from tests.fuzz.draw_logits import draw_form, fill_within
from tests.fuzz.draw_top_k import TopKForm, draw_top_k_form, fill_top_k
from tests.fuzz.families import arriving, of_tokens, plain

_FROZEN = ("input", "linear_weight", "linear_bias")
_LAYER = {
    "input": "hidden",
    "linear_weight": "linear_weight",
    "target": "target",
    "linear_bias": "linear_bias",
}


class _Function(NamedTuple):
    """A public function: how often it is drawn, its tensors in order with where a drawn loss has each, and more."""

    share: float
    tensors: dict[str, str]
    draw: Callable[[Random], Any]
    answers: Callable[..., dict[str, Answer]]
    # Where gradients have other names than their tensors.
    gradients: dict[str, str] = {}


def _of_distillation(random: Random) -> DistillationForm:
    """A teacher's bias comes after the student's."""
    form = draw_distillation_form(random, mixed=True)
    if not form.bias:
        form = replace(form, teacher_bias=False, absent=())
    return _reduced(random, form)


def _of_top_k(random: Random) -> TopKForm:
    """PyNative refuses a class that is none, or there twice."""
    return _reduced(random, draw_top_k_form(random, mixed=True, may_be_invalid=False))


def _reduced(random: Random, form: Any) -> Any:
    """The reduction to a mean is the functions' own, and shift is no option of theirs."""
    reduction = str(random.choice(("none", "mean", "mean", "sum")))
    return replace(form, shift=False).with_options(reduction=reduction)


_OF_STUDENT = {
    "grad_input": "student_hidden",
    "grad_linear_weight": "student_weight",
    "grad_linear_bias": "student_bias",
}
_FUNCTIONS = {
    "cross_entropy": _Function(
        0.28, {"logits": "logits", "target": "target"}, draw_form, loss_answers
    ),
    "nll_loss": _Function(
        0.1,
        {"logits": "logits", "target": "target"},
        lambda random: plain(draw_form(random, classes_only=True)),
        nll_answers,
        {"grad_log_prob": "logits"},
    ),
    "token_log_probs": _Function(
        0.1,
        {"logits": "logits", "target": "target"},
        lambda random: of_tokens(random, draw_form(random, classes_only=True)),
        lambda drawn, **more: token_answers(drawn, arriving(drawn), **more),
    ),
    "linear_cross_entropy": _Function(
        0.22, _LAYER, lambda random: draw_linear_form(random, mixed=True), linear_answers
    ),
    "linear_token_log_probs": _Function(
        0.1,
        _LAYER,
        lambda random: of_tokens(random, draw_linear_form(random, classes_only=True)),
        lambda drawn, **more: linear_token_answers(drawn, arriving(drawn), **more),
    ),
    "linear_distillation_loss": _Function(
        0.1,
        {
            "student_hidden": "hidden",
            "student_weight": "linear_weight",
            "teacher_hidden": "teacher_hidden",
            "teacher_weight": "teacher_weight",
            "student_bias": "linear_bias",
            "teacher_bias": "teacher_bias",
        },
        _of_distillation,
        distillation_answers,
        _OF_STUDENT,
    ),
    "linear_top_k_distillation_loss": _Function(
        0.1,
        {
            "student_hidden": "hidden",
            "student_weight": "linear_weight",
            "teacher_log_probs": "teacher_log_probs",
            "teacher_indices": "teacher_indices",
            "student_bias": "linear_bias",
        },
        _of_top_k,
        top_k_answers,
        _OF_STUDENT,
    ),
}


class Plan(NamedTuple):
    """A function as it will be called: all but the values of its tensors."""

    name: str
    form: Any
    options: dict[str, Any]  # the function's own, by keyword

    @property
    def factor(self) -> float:
        """Of the losses."""
        return self.options["temperature"] ** 2 if self.options.get("temperature_squared") else 1.0

    @property
    def of_tokens(self) -> bool:
        return self.name.endswith("token_log_probs")

    @property
    def of_layers(self) -> bool:
        return isinstance(self.form, HiddenForm)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the results."""
        names = ("log_prob", "entropy") if self.of_tokens else ("loss",)
        return names[: 1 + bool(self.options.get("entropy"))]

    @property
    def output_dtype(self) -> str:
        dtype = self.form.dtype
        return "float32" if self.of_tokens and dtype != "float64" else dtype

    def tensors(self, drawn: Loss) -> dict[str, Array]:
        """By name, in the order of the call."""
        given = {name: getattr(drawn, at) for name, at in _FUNCTIONS[self.name].tensors.items()}
        if self.of_tokens and not self.of_layers and drawn.logits.ndim > 1:
            moved = np.moveaxis(np.asarray(drawn.logits), 1, -1)
            given["logits"] = np.ascontiguousarray(moved).view(type(drawn.logits))
        given["weight"], given["row_weight"] = drawn.weight, drawn.row_weight
        if drawn.row_weight is not None:
            given["row_weight"] = drawn.row_weight.astype(np.float32)
        return {name: value for name, value in given.items() if value is not None}

    def is_differentiated(self, name: str) -> bool:
        constant = self.is_constant(name) and not name.startswith("teacher")
        return not constant and name != "teacher_indices"

    def is_constant(self, name: str) -> bool:
        """Whether the gradient of a tensor is 0 by definition."""
        classes = name == "target" and not self.form.probabilities
        return classes or name == "row_weight" or name.startswith("teacher")

    def function(self, names: list[str]) -> Callable[..., tuple[Any, ...]]:
        """Of the tensors in order; the results are a tuple."""
        function, options, count = getattr(ms_ce, self.name), self.options, len(names)
        first = count - ("weight" in names) - ("row_weight" in names)

        def without_weights(*given):
            return (function(*given[:first], **options),)

        def with_weight(*given):
            return (function(*given[:first], weight=given[first], **options),)

        def with_row_weight(*given):
            return (function(*given[:first], row_weight=given[first], **options),)

        def with_both(*given):
            weight, row_weight = given[first], given[first + 1]
            return (function(*given[:first], weight=weight, row_weight=row_weight, **options),)

        def with_entropy(*given):
            return function(*given[:first], **options)

        if options.get("entropy"):
            return with_entropy
        if count == first:
            return without_weights
        if count == first + 2:
            return with_both
        return with_weight if "weight" in names else with_row_weight

    def upstreams(self, drawn: Loss) -> tuple[Array, ...]:
        """What arrives at each result; of the linear loss under shift a sequence's first row has none."""
        upstreams = (to64(drawn.upstream),)
        if self.of_tokens:
            made = arriving(drawn)
            upstreams = (-made["grad_rows"], made["grad_entropy"])[: len(self.outputs)]
        if self.options.get("shift"):
            upstreams = tuple(each[..., 1:] if each.ndim else each for each in upstreams)
        return upstreams

    def values(self, random: Random) -> Loss:
        """A loss of this form, of logits that `composed` computes with too."""
        if isinstance(self.form, DistillationForm):
            return fill_distillation(random, self.form)
        if isinstance(self.form, TopKForm):
            return fill_top_k(random, self.form)
        if self.of_layers:
            return fill_linear(random, self.form)
        return fill_within(random, self.form, 1e4)

    def answers(self, drawn: Loss) -> dict[str, Answer]:
        """By the names of results and tensors."""
        composed, dtype = self.options["backend"] == "composed", self.form.dtype
        asked, divisor = drawn, self._divisor(drawn)
        more: dict[str, Any] = {}
        if composed:
            # MindSpore's exp is good to 8.2e-6, and 0 below normal numbers, as products are; it adds one by one.
            more["coarse"] = 8 + (np.prod(self.form.rows) + self.form.classes) / 40
            more["least_p"] = np.finfo(np.float64 if dtype == "float64" else np.float32).tiny
            if self.name == "nll_loss":  # whose rows are divided before they are added
                more["least_p"] *= max(divisor or 1.0, 1.0)
        if self.of_layers:
            more["composed"] = composed
        if divisor is not None:
            asked = replace(
                drawn.with_options(reduction="sum"),
                upstream=to64(drawn.upstream) * (self.factor / divisor if divisor else 0.0),
            )
        elif self.factor != 1.0:
            asked = replace(drawn, upstream=to64(drawn.upstream) * self.factor)
        made = _FUNCTIONS[self.name].answers(asked, **more)
        return self._named(made, 1.0 if divisor is None else divisor)

    def _divisor(self, drawn: Loss) -> float | None:
        """Of a mean, where the answers are those of a sum."""
        if "total_weight" in self.options:
            return self.options["total_weight"]
        if not isinstance(self.form, DivergenceForm) or drawn.options["reduction"] != "mean":
            return None
        given = drawn.row_weight
        return float(np.prod(self.form.rows) if given is None else given.sum())

    def _named(self, made: dict[str, Answer], divisor: float) -> dict[str, Answer]:
        if "loss" in made and (divisor != 1.0 or self.factor != 1.0):
            value, allowed = made["loss"]
            if divisor == 0 and np.abs(value) <= allowed:
                del made["loss"]  # 0 / 0, but for rounding
            else:
                with np.errstate(all="ignore"):
                    loss = self.factor * np.asarray(value) / np.float64(divisor)
                    allowed = self.factor * np.asarray(allowed) / abs(divisor or 1.0)
                made["loss"] = Answer(loss, allowed)
        renamed = _FUNCTIONS[self.name].gradients
        answers = {
            renamed.get(name, name.removeprefix("grad_")): each for name, each in made.items()
        }
        if self.of_tokens and not self.of_layers and len(self.form.shape) > 1:
            answers["logits"] = Answer(*(np.moveaxis(part, 1, -1) for part in answers["logits"]))
        if self.options.get("shift"):
            for name in ("loss", "log_prob", "entropy"):
                if name in answers and np.ndim(answers[name].value):
                    answers[name] = Answer(*(part[..., 1:] for part in answers[name]))
        for name in self.options.get("frozen", ()):
            answers[name] = Answer(np.zeros_like(answers[name].value), 0.0)
        return answers

    def __str__(self) -> str:
        return f"{self.name}, {self.options}"


def _draw_form(random: Random, name: str) -> Any:
    """With rows, under shift some that have a target."""
    while True:
        form = _FUNCTIONS[name].draw(random)
        paired = form.rows[-1] - 1 if getattr(form, "shift", False) else 1
        if paired and np.prod(form.rows):
            return form


def draw_plan(random: Random, compiled: bool) -> Plan:
    name = str(random.choice(list(_FUNCTIONS), p=[each.share for each in _FUNCTIONS.values()]))
    form = _draw_form(random, name)
    # Its tanh is coarse; its linear loss is hundreds of operators, in a graph minutes.
    rarely = 0.03 * (not compiled) if isinstance(form, HiddenForm) else 0.15
    composed = random.random() < rarely and not form.options["softcap"]
    options: dict[str, Any] = {"backend": "composed" if composed else "cpu"}
    takes = inspect.signature(getattr(ms_ce, name)).parameters
    options |= {option: value for option, value in form.options.items() if option in takes}
    if "temperature" in takes:
        temperature = options["temperature"] = float(random.choice((0.5, 1.0, 2.0)))
        options["logit_scale"] *= temperature
        options["softcap"] *= temperature
    if options.get("reduction") == "mean" and random.random() < 0.15:
        options["total_weight"] = float(random.choice((0.25, 4.0, 16.0)))
    if isinstance(form, TopKForm):
        options["tail"] = form.tail
    if "temperature_squared" in takes:
        options["temperature_squared"] = bool(random.random() < 0.7)
    if "gradient_in_forward" in takes:
        options["gradient_in_forward"] = (True, False, "auto")[int(random.integers(3))]
    if "chunk_bytes" in takes:
        parts = int(random.integers(0, 5))  # chunks, or what the loss takes by itself
        rows = -(-int(np.prod(form.rows)) // parts) if parts else 0
        options["chunk_bytes"] = rows * bytes_computed(form) * form.classes or None
    if "frozen" in takes:
        possible = _FROZEN if form.bias else _FROZEN[:2]
        options["frozen"] = tuple(each for each in possible if random.random() < 0.15)
    if "shift" in takes:
        options["shift"] = form.shift
    if "entropy" in takes:
        options["entropy"] = form.options["has_entropy"]
    if "softcap" in takes:
        options["softcap"] = options["softcap"] or None
    return Plan(name, form, options)
