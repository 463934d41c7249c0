"""Drawn losses through the public functions, in PyNative and compiled, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor

import ms_ce
from tests.fuzz.bounds import Answer, check, loss_answers, nll_answers, to64, token_answers
from tests.fuzz.bounds_linear import linear_answers, linear_token_answers
from tests.fuzz.draw import Drawn, Form, draw_form, fill
from tests.fuzz.draw_linear import LinearDrawn, LinearForm, draw_linear_form, fill_linear
from tests.fuzz.families import arriving, of_tokens, plain
from tests.kernel.library import Brain, dtype_name, to_float64

# How many draws of values a compiled graph gets, and how many PyNative differentiates at once.
VALUES_PER_GRAPH, AT_ONCE = 16, 8
SHARES = {
    "cross_entropy": 0.35,
    "nll_loss": 0.1,
    "token_log_probs": 0.15,
    "linear_cross_entropy": 0.3,
    "linear_token_log_probs": 0.1,
}
_LINEAR = ("linear_cross_entropy", "linear_token_log_probs")
_FROZEN = ("input", "linear_weight", "linear_bias")


class Plan(NamedTuple):
    """A function as it will be called: all but the values of its tensors."""

    name: str
    form: Form | LinearForm
    backend: str
    options: dict[str, Any]  # the function's own, by keyword
    frozen: tuple[str, ...]  # whose gradient is 0
    divisor: float | None  # total_weight

    @property
    def of_tokens(self) -> bool:
        return self.name.endswith("token_log_probs")

    def tensors(self, drawn: Drawn | LinearDrawn) -> dict[str, np.ndarray]:
        """By name, in the order of the call."""
        if self.name in _LINEAR:
            names = ("input", "linear_weight", "target", "linear_bias")
            values = (drawn.hidden, drawn.linear_weight, drawn.target, drawn.linear_bias)
        else:
            names, values = ("logits", "target"), (drawn.logits, drawn.target)
            if self.of_tokens and values[0].ndim > 1:
                moved = np.moveaxis(np.asarray(values[0]), 1, -1)
                values = (np.ascontiguousarray(moved).view(type(values[0])), values[1])
        given = dict(zip(names, values, strict=True))
        if not self.of_tokens:
            row_weight = drawn.row_weight
            given["weight"] = drawn.weight
            given["row_weight"] = None if row_weight is None else row_weight.astype(np.float32)
        return {name: value for name, value in given.items() if value is not None}

    def differentiated(self, names: list[str]) -> tuple[int, ...]:
        constant = {"row_weight", *(() if self.form.probabilities else ("target",))}
        return tuple(i for i, name in enumerate(names) if name not in constant)

    def function(self, names: list[str]) -> Callable[..., tuple[Tensor, ...]]:
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

    def upstreams(self, drawn: Drawn | LinearDrawn) -> tuple[np.ndarray, ...]:
        """What arrives at each result; of the linear loss under shift a sequence's first row has none."""
        upstreams = (to64(drawn.upstream),)
        if self.of_tokens:
            made = arriving(drawn)
            upstreams = (-made["grad_rows"], made["grad_entropy"])[
                : 1 + drawn.options["has_entropy"]
            ]
        if self.name in _LINEAR and self.form.shift:
            upstreams = tuple(each[..., 1:] if each.ndim else each for each in upstreams)
        return upstreams

    def answers(self, drawn: Drawn | LinearDrawn) -> dict[str, Answer]:
        """By the names of results and tensors."""
        composed, dtype = self.backend == "composed", self.form.dtype
        more: dict[str, Any] = {}
        if (
            composed
        ):  # MindSpore's exp is good to 8.2e-6, and 0 below normal numbers; it adds one by one
            more["coarse"] = 8 + (np.prod(self.form.rows) + self.form.classes) / 40
            more["least_p"] = np.finfo(np.float64 if dtype == "float64" else np.float32).tiny
        if self.name in _LINEAR:
            more["composed"] = composed
        asked = drawn
        if self.divisor is not None:
            asked = drawn.with_options(reduction="sum")
            asked = asked._replace(upstream=to64(drawn.upstream) / self.divisor)
        made = _ANSWERS[self.name](asked, **more)
        if self.divisor is not None and "loss" in made:
            made["loss"] = Answer(*(np.asarray(part) / self.divisor for part in made["loss"]))
        answers = {_NAMES.get(name, name): answer for name, answer in made.items()}
        if self.of_tokens and self.name not in _LINEAR and len(self.form.shape) > 1:
            answers["logits"] = Answer(*(np.moveaxis(part, 1, -1) for part in answers["logits"]))
        if self.name in _LINEAR and self.form.shift:
            for name in ("loss", "log_prob", "entropy"):
                if name in answers and np.ndim(answers[name].value):
                    answers[name] = Answer(*(part[..., 1:] for part in answers[name]))
        for name in self.frozen:
            answers[name] = Answer(np.zeros_like(answers[name].value), 0.0)
        return answers

    def __str__(self) -> str:
        return f"{self.name}, {self.options}"


