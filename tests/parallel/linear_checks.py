"""One rank's checks of the linear loss: `checks(ranks, place_of)` are functions that raise AssertionError."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from linear_cases import FEATURES, LINEAR_PROGRAMS, ROWS_PER_RANK, LinearCase, draw, linear_cases
from mindspore import Parameter, Tensor, nn
from spmd_cases import GRAPH, JIT, PYNATIVE
from spmd_programs import CountedCalls, message_of, raised

from ms_ce import reference
from ms_ce.parallel import VocabParallelLinearCrossEntropyLoss
from tests.support.cases import round_to
from tests.support.linear_tolerances import check_linear

REFERENCE_OPTIONS = (
    "ignore_index",
    "reduction",
    "label_smoothing",
    "z_loss",
    "softcap",
    "logit_scale",
)


INPUTS = ("input", "linear_weight", "target", "linear_bias")


class Network(nn.Cell):
    """A loss that is one term of something larger: the upstream gradient is not 1."""

    def __init__(self, loss: nn.Cell):
        super().__init__()
        self.loss = loss

    def construct(self, *inputs):
        return (2 * self.loss(*inputs).astype(ms.float32)).sum()


def to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.astype(ms.float64).asnumpy()


def rounded(data: dict, dtype: str) -> dict:
    names = ("input", "linear_weight", "linear_bias")
    values = {n: None if data[n] is None else round_to(data[n], dtype) for n in names}
    if data["weight"] is not None:
        values["weight"] = data["weight"].astype(np.float32)
    return {**data, **values}


def own_inputs(case: LinearCase, place, data: dict) -> list[Tensor]:
    """This rank's rows and classes; rows of padding hold nan."""
    dtype = getattr(ms, case.dtype)
    padding = sum(case.blocks) - case.classes

    def block(values):
        width = ((0, padding), *((0, 0) for _ in values.shape[1:]))
        return Tensor(np.pad(values, width, constant_values=np.nan)[place.classes]).astype(dtype)

    rows = data["input"][place.rows]
    if case.sequence_parallel:
        rows = np.split(rows, case.class_ranks)[place.class_rank]
    target = data["target"][place.rows]
    if case.probabilities:
        width = ((0, 0), (0, padding))
        target = np.pad(target, width, constant_values=np.nan)[:, place.classes]
    if case.batch is not None:
        rows = rows.reshape(-1, case.batch, FEATURES)
        target = target.reshape(-1, case.batch, *target.shape[1:])
    inputs = [Tensor(rows).astype(dtype), block(data["linear_weight"]), Tensor(target)]
    if data["linear_bias"] is not None:
        inputs.append(block(data["linear_bias"]))
    if data["row_weight"] is not None:
        inputs.append(Tensor(data["row_weight"][place.rows]))
    if case.total_weight is not None:
        inputs.append(Tensor(case.total_weight, ms.float32))
    return inputs


def expected_results(case: LinearCase, place, data: dict) -> dict[str, np.ndarray]:
    """Loss, and the gradients of this rank's rows of input, its blocks of weight, bias and target, and of all class
    weights."""
    options = {name: case.loss[name] for name in REFERENCE_OPTIONS if name in case.loss}
    options["row_weight"] = data["row_weight"]
    weight, target, upstream = data["weight"], data["target"], 1 / (case.total_weight or 1)
    if case.total_weight is not None:
        options["reduction"] = "sum"
    logits = data["input"] @ data["linear_weight"].T
    if case.bias:
        logits = logits + data["linear_bias"]
    loss = reference.cross_entropy(logits, target, weight, **options).loss * upstream
    options["grad_loss"] = upstream
    if case.loss.get("reduction") == "none":
        loss = loss[place.rows]
    grads = reference.cross_entropy_grad(logits, target, weight, **options)
    slope = grads.logits[place.rows]
    if case.gradients_mean:
        slope = slope * case.row_ranks
    padding = sum(case.blocks) - case.classes
    grad_input = slope @ data["linear_weight"]
    if case.sequence_parallel:
        grad_input = np.split(grad_input, case.class_ranks)[place.class_rank]
    own = ((0, 0), (0, padding))
    slope = np.pad(slope, own)[:, place.classes]
    expected = {"weight": grads.weight}
    if case.probabilities:
        expected["target"] = np.pad(grads.target[place.rows], own)[:, place.classes]
    if case.batch is not None:
        grad_input = grad_input.reshape(-1, case.batch, FEATURES)
        loss = loss.reshape(-1, case.batch) if loss.ndim else loss
    return {
        **expected,
        "loss": loss,
        "input": grad_input,
        "linear_weight": slope.T @ data["input"][place.rows],
        "linear_bias": slope.sum(0),
    }


