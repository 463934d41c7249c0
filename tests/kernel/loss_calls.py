"""Calls of the operations on logits, with what they must return by ms_ce/reference.py."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from tests.kernel.call import Call, Dtypes, Repeat, placeholder
from tests.kernel.library import NO_ROW_WEIGHT, cast, options, text, to_float64
from tests.kernel.operations import reference
from tests.support.cases import Case

_problems = itertools.count()


class LossCase(NamedTuple):
    """A case and what it leaves to the kernel's own tests."""

    case: Case
    dtypes: Dtypes
    grad_z: bool = False  # an upstream gradient of the z-loss beside that of the loss
    zeros: bool = False  # every third weight is 0
    row_weight: bool = False
    offset: float = 0.0  # of all logits; far from 0, a sum that forgets the maximum underflows
    repeat: Repeat | None = (
        None  # the logits are the case's over and over: large, and short in a file
    )
    times: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the logits."""
        shape = list(self.case.shape)
        if self.repeat is not None:
            shape[self.repeat.axis] *= self.times
        return tuple(shape)


def _row_weight(shape: tuple[int, ...]) -> np.ndarray:
    """A fifth of the rows weighs nothing, few weigh less."""
    rows = reference.rows_shape(shape)
    random = np.random.default_rng(3)
    weight = (0.25 + random.random(rows)) * (random.random(rows) < 0.8)
    return np.where(random.random(rows) < 0.05, -weight, weight)


class LossProblem:
    """The tensors of one case, and the reference's answers. Upstream gradients follow the case's reduction."""

    def __init__(self, loss_case: LossCase):
        case, dtypes = loss_case.case, loss_case.dtypes
        self.case, self.dtypes, self.repeat = case, dtypes, loss_case.repeat
        drawn = case.inputs(dtypes.logits)
        self.settings = {"reduction": "mean", **case.options}
        self.per_row = self.settings["reduction"] == "none"
        self.times = loss_case.times
        self.logits = self._tiled(cast(drawn["logits"] + loss_case.offset, dtypes.logits))
        target = drawn["target"]
        self.target = self._tiled(cast(target, dtypes.target) if case.probabilities else target)
        self.weight = None if drawn["weight"] is None else cast(drawn["weight"], dtypes.weight)
        if self.weight is not None and loss_case.zeros:
            self.weight[::3] = 0
        self.upstream = self._upstream(drawn["grad_loss"])
        other = np.random.default_rng(2).normal(size=drawn["grad_loss"].shape)
        self.upstream_z = self._upstream(other) if loss_case.grad_z else None
        self.row_weight = None
        if loss_case.row_weight:
            self.row_weight = self._tiled(_row_weight(case.shape))
        self.exact = (
            to_float64(self.logits),
            to_float64(self.target) if case.probabilities else self.target,
            None if self.weight is None else to_float64(self.weight),
        )
        self.whole = {**self.settings, "row_weight": self.row_weight}
        self.result = reference.cross_entropy(*self.exact, **self.whole)

    def _tiled(self, values: np.ndarray) -> np.ndarray:
        if self.repeat is None:
            return values
        parts = [values] * self.times
        return np.concatenate(parts, self.repeat.axis).view(type(values))

    def _upstream(self, values: np.ndarray) -> np.ndarray:
        values = cast(values, self.dtypes.logits)
        return self._tiled(values) if self.per_row else values

    def gradient(self, **changes: Any) -> Any:
        """All gradients."""
        return reference.cross_entropy_grad(*self.exact, **{**self.whole, **changes})

    def _of_upstreams(self, grad: Any) -> np.ndarray:
        """grad is a derivative by the reference of Σ grad_loss·loss, linear in grad_loss; with what z-loss adds."""
        by_loss = grad(grad_loss=to_float64(self.upstream))
        if self.upstream_z is None:
            return by_loss
        upstream_z = to_float64(self.upstream_z)
        return by_loss + grad(grad_loss=upstream_z) - grad(grad_loss=upstream_z, z_loss=0.0)

    def given(self) -> dict[str, np.ndarray]:
        """Inputs of every operation by name."""
        nothing = placeholder(self.dtypes.logits)
        return {
            "logits": self.logits,
            "target": self.target,
            "weight": nothing if self.weight is None else self.weight,
            "row_weight": NO_ROW_WEIGHT if self.row_weight is None else self.row_weight,
            "options": options(
                **self.settings,
                has_weight=self.weight is not None,
                has_row_weight=self.row_weight is not None,
                has_grad_z_loss=self.upstream_z is not None,
            ),
            "grad_loss": self.upstream,
            "grad_z_loss": nothing if self.upstream_z is None else self.upstream_z,
            "lse": np.asarray(self.result.lse, np.float64),
            "total_weight": np.asarray(self.result.total_weight, np.float64),
        }

    def expected(self) -> dict[str, Any]:
        """What the operations but double backward return."""
        grad_weight = None
        if self.weight is not None:
            grad_weight = self._of_upstreams(lambda **changes: self.gradient(**changes).weight)
        return {
            **self.result._asdict(),
            "grad_logits": self._of_upstreams(lambda **changes: self.gradient(**changes).logits),
            "grad_target": self.gradient(grad_loss=to_float64(self.upstream)).target,
            "grad_weight": grad_weight,
        }

    def second(self, direction: np.ndarray) -> dict[str, Any]:
        """What double backward returns."""
        exact, rows = to_float64(direction), self.result.lse.shape

        def along(**changes: Any) -> np.ndarray:
            unit = self.gradient(grad_loss=np.ones(np.shape(self.upstream)), **changes).logits
            product = reference.to_rows(unit * exact).sum(1)
            return product.reshape(rows) if self.per_row else product.sum()

        def hvp(**changes: Any) -> np.ndarray:
            settings = {**self.whole, **changes}
            return reference.cross_entropy_hvp(exact, *self.exact, **settings)

        names = ("softcap", "logit_scale")
        of_lse = {name: self.settings[name] for name in names if name in self.settings}
        slope = reference.lse_grad(self.exact[0], **of_lse) * exact
        mean = reference.to_rows(slope).sum(1).reshape(rows)
        if not self.case.probabilities:
            ignored = self.target == self.settings.get("ignore_index", -100)
            mean = np.where(ignored, 0.0, mean)
        if self.row_weight is not None:
            mean = np.where(self.row_weight == 0, 0.0, mean)
        return {
            "grad_grad_loss": along(),
            "grad_grad_z_loss": along() - along(z_loss=0.0),
            "grad_logits": self._of_upstreams(hvp),
            "direction_mean": mean,
        }

    def along(self, direction: np.ndarray, second: dict[str, Any]) -> dict[str, Any]:
        """Derivatives of Σ direction·grad_logits by target and weight, `second` being those by the upstreams.

        With d' = d·dx'/dx and m = Σ p·d' of a row, ∂/∂q_c = g·(1-ε)·w_c·(m - d'_c), and ∂/∂w_c = Σ g·q'_c·(m - d'_c),
        less, where a mean divides by Σ w[y], its share of the whole.
        """
        options = {name: value for name, value in self.whole.items() if name != "z_loss"}
        row_weight = options.pop("row_weight")
        rows = reference._prepare((*self.exact, row_weight), **options)
        moved = reference.to_rows(to_float64(direction)) * rows.slope
        distance = second["direction_mean"].reshape(-1, 1) - moved
        upstream, divisor = to_float64(self.upstream), rows.divisor or np.inf
        at_rows = (upstream.reshape(-1) * rows.row_weight / divisor)[:, None]
        keep = 1.0 - self.settings.get("label_smoothing", 0.0)
        grad_target = reference.from_rows(at_rows * keep * rows.w * distance, self.logits.shape)
        grad_weight = (at_rows * rows.q * distance).sum(0)
        if rows.hard is not None and not self.per_row and self.settings["reduction"] == "mean":
            hits = np.bincount(rows.hard, rows.row_weight, len(rows.w)) / divisor
            whole = upstream * second["grad_grad_loss"]
            if self.upstream_z is not None:
                whole = whole + to_float64(self.upstream_z) * second["grad_grad_z_loss"]
            grad_weight = grad_weight - whole * hits
        return {"grad_target": grad_target, "grad_weight": grad_weight}


def loss_calls(loss_case: LossCase) -> list[Call]:
    """Every operation on logits that takes this case; of a large one those whose outputs may be large."""
    problem = LossProblem(loss_case)
    dtype, given, expected = problem.dtypes.logits, problem.given(), problem.expected()
    suffix = "Rows" if problem.per_row else ""
    names = ["Forward" + suffix, "Backward"]
    number = next(_problems)
    labels = {name: f"{number} {name}" for name in ("loss", "total_weight", "lse")}
    if problem.repeat is None:
        names.append("Stats" + suffix)
        names += ["TargetGrad"] * problem.case.probabilities
        names += ["WeightGrad"] * (problem.weight is not None)
    calls = [
        Call(
            "CrossEntropy" + name,
            dtype,
            given,
            expected,
            labels=labels if name.startswith("Forward") else None,
            repeat=problem.repeat,
        )
        for name in names
    ]
    if not problem.per_row:
        gradient = problem.gradient()
        own = {**expected, "grad_logits": gradient.logits, "grad_target": gradient.target}
        for name in ["ValueAndGrad"] + ["ValueAndGrads"] * problem.case.probabilities:
            name = "CrossEntropy" + name
            calls.append(Call(name, dtype, given, own, labels=labels, repeat=problem.repeat))
    if problem.repeat is None:
        direction = cast(np.random.default_rng(1).normal(size=problem.logits.shape), dtype)
        along = {**given, "direction": direction}
        second = problem.second(direction)
        calls.append(Call("CrossEntropyDoubleBackward", dtype, along, second))
        saved, moved = (
            {**along, "direction_mean": second["direction_mean"]},
            problem.along(direction, second),
        )
        kinds = (("Target", problem.case.probabilities), ("Weight", problem.weight is not None))
        for kind, there in kinds:
            if there:
                calls.append(Call(f"CrossEntropy{kind}GradAlong", dtype, saved, moved))
    return calls


def nll_calls(case: Case, dtype: str, weighted_rows: bool = False) -> list[Call]:
    """NLL of the case's logits as log-probabilities."""
    drawn = case.inputs(dtype)
    log_prob, upstream = cast(drawn["logits"], dtype), cast(drawn["grad_loss"], dtype)
    weight = None if drawn["weight"] is None else cast(drawn["weight"], dtype)
    exact = (to_float64(log_prob), drawn["target"], None if weight is None else to_float64(weight))
    row_weight = _row_weight(log_prob.shape) if weighted_rows else None
    settings = {**case.options, "row_weight": row_weight}
    loss, total_weight = reference.nll_loss(*exact, **settings)
    grads = reference.nll_loss_grad(*exact, **settings, grad_loss=to_float64(upstream))
    given = {
        "log_prob": log_prob,
        "target": drawn["target"],
        "weight": placeholder(dtype) if weight is None else weight,
        "row_weight": NO_ROW_WEIGHT if row_weight is None else row_weight,
        "options": options(
            **case.options, has_weight=weight is not None, has_row_weight=weighted_rows
        ),
        "grad_loss": upstream,
    }
    suffix = "Rows" if case.options.get("reduction") == "none" else ""
    expected = {"loss": loss, "total_weight": total_weight, "grad_log_prob": grads.logits}
    return [Call("NLL" + name, dtype, given, expected) for name in ("Forward" + suffix, "Backward")]


