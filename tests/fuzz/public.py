"""Drawn losses through the public functions, in PyNative and compiled, against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from tests.fuzz.bounds import Answer, check
from tests.fuzz.draw import Array, Loss
from tests.fuzz.plans import Plan, draw_plan
from tests.kernel.library import Brain, cast, dtype_name, to_float64

# How many draws of values a compiled graph gets, and how many PyNative differentiates at once.
VALUES_PER_GRAPH, AT_ONCE = 16, 8
# One case in so many runs its operators behind Python, as MindSpore does unless told otherwise.
BEHIND_PYTHON = 8
_VIEWED = ("logits", "input", "student_hidden", "target", "teacher_log_probs", "teacher_indices")


def to_tensor(array: Array, view: bool = False) -> Tensor:
    """A tensor of its own, or a view of the second half of a larger one."""
    values = to_float64(array).astype(np.float32) if isinstance(array, Brain) else array
    if not view or not values.ndim:
        tensor = Tensor(np.array(values, order="C"))
    else:
        tensor = Tensor(np.stack([np.zeros_like(values), values]))[1]
    return tensor.astype(ms.bfloat16) if isinstance(array, Brain) else tensor


def to_numpy(tensor: Tensor) -> Array:
    """Its values. An operator of MindSpore costs more than a small loss: none where numpy has the dtype."""
    if tensor.dtype == ms.bfloat16:
        tensor = tensor.astype(ms.float32)
    return tensor.asnumpy()


class _Caller:
    """A plan's function with its gradients."""

    def __init__(self, plan: Plan, names: list[str]):
        self.plan, self.names = plan, names
        self.function = plan.function(names)
        self.checked: Loss | None = None  # the one that is, or was last

    def check(self, losses: Sequence[Loss], view: bool) -> int:
        """Calls it for so many losses, asserts all results, returns the calls."""
        arrays = [self.plan.tensors(drawn) for drawn in losses]
        tensors = [
            [to_tensor(array, view and name in _VIEWED) for name, array in each.items()]
            for each in arrays
        ]
        made = self.made(losses, tensors)
        for i, drawn in enumerate(losses):
            self.checked, answers = drawn, self.plan.answers(drawn)
            for results, gradients in made[i]:
                self._check_outputs(results, answers)
                for name, gradient in gradients.items():
                    self._check_gradient(name, gradient, answers, arrays[i][name])
        return sum(len(each) for each in made)

    def made(self, losses: Sequence[Loss], tensors: list[list[Tensor]]) -> list[list[Any]]:
        """For each loss its calls: (results, gradients by name)."""
        raise NotImplementedError

    def _check_gradient(self, name: str, gradient: Tensor, answers: Any, array: Array) -> None:
        # Made in the forward pass, rounded, multiplied and rounded again; or cast from float32.
        places = 2.0 if self.plan.of_layers else 1.0
        if self.plan.is_constant(name):
            answers = {name: Answer(np.zeros(array.shape), 0.0)}
        if name in answers:
            self._check(f"gradient of {name}", gradient, answers[name], dtype_name(array), places)

    def _check_outputs(self, made: Sequence[Tensor], answers: dict[str, Answer]) -> None:
        dtype = self.plan.output_dtype
        for name, tensor in zip(self.plan.outputs, made, strict=True):
            assert str(tensor.dtype).lower() == dtype, f"{name} is {tensor.dtype}"
            if name in answers:
                self._check(name, tensor, answers[name], dtype)

    def _check(self, name: str, tensor: Tensor, answer: Answer, dtype: str, places=1.0) -> None:
        check(name, to_numpy(tensor), answer, self.plan.form.dtype, places, dtype)


