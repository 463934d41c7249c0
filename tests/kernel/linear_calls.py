"""Calls of the operations of the linear loss, with what they must return by ms_ce/reference.py."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from tests.kernel.call import Call, placeholder
from tests.kernel.library import NO_ROW_WEIGHT, cast, options, plan, to_float64
from tests.kernel.operations import reference

_problems = itertools.count()


class LinearCase(NamedTuple):
    """Sizes and options of one linear loss. `other` is the dtype of weight and probabilities, None the input's."""

    rows: tuple[int, ...]
    features: int
    classes: int
    chunk_rows: int  # 0 leaves it to the loss
    reduction: str = "mean"
    bias: bool = True
    weight: bool = False
    probabilities: bool = False
    other: str | None = None
    shift: bool = False
    row_weight: bool = False
    grad_z: bool = False
    options: dict[str, Any] = {}


_SMOOTH = {"label_smoothing": 0.1}
_TRANSFORMED = {"softcap": 4.0, "logit_scale": 0.8}
_ALL = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0, "logit_scale": 0.8}

# Tiles are 6 by 8 to 64, panels 16 to 96 rows; sums are cut at 128 classes and at 256 features.
_SIZES = (
    LinearCase((1,), 1, 1, 1),
    LinearCase((2,), 3, 5, 1, bias=False),
    LinearCase((7,), 16, 13, 7, options=_SMOOTH),
    LinearCase((17,), 65, 31, 5, bias=False),
    LinearCase((33,), 64, 97, 33),
    LinearCase((97,), 130, 129, 97, "sum", bias=False, options=_SMOOTH),
    LinearCase((130,), 20, 300, 101),
    LinearCase((200,), 7, 70, 200, bias=False),
    LinearCase((3,), 1030, 50, 2, options=_SMOOTH),
    LinearCase((40,), 259, 131, 16, bias=False),
    LinearCase((96,), 128, 1000, 48),
    LinearCase((12,), 2050, 9, 12, bias=False, options=_SMOOTH),
    LinearCase((600,), 16, 2000, 0),  # several chunks by itself, several threads
)
_OPTIONS = (
    LinearCase((9,), 19, 37, 2, "none", options=_SMOOTH),
    LinearCase((9,), 19, 37, 2, "sum", options=_SMOOTH),
    LinearCase((9,), 19, 37, 2, weight=True, options=_ALL, grad_z=True),
    LinearCase((9,), 19, 37, 2, "none", weight=True, other="float32", options=_ALL, grad_z=True),
    LinearCase((9,), 19, 37, 2, probabilities=True, options=_SMOOTH),
    LinearCase(
        (3, 5), 19, 37, 4, "none", probabilities=True, weight=True, options=_ALL, bias=False
    ),
    LinearCase((9,), 19, 37, 2, "sum", probabilities=True, weight=True, other="float32"),
    LinearCase((3, 5), 19, 37, 4, shift=True, options={"z_loss": 0.01}),
    LinearCase((3, 5), 19, 37, 4, "none", shift=True, weight=True, options=_ALL, grad_z=True),
    LinearCase((3, 5), 19, 37, 4, "sum", shift=True, probabilities=True, weight=True, bias=False),
    LinearCase((), 19, 37, 1, "none"),
    LinearCase((30,), 19, 37, 4, "none", options=_TRANSFORMED),
    LinearCase((6, 5), 19, 37, 4, "none", bias=False, shift=True, options=_TRANSFORMED),
    LinearCase((30,), 19, 37, 4, weight=True, options=_ALL, row_weight=True, grad_z=True),
    LinearCase((6, 5), 19, 37, 4, "none", shift=True, options=_SMOOTH, row_weight=True),
    LinearCase((30,), 19, 37, 4, "sum", probabilities=True, options=_ALL, row_weight=True),
    LinearCase((6, 5), 19, 37, 4, shift=True, probabilities=True, row_weight=True),
    LinearCase((9,), 19, 37, 4, probabilities=True, weight=True, options=_ALL, row_weight=True),
    LinearCase((30,), 19, 37, 7, "sum", weight=True, options=_ALL),
    LinearCase((6, 5), 19, 1300, 4, weight=True, shift=True, other="float32", grad_z=True),
    LinearCase((5,), 19, 1300, 2, "none", weight=True, probabilities=True, options=_TRANSFORMED),
)
# Rows of the weight's gradient that are whole cache lines, and begin anywhere behind one: where they do follows from
# the call's number (tests/kernel/replay_test.cc).
_LINES = (LinearCase((7,), 16, 13, 3, options=_SMOOTH),) * 15
LINEAR_CASES = _SIZES + _OPTIONS + _LINES

# Operations that leave out gradients nobody wants.
LEFT_OUT = {
    "": (),
    "Input": ("linear_weight",),
    "Weight": ("input",),
    "Bias": ("input", "linear_weight"),
}


