"""One rank's checks of the vocabulary-parallel distillation loss, in the manner of linear_checks.py."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from distillation_cases import (
    CHUNK_ROWS,
    DISTILLATION_PROGRAMS,
    ROWS_PER_RANK,
    DistillationCase,
    distillation_cases,
    draw,
)
from linear_checks import Network, to_numpy
from mindspore import Tensor, nn
from spmd_cases import GRAPH, JIT, PYNATIVE
from spmd_programs import message_of

from ms_ce.parallel import VocabParallelLinearDistillationLoss
from ms_ce.reference_distillation import distillation
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


def own_model(case: DistillationCase, place, arrays: list, row_weight) -> tuple[Tensor, ...]:
    """This rank's rows and classes of (hidden, weight, bias); classes of padding and rows of weight 0 hold nan."""
    dtype, padding = getattr(ms, case.dtype), sum(case.blocks) - case.classes

    def block(values):
        width = ((0, padding), *((0, 0) for _ in values.shape[1:]))
        return Tensor(np.pad(values, width, constant_values=np.nan)[place.classes]).astype(dtype)

    hidden, weight, bias = arrays
    rows = hidden[place.rows].copy()
    if row_weight is not None:
        rows[row_weight[place.rows] == 0] = np.nan
    if case.sequence_parallel:
        rows = np.split(rows, case.class_ranks)[place.class_rank]
    return Tensor(rows).astype(dtype), block(weight), block(bias)


def own_weights(case: DistillationCase, place, row_weight) -> list[Tensor]:
    """The inputs behind the models'."""
    inputs = []
    if row_weight is not None:
        inputs.append(Tensor(row_weight[place.rows]))
    if case.total_weight is not None:
        inputs.append(Tensor(case.total_weight, ms.float32))
    return inputs


def made(case: DistillationCase, place, kind: type) -> nn.Cell:
    """The loss of a case."""
    return kind(
        place.class_group,
        class_blocks=case.class_blocks,
        num_classes=case.num_classes,
        sequence_parallel=case.sequence_parallel,
        row_group=place.row_group if case.row_ranks > 1 else None,
        gradients_mean=case.gradients_mean,
        chunk_bytes=CHUNK_ROWS * max(case.blocks) * 4 if case.chunked else None,
        **case.loss,
    )


def reference_options(case: DistillationCase, row_weight) -> dict:
    options = {name: case.loss[name] for name in REFERENCE_OPTIONS if name in case.loss}
    return {**options, "row_weight": row_weight, "total_weight": case.total_weight}


def check(case: DistillationCase, place, loss: nn.Cell, inputs: list, student, expected, slope):
    """Raises AssertionError where this rank's loss or gradients are not those of the whole, of which `expected` is the
    loss and `slope` the gradient of the student's logits."""
    ms.set_context(mode=ms.GRAPH_MODE if case.mode == GRAPH else ms.PYNATIVE_MODE)
    function = ms.value_and_grad(Network(loss), (0, 1, 4) if case.biases else (0, 1))
    if case.mode == JIT:
        function = ms.jit(function)
    value, gradients = function(*inputs)
    slope = slope[place.rows] * (case.row_ranks if case.gradients_mean else 1)
    expected = expected[place.rows] if case.loss.get("reduction") == "none" else expected
    loss_dtype = "float32" if case.row_ranks > 1 else case.dtype
    # MindSpore's exp makes the divergences, on every backend.
    if case.mode == PYNATIVE:  # where it is not one more compilation
        check_linear(to_numpy(loss(*inputs)), expected, "composed", loss_dtype, "loss")
    whole = np.sum(expected)
    check_linear(to_numpy(value) / 2, whole, "composed", loss_dtype, "loss in training")
    padding = sum(case.blocks) - case.classes
    own = np.pad(slope, ((0, 0), (0, padding)))[:, place.classes]
    hidden, weight, _ = student
    by_hidden = slope @ weight
    if case.sequence_parallel:
        by_hidden = np.split(by_hidden, case.class_ranks)[place.class_rank]
    exact = [by_hidden, own.T @ hidden[place.rows], own.sum(0)]
    for name, got, wanted in zip(("hidden", "weight", "bias"), gradients, exact, strict=False):
        assert got.dtype == getattr(ms, case.dtype), got.dtype
        check_linear(to_numpy(got) / 2, wanted, "composed", case.dtype, name)