def token_calls(case: Case, dtype: str) -> list[Call]:
    """Log-probabilities and entropies of the case's rows, with a class that has no probability."""
    drawn = case.inputs(dtype)
    logits, target = cast(drawn["logits"], dtype), drawn["target"]
    names = ("ignore_index", "softcap", "logit_scale")
    settings = {name: case.options[name] for name in names if name in case.options}
    exact = to_float64(logits)
    log_prob, entropy = reference.token_log_probs(exact, target, **settings)
    random = np.random.default_rng(8)
    upstream = {name: random.normal(size=target.shape) for name in ("grad_rows", "grad_entropy")}
    given = {
        "logits": logits,
        "target": target,
        "options": options(reduction="none", has_entropy=True, **settings),
        "lse": np.asarray(reference.cross_entropy(exact, target, **settings).lse),
        "entropy": np.asarray(entropy),
        **upstream,
    }
    grad = reference.entropy_grad(exact, target, upstream["grad_entropy"], **settings)
    grad = (
        grad
        + reference.cross_entropy_grad(
            exact, target, reduction="none", **settings, grad_loss=upstream["grad_rows"]
        ).logits
    )
    expected = {"log_prob": log_prob, "lse": given["lse"], "entropy": entropy, "grad_logits": grad}
    return [Call("TokenLogProbs" + name, dtype, given, expected) for name in ("", "Backward")]