def run(case: LinearCase, place_of: Callable) -> None:
    """Raises AssertionError where this rank's loss or gradients are not those of the whole."""
    place = place_of(case, ROWS_PER_RANK)
    data = rounded(draw(case), case.dtype)
    weight = None if data["weight"] is None else Tensor(data["weight"])
    if case.trains_weight:
        weight = Parameter(weight, name="weight")
    loss = VocabParallelLinearCrossEntropyLoss(
        place.class_group,
        weight=weight,
        class_blocks=case.class_blocks,
        num_classes=case.num_classes,
        sequence_parallel=case.sequence_parallel,
        row_group=place.row_group if case.row_ranks > 1 else None,
        gradients_mean=case.gradients_mean,
        chunk_bytes=case.chunk_bytes,
        **case.loss,
    )
    inputs = own_inputs(case, place, data)
    ms.set_context(mode=ms.GRAPH_MODE if case.mode == GRAPH else ms.PYNATIVE_MODE)
    network = Network(loss)
    given = [True, True, case.probabilities, case.bias]
    names = [name for name, wanted in zip(INPUTS, given, strict=True) if wanted]
    positions = tuple(INPUTS.index(name) for name in names)
    trained = [loss.weight] if case.trains_weight else None
    function = ms.value_and_grad(network, positions, weights=trained)
    if case.mode == JIT:
        function = ms.jit(function)
    value, gradients = function(*inputs)
    if case.trains_weight:
        gradients, names = (*gradients[0], *gradients[1]), [*names, "weight"]
    expected = expected_results(case, place, data)
    backend = case.loss.get("backend", "cpu")
    # A mean over ranks that hold different rows is float32 whatever the input is.
    loss_dtype = "float32" if case.row_ranks > 1 else case.dtype
    if case.mode == PYNATIVE:  # where it is not one more compilation
        check_linear(to_numpy(loss(*inputs)), expected["loss"], backend, loss_dtype, "loss")
    check_linear(
        to_numpy(value) / 2, expected["loss"].sum(), backend, loss_dtype, "loss in training"
    )
    frozen = case.loss.get("frozen", ())
    for name, gradient in zip(names, gradients, strict=True):
        of = expected[name] * (name not in frozen)
        check_linear(to_numpy(gradient) / 2, of, backend, case.dtype, f"gradient of {name}")


