"""One rank's checks of distillation from a stored teacher, in the manner of distillation_checks.py."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from linear_checks import Network, to_numpy
from mindspore import Tensor
from spmd_cases import GRAPH, JIT, PYNATIVE
from spmd_programs import message_of
from top_k_cases import CHUNK_ROWS, ROWS_PER_RANK, TOP_K_PROGRAMS, TopKCase, draw, top_k_cases

from ms_ce.parallel import VocabParallelLinearTopKDistillationLoss
from ms_ce.reference_distillation import top_k_distillation
from tests.support.cases import round_to
from tests.support.linear_tolerances import check_linear

REFERENCE_OPTIONS = (
    "beta",
    "tail",
    "temperature",
    "temperature_squared",
    "reduction",
    "softcap",
    "logit_scale",
)


def own_inputs(case: TopKCase, place, student: list, teacher: tuple, row_weight) -> list:
    """This rank's rows and classes; classes of padding and rows of weight 0 hold nan."""
    dtype, padding = getattr(ms, case.dtype), sum(case.blocks) - case.classes

    def block(values):
        width = ((0, padding), *((0, 0) for _ in values.shape[1:]))
        return Tensor(np.pad(values, width, constant_values=np.nan)[place.classes]).astype(dtype)

    hidden, weight, bias = student
    rows = hidden[place.rows].copy()
    if row_weight is not None:
        rows[row_weight[place.rows] == 0] = np.nan
    if case.sequence_parallel:
        rows = np.split(rows, case.class_ranks)[place.class_rank]
    log_probs, indices = (Tensor(each[place.rows]) for each in teacher)
    inputs = [Tensor(rows).astype(dtype), block(weight), log_probs, indices.astype(ms.int32)]
    if case.bias:
        inputs.append(block(bias))
    if row_weight is not None:
        inputs.append(Tensor(row_weight[place.rows]))
    if case.total_weight is not None:
        inputs.append(Tensor(case.total_weight, ms.float32))
    return inputs


def run(case: TopKCase, place_of: Callable) -> None:
    """Raises AssertionError where this rank's loss or gradients are not those of the whole."""
    place = place_of(case, ROWS_PER_RANK)
    student, *teacher, row_weight = draw(case)
    student = [round_to(each, case.dtype).astype(np.float64) for each in student]
    loss = VocabParallelLinearTopKDistillationLoss(
        place.class_group,
        class_blocks=case.class_blocks,
        num_classes=case.num_classes,
        sequence_parallel=case.sequence_parallel,
        row_group=place.row_group if case.row_ranks > 1 else None,
        gradients_mean=case.gradients_mean,
        chunk_bytes=CHUNK_ROWS * max(case.blocks) * 4,
        **case.loss,
    )
    inputs = own_inputs(case, place, student, teacher, row_weight)
    ms.set_context(mode=ms.GRAPH_MODE if case.mode == GRAPH else ms.PYNATIVE_MODE)
    function = ms.value_and_grad(Network(loss), (0, 1, 4) if case.bias else (0, 1))
    if case.mode == JIT:
        function = ms.jit(function)
    value, gradients = function(*inputs)
    options = {name: case.loss[name] for name in REFERENCE_OPTIONS if name in case.loss}
    options |= {"row_weight": row_weight, "total_weight": case.total_weight}
    logits = student[0] @ student[1].T + student[2]
    expected, slope = top_k_distillation(logits, *teacher, **options)
    slope = slope[place.rows] * (case.row_ranks if case.gradients_mean else 1)
    expected = expected[place.rows] if case.loss.get("reduction") == "none" else expected
    loss_dtype = "float32" if case.row_ranks > 1 else case.dtype
    if case.mode == PYNATIVE:  # where it is not one more compilation
        check_linear(to_numpy(loss(*inputs)), expected, "composed", loss_dtype, "loss")
    whole = np.sum(expected)
    check_linear(to_numpy(value) / 2, whole, "composed", loss_dtype, "loss in training")
    padding = sum(case.blocks) - case.classes
    own = np.pad(slope, ((0, 0), (0, padding)))[:, place.classes]
    of_hidden = slope @ student[1]
    if case.sequence_parallel:
        of_hidden = np.split(of_hidden, case.class_ranks)[place.class_rank]
    exact = [of_hidden, own.T @ student[0][place.rows], own.sum(0)]
    for name, got, wanted in zip(("hidden", "weight", "bias"), gradients, exact, strict=False):
        assert got.dtype == getattr(ms, case.dtype), got.dtype
        check_linear(to_numpy(got) / 2, wanted, "composed", case.dtype, name)


def wrong_arguments() -> None:
    """Each message names the argument, what was expected and what arrived."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    hidden, table = Tensor(np.ones((4, 3), np.float32)), Tensor(np.ones((5, 3), np.float32))
    log_probs, classes = Tensor(np.full((4, 2), -1.0, np.float32)), Tensor(np.array([[0, 9]] * 4))
    double, loss = Tensor(np.ones((4, 3))), VocabParallelLinearTopKDistillationLoss
    teacher, many = (log_probs, classes), Tensor(np.zeros((4, 11), np.float32))
    for call, expected in (
        (lambda: loss(group="nobody"), "group 'nobody' cannot be used"),
        (lambda: loss(beta=2.0), "beta must be in [0, 1]"),
        (lambda: loss(tail=1), "tail must be True or False"),
        (lambda: loss(num_classes=11)(hidden, table, *teacher), "at most the 10 classes"),
        (lambda: loss(num_classes=9)(hidden, table, *teacher), "in [0, 9), got 9 at position"),
        (
            lambda: loss()(hidden, [0], *teacher),
            "student_weight must be a mindspore.Tensor, got list",
        ),
        (lambda: loss()(hidden, table, many, many), "teacher_indices must have dtype int32"),
        (
            lambda: loss()(hidden, table, many, many.astype(ms.int32)),
            "from 1 to 10 classes on its last axis",
        ),
        (lambda: loss()(hidden, table, log_probs[:2], classes), "must have shape (4, 'k')"),
        (lambda: loss()(hidden, table, *teacher, table), "student_bias must have shape"),
        (lambda: loss()(hidden, table, *teacher, None, table), "row_weight must have shape (4,)"),
        (
            lambda: loss(reduction="sum")(hidden, table, *teacher, total_weight=2),
            "total_weight is the divisor",
        ),
        (
            lambda: loss()(double, table.astype(ms.float64), *teacher),
            "student_hidden must have dtype float16",
        ),
    ):
        message = message_of(call)
        assert message.startswith("VocabParallelLinearTopKDistillationLoss: "), message
        assert expected in message, f"{expected!r} is not in {message!r}"


PROGRAMS = {"wrong arguments": wrong_arguments}


def checks(ranks: int, place_of: Callable) -> dict[str, Callable[[], None]]:
    """All of a job, by the names of `top_k_cases.top_k_names`."""
    computed = {case.name: lambda case=case: run(case, place_of) for case in top_k_cases(ranks)}
    programs = {name: PROGRAMS[name] for name in TOP_K_PROGRAMS[ranks]}
    return {
        f"top-k distillation: {name}": check for name, check in {**computed, **programs}.items()
    }