class LinearProblem:
    """The tensors of one case, and the reference's answers."""

    def __init__(self, case: LinearCase, dtype: str):
        random = np.random.default_rng(5)
        classes, other = case.classes, case.other or dtype
        self.case, self.dtype = case, dtype
        scale = 2.0 / np.sqrt(case.features)
        self.hidden = cast(random.normal(size=(*case.rows, case.features)), dtype)
        self.linear_weight = cast(scale * random.normal(size=(classes, case.features)), dtype)
        self.bias = cast(random.normal(size=classes), dtype) if case.bias else None
        self.target = np.where(
            random.random(case.rows) < 0.2, -100, random.integers(0, classes, case.rows)
        )
        if case.probabilities:
            self.target = cast(random.random((*case.rows, classes)), other)
        self.weight = cast(random.random(classes) + 0.25, other) if case.weight else None
        self.row_weight = None
        if case.row_weight:
            weight = (random.random(case.rows) + 0.25) * (random.random(case.rows) < 0.7)
            self.row_weight = np.where(random.random(case.rows) < 0.1, -weight, weight)
        self.settings = {
            "reduction": case.reduction,
            "shift": case.shift,
            "row_weight": self.row_weight,
            **case.options,
        }
        self.exact = (
            to_float64(self.hidden),
            to_float64(self.linear_weight),
            to_float64(self.target) if case.probabilities else self.target,
            None if self.bias is None else to_float64(self.bias),
            None if self.weight is None else to_float64(self.weight),
        )
        self.result = reference.linear_cross_entropy(*self.exact, **self.settings)
        size = case.rows if case.reduction == "none" else ()
        self.upstream, upstream_z = (cast(random.normal(size=size), dtype) for _ in range(2))
        self.upstream_z = upstream_z if case.grad_z else None

    def _of_rows(self, values: Any, first: int = 0) -> Any:
        """The kernel's rows: under shift the first of a sequence counts for nothing, and has `first`."""
        if not self.case.shift or not np.ndim(values):
            return values
        return np.concatenate([np.full_like(values[..., :1], first), values], -1)

    def results(self) -> dict[str, Any]:
        """Of the forward operations."""
        rows = {**self.settings, "reduction": "none"}
        found = self.result._asdict()
        found["row_losses"] = reference.linear_cross_entropy(*self.exact, **rows).loss
        made = {name: self._of_rows(value) for name, value in found.items()}
        return {**made, "predicted": self._of_rows(self.result.predicted, -1)}

    def unit_gradients(self, grad_loss: Any = 1.0, **changes: Any) -> dict[str, Any]:
        """By name, for a gradient of each of the reference's rows or of the loss."""
        settings = {**self.settings, **changes, "grad_loss": grad_loss}
        grads = reference.linear_cross_entropy_grad(*self.exact, **settings)._asdict()
        if grads["linear_bias"] is None:
            grads["linear_bias"] = np.zeros(())
        return {f"grad_{name}": value for name, value in grads.items()}

    def _reference_rows(self, upstream: np.ndarray) -> np.ndarray:
        values = to_float64(upstream)
        return values[..., 1:] if self.case.shift and values.ndim else values

    def gradients(self) -> dict[str, Any]:
        """Of the backward operations; linear in the upstream gradients."""
        grads = self.unit_gradients(self._reference_rows(self.upstream))
        if self.upstream_z is None:
            return grads
        upstream_z = self._reference_rows(self.upstream_z)
        whole = self.unit_gradients(upstream_z)
        rest = self.unit_gradients(upstream_z, z_loss=0.0)
        return {
            name: value if value is None else value + whole[name] - rest[name]
            for name, value in grads.items()
        }

    def given(self) -> dict[str, np.ndarray]:
        """Inputs of every operation by name."""
        case, nothing = self.case, placeholder(self.dtype)
        settings = {"reduction": case.reduction, **case.options}
        flags = {
            "has_weight": case.weight,
            "has_row_weight": case.row_weight,
            "has_grad_z_loss": case.grad_z,
        }
        return {
            "input": self.hidden,
            "linear_weight": self.linear_weight,
            "target": self.target,
            "linear_bias": cast(np.zeros(()), self.dtype) if self.bias is None else self.bias,
            "weight": nothing if self.weight is None else self.weight,
            "row_weight": NO_ROW_WEIGHT if self.row_weight is None else self.row_weight,
            "options": options(**settings, **flags),
            "plan": self.plan(),
            "grad_loss": self.upstream,
            "grad_z_loss": nothing if self.upstream_z is None else self.upstream_z,
            "lse": np.asarray(self._of_rows(self.result.lse), np.float64),
            "total_weight": np.asarray(self.result.total_weight, np.float64),
            "applied": np.array(np.nan),
        }

    def plan(self, **more: Any) -> np.ndarray:
        """Chunks of so many rows."""
        size = 8 if self.dtype == "float64" else 4
        row_bytes = self.case.chunk_rows * self.case.classes * size
        return plan(chunk_bytes=row_bytes, shift=self.case.shift, **more)