class _Pynative(_Caller):
    """Differentiates several losses at once, with what arrives at each handed over, and calls each without gradients
    too. An operator of MindSpore costs more than a small loss: there is none but the losses' own.

    `waits`: MindSpore returns from an operator when it has run. Its way to run them behind Python takes four times the
    processor's time, for threads that wait for each other."""

    def __init__(self, plan: Plan, names: list[str], waits: bool):
        super().__init__(plan, names)
        self.waits = waits
        self.gradient = ms.ops.GradOperation(get_all=True, sens_param=True)(self._all)
        self.results: tuple[Tensor, ...] = ()

    def _all(self, *given: Tensor) -> tuple[Tensor, ...]:
        width, made = len(self.names), ()
        for first in range(0, len(given), width):
            made = (*made, *self.function(*given[first : first + width]))
        self.results = made
        return made

    def check(self, losses: Sequence[Loss], view: bool) -> int:
        ms.set_context(pynative_synchronize=self.waits)
        try:
            return super().check(losses, view)
        finally:
            ms.set_context(pynative_synchronize=False)

    def made(self, losses: Sequence[Loss], tensors: list[list[Tensor]]) -> list[list[Any]]:
        arrives = [
            to_tensor(cast(each, self.plan.output_dtype))
            for drawn in losses
            for each in self.plan.upstreams(drawn)
        ]
        given = [tensor for each in tensors for tensor in each]
        gradients = self.gradient(*given, tuple(arrives) if len(arrives) > 1 else arrives[0])
        results, width, outputs = self.results, len(self.names), len(self.plan.outputs)
        plainly = [self.function(*each) for each in tensors]
        made = []
        for i, plain in enumerate(plainly):
            own = dict(zip(self.names, gradients[i * width : (i + 1) * width], strict=True))
            calls = [(results[i * outputs : (i + 1) * outputs], own), (plain, {})]
            made.append(calls)
        return made


class _Compiled(_Caller):
    """Differentiates one loss at a time, in a graph of its own or under jit."""

    def __init__(self, plan: Plan, names: list[str], how: str):
        super().__init__(plan, names)
        self.mode = ms.GRAPH_MODE if how == "graph" else ms.PYNATIVE_MODE
        function, count = self.function, len(names)
        self.wanted = tuple(i for i, name in enumerate(names) if plan.is_differentiated(name))

        def of_one(*given):
            made = function(*given[:count])
            return (made[0].astype(ms.float64) * given[count]).sum(), made[0]

        def of_two(*given):
            made = function(*given[:count])
            total = (made[0].astype(ms.float64) * given[count]).sum()
            total = total + (made[1].astype(ms.float64) * given[count + 1]).sum()
            return total, made[0], made[1]

        of = of_two if len(plan.outputs) == 2 else of_one
        differentiated = ms.value_and_grad(of, self.wanted, has_aux=True)
        self.call = ms.jit(differentiated) if how == "jit" else differentiated

    def made(self, losses: Sequence[Loss], tensors: list[list[Tensor]]) -> list[list[Any]]:
        made = []
        for drawn, own in zip(losses, tensors, strict=True):
            arrives = [Tensor(np.array(each)) for each in self.plan.upstreams(drawn)]
            (_, *results), gradients = self._called(*own, *arrives)
            gradients = gradients if isinstance(gradients, tuple) else (gradients,)
            names = [self.names[index] for index in self.wanted]
            made.append([(results, dict(zip(names, gradients, strict=True)))])
        return made

    def _called(self, *given: Tensor) -> Any:
        ms.set_context(mode=self.mode)
        try:
            return self.call(*given)
        finally:
            ms.set_context(mode=ms.PYNATIVE_MODE)


def one(seed: int, number: int, compiled: bool) -> int:
    """Draws a function of `seed` and several losses for it; returns the calls made. AssertionError says what is
    wrong."""
    random = np.random.default_rng([seed, number, 1])
    plan, view, calls = draw_plan(random, compiled), bool(random.integers(2)), 0
    how = str(random.choice(("jit", "graph"))) if compiled else "pynative"
    waits = bool(random.integers(BEHIND_PYTHON))
    losses = [plan.values(random) for _ in range(VALUES_PER_GRAPH if compiled else AT_ONCE)]
    names = list(plan.tensors(losses[0]))
    caller = _Compiled(plan, names, how) if compiled else _Pynative(plan, names, waits)
    try:
        calls = caller.check(losses, view)
    except (AssertionError, RuntimeError, TypeError, ValueError) as failure:
        drawn = caller.checked or losses[0]
        text = f"seed {seed}, case {number}: {plan}, {drawn}, {how}, waits {waits}, view {view}"
        raise AssertionError(f"{text}: {failure}") from failure
    return calls