_NAMES = {"grad_log_prob": "logits"} | {
    f"grad_{name}": name for name in ("logits", "target", "weight", *_FROZEN)
}
_ANSWERS: dict[str, Callable[..., dict[str, Answer]]] = {
    "cross_entropy": loss_answers,
    "nll_loss": lambda drawn, **_: nll_answers(drawn),
    "token_log_probs": lambda drawn, **more: token_answers(drawn, arriving(drawn), **more),
    "linear_cross_entropy": linear_answers,
    "linear_token_log_probs": lambda drawn, **more: linear_token_answers(
        drawn, arriving(drawn), **more
    ),
}


def _draw_form(random: np.random.Generator, name: str) -> Form | LinearForm:
    draw = draw_linear_form if name in _LINEAR else draw_form
    while True:
        if name == "linear_cross_entropy":
            form = draw_linear_form(random, mixed=True)
        elif name == "cross_entropy":
            form = draw_form(random)
        else:
            form = draw(random, classes_only=True)
        if name.endswith("token_log_probs"):
            form = of_tokens(random, form)
        if name == "nll_loss":
            form = plain(form)
        paired = form.rows[-1] - 1 if getattr(form, "shift", False) else 1
        if paired and np.prod(form.rows):
            return form


def draw_plan(random: np.random.Generator, name: str, compiled: bool) -> Plan:
    form = _draw_form(random, name)
    given = form.options
    # Its tanh is coarse; its linear loss is hundreds of operators, in a graph minutes.
    rarely = 0.03 * (not compiled) if name in _LINEAR else 0.15
    backend = "composed" if random.random() < rarely and not given["softcap"] else "cpu"
    options: dict[str, Any] = {"ignore_index": given["ignore_index"], "backend": backend}
    divisor, frozen = None, ()
    if name != "nll_loss":
        options |= {"softcap": given["softcap"] or None, "logit_scale": given["logit_scale"]}
    if name.endswith("token_log_probs"):
        temperature = float(random.choice((0.5, 1.0, 2.0)))
        options |= {"temperature": temperature, "entropy": given["has_entropy"]}
        options["logit_scale"] *= temperature
        options["softcap"] = given["softcap"] * temperature or None
    else:
        options["reduction"] = given["reduction"]
        if given["reduction"] == "mean" and random.random() < 0.15:
            divisor = options["total_weight"] = float(random.choice((0.25, 4.0, 16.0)))
    if name in ("cross_entropy", "linear_cross_entropy"):
        in_forward = (True, False, "auto")[int(random.integers(3))]
        options |= {"label_smoothing": given["label_smoothing"], "z_loss": given["z_loss"]}
        options["gradient_in_forward"] = in_forward
    if name in _LINEAR:
        size = 8 if form.dtype == "float64" else 4
        options["shift"] = form.shift
        parts = int(random.integers(0, 5))  # chunks, or what the loss takes by itself
        rows = -(-int(np.prod(form.rows)) // parts) if parts else 0
        options["chunk_bytes"] = rows * size * form.classes or None
        possible = _FROZEN if form.bias else _FROZEN[:2]
        frozen = tuple(each for each in possible if random.random() < 0.15)
        options["frozen"] = frozen
    return Plan(name, form, backend, options, frozen, divisor)


def _values(random: np.random.Generator, form: Form | LinearForm) -> Drawn | LinearDrawn:
    """Not what the tensors of MindSpore hold otherwise, or the product with the upstream gradient spoils."""
    if isinstance(form, LinearForm):
        return fill_linear(random, form)
    while True:
        drawn = fill(random, form)
        if np.all(np.abs(to_float64(drawn.logits)) < 1e4):
            return drawn


def to_tensor(array: np.ndarray, view: bool = False) -> Tensor:
    """A tensor of its own, or a view of the second half of a larger one."""
    values = to_float64(array).astype(np.float32) if isinstance(array, Brain) else array
    if not view or not values.ndim:
        tensor = Tensor(np.array(values, order="C"))
    else:
        tensor = Tensor(np.stack([np.zeros_like(values), values]))[1]
    return tensor.astype(ms.bfloat16) if isinstance(array, Brain) else tensor


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Its values. An operator of MindSpore costs more than a small loss: none where numpy has the dtype."""
    if tensor.dtype == ms.bfloat16:
        tensor = tensor.astype(ms.float32)
    return tensor.asnumpy()


class Caller:
    """A plan's function with its gradients, compiled where `mode` says so."""

    def __init__(self, plan: Plan, names: list[str], mode: str):
        self.plan, self.names, self.mode = plan, names, mode
        self.wanted, count = plan.differentiated(names), len(names)
        self.plainly = function = plan.function(names)

        def of_one(*given):
            made = function(*given[:count])
            return (made[0].astype(ms.float64) * given[count]).sum(), made[0]

        def of_two(*given):
            made = function(*given[:count])
            total = (made[0].astype(ms.float64) * given[count]).sum()
            total = total + (made[1].astype(ms.float64) * given[count + 1]).sum()
            return total, made[0], made[1]

        self.outputs = ["log_prob", "entropy"] if plan.of_tokens else ["loss"]
        self.outputs = self.outputs[: 2 if plan.options.get("entropy") else 1]
        each = of_two if len(self.outputs) == 2 else of_one
        self.width = width = count + len(self.outputs)

        def of_many(*given):
            made = [each(*given[first : first + width]) for first in range(0, len(given), width)]
            return sum(one[0] for one in made), *(output for one in made for output in one[1:])

        firsts = [width * i for i in range(AT_ONCE if mode == "pynative" else 1)]
        wanted = tuple(first + i for first in firsts for i in self.wanted)
        total = of_many if mode == "pynative" else each
        differentiated = ms.value_and_grad(total, wanted, has_aux=True)
        self.call = ms.jit(differentiated) if mode == "jit" else differentiated

    def check(self, losses: list[Drawn] | list[LinearDrawn], view: bool) -> int:
        """Calls it for so many losses, in PyNative without gradients too, asserts all results, returns the calls."""
        plan, viewed = self.plan, ("logits", "input", "target")
        arrays = [plan.tensors(drawn) for drawn in losses]
        tensors = [
            [to_tensor(array, view and name in viewed) for name, array in each.items()]
            for each in arrays
        ]
        given: list[Tensor] = []
        for drawn, own in zip(losses, tensors, strict=True):
            given += [*own, *(Tensor(np.array(each)) for each in plan.upstreams(drawn))]
        (_, *made), gradients = self._called(*given)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        outputs, wanted = len(self.outputs), len(self.wanted)
        for i, drawn in enumerate(losses):
            answers = plan.answers(drawn)
            self._check_outputs(made[i * outputs : (i + 1) * outputs], answers)
            own = gradients[i * wanted : (i + 1) * wanted]
            for index, gradient in zip(self.wanted, own, strict=True):
                name = self.names[index]
                # Made in the forward pass, rounded, multiplied and rounded again; or cast from float32.
                places, dtype = 2.0 if plan.name in _LINEAR else 1.0, dtype_name(arrays[i][name])
                self._check(f"gradient of {name}", gradient, answers[name], dtype, places)
            if self.mode == "pynative":
                self._check_outputs(self.plainly(*tensors[i]), answers)
        return len(losses) * (2 if self.mode == "pynative" else 1)

    def _called(self, *given: Tensor) -> Any:
        ms.set_context(mode=ms.GRAPH_MODE if self.mode == "graph" else ms.PYNATIVE_MODE)
        try:
            return self.call(*given)
        finally:
            ms.set_context(mode=ms.PYNATIVE_MODE)

    def _check_outputs(self, made: Any, answers: dict[str, Answer]) -> None:
        dtype = self.plan.form.dtype
        if self.plan.of_tokens:
            dtype = "float64" if dtype == "float64" else "float32"
        for name, tensor in zip(self.outputs, made, strict=True):
            assert str(tensor.dtype).lower() == dtype, f"{name} is {tensor.dtype}"
            if name in answers:
                self._check(name, tensor, answers[name], dtype)

    def _check(self, name: str, tensor: Tensor, answer: Answer, dtype: str, places=1.0) -> None:
        check(name, to_numpy(tensor), answer, self.plan.form.dtype, places, dtype)


def one(seed: int, number: int, compiled: bool) -> int:
    """Draws a function of `seed` and several losses for it; returns the calls made. AssertionError says what is
    wrong."""
    random = np.random.default_rng([seed, number, 1])
    plan = draw_plan(random, str(random.choice(list(SHARES), p=list(SHARES.values()))), compiled)
    mode = str(random.choice(("jit", "graph"))) if compiled else "pynative"
    view, calls = bool(random.integers(2)), 0
    at_once = 1 if compiled else AT_ONCE
    losses = [_values(random, plan.form) for _ in range(VALUES_PER_GRAPH if compiled else AT_ONCE)]
    caller = Caller(plan, list(plan.tensors(losses[0])), mode)
    try:
        for first in range(0, len(losses), at_once):
            calls += caller.check(losses[first : first + at_once], view)
    except (AssertionError, RuntimeError, TypeError, ValueError) as failure:
        loss = losses[calls % len(losses)]
        text = (
            f"seed {seed}, case {number}, after {calls} calls: {plan}, {loss}, {mode}, view {view}"
        )
        raise AssertionError(f"{text}: {failure}") from failure
    return calls