def collectives(in_forward: bool, input_frozen: bool = False) -> None:
    """One for the statistics of each chunk with rows that count, one for the gradient of input where one is wanted."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    rows, classes, chunk_rows = 10, 4, 3
    loss = VocabParallelLinearCrossEntropyLoss(
        chunk_bytes=chunk_rows * classes * 4,
        gradient_in_forward=in_forward,
        frozen=("input",) if input_frozen else (),
    )
    statistics = CountedCalls(loss.location.gather.collective)
    hidden_sum = CountedCalls(loss.location.reduce)
    loss.location.gather.collective, loss.location.reduce = statistics, hidden_sum
    target = np.full(rows, -100, np.int32)
    target[2:8] = 1
    inputs = [np.ones(shape, np.float32) for shape in ((rows, FEATURES), (classes, FEATURES))]
    ms.value_and_grad(loss, (0, 1))(*map(Tensor, (*inputs, target)))
    assert statistics.count == 2, statistics.count
    assert statistics.elements == 2 * chunk_rows * 2 * 6, statistics.elements
    assert hidden_sum.count == (0 if input_frozen else 1), hidden_sum.count
    assert hidden_sum.elements == hidden_sum.count * rows * FEATURES, hidden_sum.elements


def wrong_arguments() -> None:
    """Each message names the argument, what was expected and what arrived."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    hidden, table = Tensor(np.ones((4, 3), np.float32)), Tensor(np.ones((5, 3), np.float32))
    target, double = Tensor([0, 1, 2, 3], ms.int32), Tensor(np.ones((4, 3)))
    loss = VocabParallelLinearCrossEntropyLoss
    for call, expected in (
        (lambda: loss(group="nobody"), "group 'nobody' cannot be used"),
        (lambda: loss(weight=[1.0]), "weight must be a mindspore.Tensor, got list"),
        (lambda: loss(sequence_parallel=1), "sequence_parallel must be True or False, got 1"),
        (lambda: loss(class_blocks=(5,)), "class_blocks must have 2 entries"),
        (lambda: loss(num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: loss(chunk_bytes=0), "chunk_bytes must be at least 1"),
        (lambda: loss(num_classes=11)(hidden, table, target), "at most the 10 classes"),
        (
            lambda: loss(class_blocks=(4, 4))(hidden, table, target),
            "linear_weight of rank",
        ),
        (
            lambda: loss()(hidden, table[:, :2], target),
            "linear_weight must have shape (C_local, 3)",
        ),
        (lambda: loss()(hidden, table[0], target), "linear_weight must have shape"),
        (lambda: loss()(hidden, table, target[:3]), "target must have shape (4,)"),
        (lambda: loss()(hidden, table, target.expand_dims(1)), "target of class indices must have"),
        (
            lambda: loss(sequence_parallel=True)(hidden, table, target),
            "target must have shape (8,) to match input (4, 3) of each of 2 ranks",
        ),
        (lambda: loss()(hidden, table, target, table[0]), "linear_bias must have shape (5,)"),
        (lambda: loss(weight=table[0])(hidden, table, target), "weight must have shape (10,)"),
        (lambda: loss()(double, double, target), "got float64"),
        (lambda: loss()(hidden, double, target), "linear_weight must have input's dtype"),
    ):
        message = message_of(call)
        assert message.startswith("VocabParallelLinear"), message
        assert expected in message, f"{expected!r} is not in {message!r}"


def label_out_of_range() -> None:
    """The kernel names the label, on every rank."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    hidden, table = Tensor(np.ones((4, 3), np.float32)), Tensor(np.ones((5, 3), np.float32))
    target, loss = Tensor([0, 1, 10, 3], ms.int32), VocabParallelLinearCrossEntropyLoss()
    expected = "target 10 at position (2,) is outside [0, 10)"
    raised(lambda: loss(hidden, table, target).asnumpy(), expected)


PROGRAMS = {
    "collectives, gradients in two sweeps": lambda: collectives(in_forward=False),
    "collectives, gradients in one sweep": lambda: collectives(in_forward=True),
    "collectives, frozen input": lambda: collectives(in_forward=True, input_frozen=True),
    "wrong arguments": wrong_arguments,
}
RAISING = {"label out of range": label_out_of_range}


def _named(programs: dict) -> dict[str, Callable[[], None]]:
    return {f"linear: {name}": check for name, check in programs.items()}


def checks_that_raise(ranks: int) -> dict[str, Callable[[], None]]:
    """Those after which the job can compute nothing more."""
    return _named({name: RAISING[name] for name in LINEAR_PROGRAMS[ranks] if name in RAISING})


def checks(ranks: int, place_of: Callable) -> dict[str, Callable[[], None]]:
    """All others of a job, by the names of `linear_cases.linear_names`."""
    computed = {case.name: lambda case=case: run(case, place_of) for case in linear_cases(ranks)}
    programs = {name: PROGRAMS[name] for name in LINEAR_PROGRAMS[ranks] if name in PROGRAMS}
    return _named({**computed, **programs})