def block_calls(dtype: str, probabilities: bool) -> list[Call]:
    """Every operation on a block of the classes: classes 4 to 12 of 17, in the formulas of reference.py."""
    random = np.random.default_rng(9)
    block, classes, smoothing = slice(4, 13), 17, 0.1
    logits = cast(random.normal(size=(6, classes)), dtype)
    weight = cast(random.random(classes), dtype)
    target = random.integers(0, classes, 6)
    q = np.eye(classes)[target]
    if probabilities:
        target = cast(random.random((6, classes)), dtype)
        q = to_float64(target)
    x, w = to_float64(logits), to_float64(weight)
    factor = w * ((1 - smoothing) * q + smoothing / classes)
    lse, own = (np.log(np.exp(part).sum(1)) for part in (x, x[:, block]))
    dot, mass = ((factor[:, block] * values).sum(1) for values in (x[:, block], 1.0))
    grad_rows, grad_lse, whole_mass = random.normal(size=6), random.normal(size=6), factor.sum(1)
    p = np.exp(x - lse[:, None])[:, block]
    of_rows = grad_rows[:, None] * (whole_mass[:, None] * p - factor[:, block])
    settings = {"reduction": "none", "label_smoothing": smoothing}
    exact = (x, q if probabilities else target, w)
    whole = reference.cross_entropy_grad(*exact, **settings, grad_loss=grad_rows)
    grad_weight = np.zeros(classes)
    grad_weight[block] = whole.weight[block]
    given = {
        "logits": logits[:, block].copy(),
        "target": target[:, block].copy() if probabilities else target,
        "weight": weight,
        "options": options(**settings, class_offset=4, total_classes=classes, has_weight=True),
        "grad_rows": grad_rows,
        "grad_lse": grad_lse,
        "lse": lse,
        "mass": whole_mass,
        "total_weight": np.zeros(()),
    }
    expected = {
        "partial": np.stack([own, dot, mass], axis=1),
        "grad_logits": of_rows + grad_lse[:, None] * p,
        "grad_weight": grad_weight,
    }
    names = ["", "Backward", "WeightGrad"]
    if probabilities:
        expected["grad_target"] = whole.target[:, block]
        names.append("TargetGrad")
    return [Call("CrossEntropyPartial" + name, dtype, given, expected) for name in names]


def refusal_call() -> Call:
    """Nothing arrives: nothing is refused."""
    given = {"arriving": np.zeros(()), "reason": text("read by nobody")}
    return Call("RefuseDerivative", "float64", given, {"done": 0.0})