def run(case: DistillationCase, place_of: Callable) -> None:
    """Of one case."""
    place = place_of(case, ROWS_PER_RANK)
    arrays, row_weight = draw(case)
    arrays = [round_to(each, case.dtype).astype(np.float64) for each in arrays]
    models = [own_model(case, place, each, row_weight) for each in (arrays[:3], arrays[3:])]
    inputs = [tensor for model in models for tensor in model[:2]]
    if case.biases:
        inputs += [model[2] for model in models]
    inputs += own_weights(case, place, row_weight)
    logits = [arrays[0] @ arrays[1].T + arrays[2], arrays[3] @ arrays[4].T + arrays[5]]
    exact = distillation(*logits, **reference_options(case, row_weight))
    loss = made(case, place, VocabParallelLinearDistillationLoss)
    check(case, place, loss, inputs, arrays[:3], *exact)


def wrong_arguments() -> None:
    """Each message names the argument, what was expected and what arrived."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    hidden, table = Tensor(np.ones((4, 3), np.float32)), Tensor(np.ones((5, 3), np.float32))
    double, loss = Tensor(np.ones((4, 3))), VocabParallelLinearDistillationLoss
    both = (hidden, table, hidden, table)
    for call, expected in (
        (lambda: loss(group="nobody"), "group 'nobody' cannot be used"),
        (lambda: loss(beta=2.0), "beta must be in [0, 1]"),
        (lambda: loss(temperature=0), "temperature must be above 0"),
        (lambda: loss(sequence_parallel=1), "sequence_parallel must be True or False, got 1"),
        (
            lambda: loss(sequence_parallel=True)(*both, None, None, table[:4, 0]),
            "row_weight must have shape (8,)",
        ),
        (
            lambda: loss(sequence_parallel=True)(hidden[0], table, hidden[0], table),
            "student_hidden must have a first axis",
        ),
        (lambda: loss(temperature_squared=1), "temperature_squared must be True or False"),
        (lambda: loss(reduction="batch"), "reduction must be 'none', 'mean' or 'sum'"),
        (lambda: loss(chunk_bytes=0), "chunk_bytes must be at least 1"),
        (lambda: loss(class_blocks=(5,)), "class_blocks must have 2 entries"),
        (lambda: loss(num_classes=11)(*both), "at most the 10 classes"),
        (lambda: loss()(hidden, table, hidden, table[:4]), "teacher_weight must have 5 rows"),
        (lambda: loss()(hidden, table, hidden[:2], table), "teacher_hidden must have shape (4, 3)"),
        (lambda: loss()(*both, table), "student_bias must have shape"),
        (lambda: loss()(*both, None, None, table), "row_weight must have shape (4,)"),
        (lambda: loss(reduction="sum")(*both, total_weight=2), "total_weight is the divisor"),
        (lambda: loss()(double, table, hidden, table), "student_hidden must have dtype float16"),
    ):
        message = message_of(call)
        assert message.startswith("VocabParallelLinearDistillationLoss: "), message
        assert expected in message, f"{expected!r} is not in {message!r}"


PROGRAMS = {"wrong arguments": wrong_arguments}


def checks(ranks: int, place_of: Callable) -> dict[str, Callable[[], None]]:
    """All of a job, by the names of `distillation_cases.distillation_names`."""
    cases = distillation_cases(ranks)
    computed = {case.name: lambda case=case: run(case, place_of) for case in cases}
    programs = {name: PROGRAMS[name] for name in DISTILLATION_PROGRAMS[ranks]}
    return {f"distillation: {name}": check for name, check in {**computed, **programs}.items()}
