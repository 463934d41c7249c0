"""Calls of the operations of distillation, with what they must return by ms_ce/reference_distillation.py."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from tests.kernel.call import Call
from tests.kernel.library import NO_ROW_WEIGHT, cast, options, plan, to_float64
from tests.kernel.linear_calls import LEFT_OUT
from tests.kernel.operations import load_reference

_reference = load_reference("reference_distillation")
_problems = itertools.count()


class DistillationCase(NamedTuple):
    """Sizes and options of one divergence. `teacher` is the dtype of the teacher's tensors, None the student's."""

    rows: tuple[int, ...]
    features: tuple[int, int]  # of student and teacher
    classes: int
    chunk_rows: int  # 0 leaves it to the loss
    reduction: str = "sum"
    bias: bool = True
    teacher: str | None = None
    shift: bool = False
    row_weight: bool = False
    masked: bool = False  # -inf for some classes in the bias of either or both
    options: dict[str, Any] = {}
    top: int = 0  # beside log-probabilities of so many classes; 0 beside a teacher's tensors
    tail: bool = True
    indices: str = "int32"


_TRANSFORMED = {"softcap": 4.0, "logit_scale": 0.8}

DISTILLATION_CASES = (
    DistillationCase((1,), (1, 1), 1, 1),
    DistillationCase((7,), (3, 5), 2, 2, "none", bias=False),
    DistillationCase((9,), (19, 4), 37, 2, "none", options={"beta": 0.3, **_TRANSFORMED}),
    DistillationCase((9,), (4, 19), 37, 4, options={"beta": 1.0, **_TRANSFORMED}),
    DistillationCase((3, 5), (19, 7), 37, 4, row_weight=True, options=_TRANSFORMED),
    DistillationCase((30,), (19, 7), 37, 4, "none", row_weight=True, options={"beta": 1.0}),
    DistillationCase((30,), (19, 7), 37, 7, row_weight=True, options={"beta": 0.7}),
    DistillationCase((6, 5), (19, 7), 37, 4, "none", shift=True, options={"beta": 0.5}),
    DistillationCase((6, 5), (19, 7), 37, 4, shift=True, row_weight=True, bias=False),
    DistillationCase((9,), (19, 7), 37, 4, "none", masked=True, options={"beta": 0.5}),
    DistillationCase((9,), (19, 7), 37, 4, masked=True),
    DistillationCase((9,), (19, 7), 37, 4, teacher="float32", options={"beta": 0.4}),
    DistillationCase((9,), (19, 7), 37, 4, "none", teacher="bfloat16"),
    DistillationCase((9,), (19, 7), 37, 4, teacher="float64", options={"beta": 1.0}),
    DistillationCase((9,), (19, 7), 37, 4, teacher="float16", bias=False),
    DistillationCase((), (19, 7), 37, 1, "none", options={"beta": 0.5}),
    DistillationCase((5,), (19, 70), 1025, 2, "none", options={"beta": 0.5}),
    DistillationCase((5,), (70, 19), 2049, 5, options={"beta": 1.0}),
    DistillationCase((600,), (16, 8), 2000, 0),  # several chunks by itself, several threads
    DistillationCase((600,), (8, 16), 2000, 0, "none", options={"beta": 0.2}),
    DistillationCase((1,), (1, 1), 1, 1, top=1),
    DistillationCase((9,), (19, 4), 37, 2, "none", top=5, options={"beta": 0.3, **_TRANSFORMED}),
    DistillationCase((9,), (4, 19), 37, 4, top=1, bias=False, indices="int64"),
    DistillationCase((9,), (4, 9), 37, 4, top=37, row_weight=True, options={"beta": 0.6}),
    DistillationCase((3, 5), (19, 7), 37, 4, top=6, row_weight=True, options={"beta": 1.0}),
    DistillationCase((30,), (19, 7), 37, 7, "none", top=6, tail=False, options={"beta": 1.0}),
    DistillationCase((30,), (19, 7), 37, 7, top=6, tail=False, row_weight=True, indices="int64"),
    DistillationCase((6, 5), (19, 7), 37, 4, top=3, shift=True, options={"beta": 0.5}),
    DistillationCase((9,), (19, 7), 37, 4, "none", top=30, masked=True, teacher="float64"),
    DistillationCase((9,), (19, 7), 37, 4, top=4, teacher="bfloat16", options={"beta": 0.4}),
    DistillationCase((5,), (19, 70), 2049, 2, "none", top=70, teacher="float32"),
    DistillationCase((600,), (16, 8), 2000, 0, top=32, options={"beta": 0.2}),
)


class _Problem:
    """The tensors of one case, and the reference's answers."""

    def __init__(self, case: DistillationCase, dtype: str):
        random = np.random.default_rng(6)
        self.case, self.dtype = case, dtype
        given: dict[str, np.ndarray] = {}
        names = (
            ("input", "linear_weight", "linear_bias"),
            ("teacher_hidden", "teacher_weight", "teacher_bias"),
        )
        dtypes, logits = (dtype, case.teacher or dtype), []
        for model, own, size in zip(names, dtypes, case.features, strict=True):
            hidden = cast(random.normal(size=(*case.rows, size)), own)
            weight = cast(2 / np.sqrt(size) * random.normal(size=(case.classes, size)), own)
            bias = random.normal(size=case.classes) if case.bias else np.zeros(())
            if case.masked:
                bias[1 if len(logits) else 3 :: 5] = -np.inf  # q only, p only and neither
                bias[::5] = -np.inf
            given.update(zip(model, (hidden, weight, cast(bias, own)), strict=True))
            exact = [to_float64(given[name]) for name in model]
            logits.append(exact[0] @ exact[1].T + exact[2])
        self.logits = [self._counted(each).reshape(-1, case.classes) for each in logits]
        if case.top:
            given = self._stored(given, logits[1])
        self.given = given
        self.row_weight = None
        if case.row_weight:
            weight = (random.random(case.rows) + 0.25) * (random.random(case.rows) < 0.7)
            self.row_weight = np.where(random.random(case.rows) < 0.1, -weight, weight)
        upstream = random.normal(size=case.rows if case.reduction == "none" else ())
        self.upstream = cast(upstream, dtype)

    def _stored(self, given: dict[str, np.ndarray], logits: np.ndarray) -> dict[str, np.ndarray]:
        """Beside the student's tensors what is stored of the teacher: its likeliest classes, in no order."""
        case = self.case
        log_probs = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
        classes = np.argsort(-log_probs, -1, kind="stable")[..., : case.top]
        classes = np.random.default_rng(2).permuted(classes, axis=-1)
        student = {name: given[name] for name in ("input", "linear_weight", "linear_bias")}
        return {
            **student,
            "teacher_log_probs": cast(
                np.take_along_axis(log_probs, classes, -1), case.teacher or self.dtype
            ),
            "teacher_indices": classes.astype(case.indices),
            "tail": np.array(float(case.tail)),
        }

    def _divergence(self, **settings: Any) -> tuple[Any, np.ndarray]:
        if not self.case.top:
            return _reference.distillation(*self.logits, **settings)
        stored = [self.given[name] for name in ("teacher_log_probs", "teacher_indices")]
        if self.case.shift:
            stored = [each[..., 1:, :] for each in stored]
        log_probs, classes = (each.reshape(-1, self.case.top) for each in stored)
        settings["tail"] = self.case.tail
        return _reference.top_k_distillation(
            self.logits[0], to_float64(log_probs), classes, **settings
        )

    def _counted(self, rows: np.ndarray) -> np.ndarray:
        """Rows at their hidden states, of those that are ever counted."""
        return rows[..., :-1, :] if self.case.shift else rows

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        """The kernel's rows: under shift each stands one position later."""
        lead = self.case.rows
        if not self.case.shift:
            return rows.reshape(lead)
        rows = rows.reshape((*lead[:-1], lead[-1] - 1))
        return np.concatenate([np.zeros((*lead[:-1], 1)), rows], -1)

    def results(self, upstream: np.ndarray | float) -> dict[str, Any]:
        """Loss, and gradients for an upstream gradient."""
        case, row_weight = self.case, self.row_weight
        later = slice(1, None) if case.shift else slice(None)
        if row_weight is not None:
            row_weight = row_weight[..., later].reshape(-1)
        per_row = case.reduction == "none"
        if per_row and np.ndim(upstream):
            upstream = np.asarray(upstream)[..., later].reshape(-1)
        settings = {"reduction": case.reduction, "row_weight": row_weight, **case.options}
        loss, slope = self._divergence(**settings, grad_loss=upstream)
        hidden = to_float64(self.given["input"])
        rows = self._counted(hidden).reshape(-1, case.features[0])
        grad_rows = slope @ to_float64(self.given["linear_weight"])
        grad_input = np.zeros(hidden.shape)
        self._counted(grad_input)[...] = grad_rows.reshape(self._counted(grad_input).shape)
        return {
            "loss": self._placed(loss) if per_row else loss,
            "grad_input": grad_input,
            "grad_linear_weight": slope.T @ rows,
            "grad_linear_bias": slope.sum(0) if case.bias else np.zeros(()),
        }

    def arguments(self) -> dict[str, np.ndarray]:
        case = self.case
        size = 8 if self.dtype == "float64" else 4
        settings = {"reduction": case.reduction, **case.options}
        row_bytes = case.chunk_rows * case.classes * size
        return {
            **self.given,
            "row_weight": NO_ROW_WEIGHT if self.row_weight is None else self.row_weight,
            "options": options(**settings, has_row_weight=case.row_weight),
            "plan": plan(chunk_bytes=row_bytes, shift=case.shift),
            "grad_loss": self.upstream,
        }


def distillation_calls(case: DistillationCase, dtype: str) -> list[Call]:
    """Every operation of distillation that takes this case."""
    problem = _Problem(case, dtype)
    given, number = problem.arguments(), next(_problems)
    per_row = case.reduction == "none"
    backward, own = problem.results(to_float64(problem.upstream)), problem.results(1.0)
    loss = {"loss": f"distillation {number} loss"}
    suffix = "Rows" if per_row else ""
    family = "LinearTopKDistillation" if case.top else "LinearDistillation"
    forward = f"{family}Forward{suffix}"
    calls = [Call(forward, dtype, given, own, linear=True, labels=loss)]
    for form, names in LEFT_OUT.items():
        zeros = {f"grad_{name}": np.zeros(()) for name in names}
        for stem, made, wanted in (
            ("Backward", backward, True),
            ("ValueAndGrad", own, not per_row),
        ):
            if not wanted:
                continue
            # What a form makes has the bits of the whole operation's.
            labels = {
                name: f"distillation {number} {stem} {name}" for name in made if name not in zeros
            }
            expected = {**made, **zeros, "applied": np.nan}
            name = f"{family}{stem}{form}"
            calls.append(Call(name, dtype, given, expected, linear=True, labels={**labels, **loss}))
    return calls