def token_calls(problem: LinearProblem) -> list[Call]:
    """Log-probabilities and entropies of the rows, and the gradients of both."""
    case, dtype = problem.case, problem.dtype
    hidden, linear_weight, _, bias, _ = problem.exact
    _, logits, targets, _, lead = reference._as_rows(*problem.exact[:4], None, case.shift)
    log_prob, entropy = reference.token_log_probs(logits, targets, **case.options)
    random = np.random.default_rng(8)
    grad_rows, grad_entropy = random.normal(size=(2, len(logits)))
    slope = reference.entropy_grad(logits, targets, grad_entropy, **case.options)
    by_rows = problem.unit_gradients(grad_rows)

    def placed(rows: np.ndarray) -> np.ndarray:
        return problem._of_rows(rows.reshape(lead))

    settings = {"reduction": "none", "has_entropy": True, **case.options}
    given = {
        **problem.given(),
        "options": options(**settings),
        "lse": placed(reference.cross_entropy(logits, targets, **case.options).lse),
        "entropy": placed(entropy),
        "grad_rows": placed(grad_rows),
        "grad_entropy": placed(grad_entropy),
    }
    rows = hidden[..., :-1, :] if case.shift else hidden
    grad_input = (slope @ linear_weight).reshape(rows.shape)
    if case.shift:
        grad_input = np.concatenate([grad_input, np.zeros_like(grad_input[..., :1, :])], -2)
    expected = {
        "log_prob": placed(log_prob),
        "lse": given["lse"],
        "entropy": given["entropy"],
        "grad_input": by_rows["grad_input"] + grad_input,
        "grad_linear_weight": by_rows["grad_linear_weight"]
        + slope.T @ rows.reshape(len(slope), -1),
        "grad_linear_bias": by_rows["grad_linear_bias"] + (0.0 if bias is None else slope.sum(0)),
    }
    calls = [Call("LinearTokenLogProbs", dtype, given, expected, linear=True)]
    for form, names in LEFT_OUT.items():
        zeros = {f"grad_{name}": np.zeros(()) for name in names}
        name = "LinearTokenLogProbsBackward" + form
        calls.append(Call(name, dtype, given, {**expected, **zeros}, linear=True))
    return calls


def linear_calls(case: LinearCase, dtype: str) -> list[Call]:
    """Every operation of the linear loss that takes this case."""
    problem = LinearProblem(case, dtype)
    given, results, of_upstream = problem.given(), problem.results(), problem.gradients()
    number = next(_problems)
    calls: list[Call] = []

    def add(stem: str, form: str, inputs: dict, expected: dict) -> None:
        """What a form makes has the bits of the whole operation's."""
        labels = {name: f"linear {number} {stem} {name}" for name in results | of_upstream}
        for name in LEFT_OUT.get(form, ()):
            del labels[f"grad_{name}"]
        name = "LinearCrossEntropy" + stem + form
        calls.append(Call(name, dtype, inputs, expected, linear=True, labels=labels))

    suffix = "Rows" if case.reduction == "none" else ""
    add("Forward", suffix, given, results)
    add("Stats", suffix, given, results)
    frozen = {**given, "plan": problem.plan(bias_frozen=True)}
    made = problem.unit_gradients()
    for form, names in LEFT_OUT.items():
        zeros = {f"grad_{name}": np.zeros(()) for name in names}
        add("Backward", form, given, {**of_upstream, **zeros})
        if case.reduction != "none":
            whole = {**results, **made, "applied": np.nan, **zeros}
            add("ValueAndGrad", form, given, whole)
    for stem, wanted in (("TargetGrad", case.probabilities), ("WeightGrad", case.weight)):
        if wanted:
            calls.append(Call("LinearCrossEntropy" + stem, dtype, given, of_upstream, linear=True))
    no_bias = {"grad_linear_bias": np.zeros_like(of_upstream["grad_linear_bias"])}
    calls.append(
        Call("LinearCrossEntropyBackward", dtype, frozen, {**of_upstream, **no_bias}, linear=True)
    )
    if case.reduction != "none":
        names = ("grad_input", "grad_linear_weight", "grad_linear_bias")
        rounded = {name: cast(made[name], dtype) for name in names}
        factor = to_float64(problem.upstream)
        scaled = {name: factor * to_float64(value) for name, value in rounded.items()}
        add("Rescale", "", {**given, **rounded}, {**scaled, "done": factor, "applied": factor})
    if suffix and case.options.items() <= _TRANSFORMED.items() and not case.probabilities:
        calls += token_calls(problem)
    return calls
