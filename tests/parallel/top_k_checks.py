"""One rank's checks of distillation from a stored teacher, in the manner of distillation_checks.py."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from distillation_checks import check, made, own_model, own_weights, reference_options
from mindspore import Tensor
from spmd_programs import message_of
from top_k_cases import ROWS_PER_RANK, TOP_K_PROGRAMS, TopKCase, draw, top_k_cases

from ms_ce.parallel import VocabParallelLinearTopKDistillationLoss
from ms_ce.reference_distillation import top_k_distillation
from tests.support.cases import round_to


def run(case: TopKCase, place_of: Callable) -> None:
    """Of one case."""
    place = place_of(case, ROWS_PER_RANK)
    student, log_probs, indices, row_weight = draw(case)
    student = [round_to(each, case.dtype).astype(np.float64) for each in student]
    hidden, weight, bias = own_model(case, place, student, row_weight)
    classes = Tensor(indices[place.rows]).astype(ms.int32)
    inputs = [hidden, weight, Tensor(log_probs[place.rows]), classes]
    if case.biases:
        inputs.append(bias)
    inputs += own_weights(case, place, row_weight)
    logits = student[0] @ student[1].T + student[2]
    exact = top_k_distillation(logits, log_probs, indices, **reference_options(case, row_weight))
    loss = made(case, place, VocabParallelLinearTopKDistillationLoss)
    check(case, place, loss, inputs, student, *exact)


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


def twice() -> None:
    """One rank holds the class, and loss and gradients of its row are nan on both, in a graph; PyNative raises."""
    hidden, table = Tensor(np.ones((3, 3), np.float32)), Tensor(np.ones((5, 3), np.float32))
    log_probs = Tensor(np.full((3, 2), -1.0, np.float32))
    classes = Tensor([[0, 9], [1, 1], [8, 8]], ms.int32)
    given = (hidden, table, log_probs, classes)
    expected = [[False] * 3, [True] * 3, [True] * 3]
    for beta, tail, reduction in ((0.0, True, "none"), (0.3, False, "sum"), (1.0, False, "mean")):
        loss = VocabParallelLinearTopKDistillationLoss(
            reduction=reduction, beta=beta, tail=tail, gradient_in_forward=tail
        )
        ms.set_context(mode=ms.PYNATIVE_MODE)
        message = message_of(lambda loss=loss: loss(*given))
        assert "no class twice in a row, got 1 twice" in message, message
        ms.set_context(mode=ms.GRAPH_MODE)
        losses = loss(*given).asnumpy()
        assert np.isnan(losses).tolist() == ([False, True, True] if reduction == "none" else True)
        of_hidden, of_table = ms.grad(loss, (0, 1))(*given)
        assert np.isnan(of_hidden.asnumpy()).tolist() == expected
        assert np.isnan(of_table.asnumpy()).all()


PROGRAMS = {"wrong arguments": wrong_arguments, "a class that is there twice": twice}


def checks(ranks: int, place_of: Callable) -> dict[str, Callable[[], None]]:
    """All of a job, by the names of `top_k_cases.top_k_names`."""
    computed = {case.name: lambda case=case: run(case, place_of) for case in top_k_cases(ranks)}
    programs = {name: PROGRAMS[name] for name in TOP_K_PROGRAMS[ranks]}
    return {
        f"top-k distillation: {name}": check for name, check in {**computed, **programs}.items()
    }
