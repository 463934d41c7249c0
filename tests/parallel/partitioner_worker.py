"""Compile the drop-in loss for every rank of a mesh, run the graphs in lockstep, and write what came out as JSON.

python partitioner_worker.py RESULT.json CASE [CASE ...]
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.composite.base import _Grad
from partitioner_cases import CASES, CLASSES_PER_RANK, Case, expected, make_inputs
from rig import kernels
from rig.compiler import compile_all_ranks, register_pretended_ascend
from rig.interpreter import run_lockstep

import ms_ce
from ms_ce import reference
from ms_ce.backend import partitioned
from ms_ce.parallel import CrossEntropyLoss, ParallelConfig, finite, shard

SHARDED_CELL_OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 20.0, "logit_scale": 0.7}


class WithGradient(nn.Cell):
    """(loss, gradient of the first input).

    The upstream gradient is given: the one that MindSpore would fill in is computed on the pretended device. Only one
    input at a time, since the partitioner fails on several inputs of a Cell with its own bprop.
    """

    def __init__(self, loss: nn.Cell):
        super().__init__()
        self.loss, self.upstream = loss, Tensor([1.0])
        self.differentiate = _Grad(sens_param=True, get_value=True)

    def construct(self, first, second, mask):
        return self.differentiate(self.loss)(first, second, mask, self.upstream)


class WithGivenUpstream(nn.Cell):
    """(loss, gradient of the first input) of a scalar loss, whose upstream gradient is an input."""

    def __init__(self, loss: nn.Cell):
        super().__init__()
        self.loss = loss
        self.differentiate = _Grad(sens_param=True, get_value=True)

    def construct(self, logits, target, upstream):
        return self.differentiate(self.loss)(logits, target, upstream)


class LabelFirst(nn.Cell):
    def __init__(self, loss: nn.Cell):
        super().__init__()
        self.loss = loss

    def construct(self, label, logits, mask):
        return self.loss(logits, label, mask)


def run_case(case: Case) -> dict:
    config = ParallelConfig(case.data_parallel, case.model_parallel)
    loss, grad_logits, grad_label = expected(case, *make_inputs(case))

    def make_loss() -> CrossEntropyLoss:
        return CrossEntropyLoss(config, backend=case.backend, **case.loss)

    kernel_calls = kernels.calls
    outputs, exchanges = compile_and_run(
        case, lambda: WithGradient(make_loss()), inputs_by_rank(case)
    )
    kernel_calls = kernels.calls - kernel_calls
    errors = {"logits": _error(whole_gradient(case, [one[1] for one in outputs]), grad_logits)}
    if case.probabilities:
        label_outputs, _ = compile_and_run(
            case,
            lambda: WithGradient(LabelFirst(make_loss())),
            [[label, logits, mask] for logits, label, mask in inputs_by_rank(case)],
        )
        errors["label"] = _error(
            whole_gradient(case, [one[1] for one in label_outputs]), grad_label
        )
    return {
        "mesh": [case.data_parallel, case.model_parallel],
        "kernel_calls": kernel_calls,
        "expected_loss": loss,
        "losses": [float(one[0][0]) for one in outputs],
        "loss_shapes": [list(one[0].shape) for one in outputs],
        "gradient_errors": errors,
        "exchanges": [[asdict(exchange) for exchange in rank] for rank in exchanges],
    }


def compile_and_run(
    case: Case, make_cell: Callable[[], nn.Cell], inputs: list
) -> tuple[list, list]:
    tensors = [Tensor(value) for value in inputs[0]]
    graphs = compile_all_ranks(make_cell, tensors, case.ranks, **case.context)
    outputs, exchanges = run_lockstep(graphs, inputs)
    return [output[0] for output in outputs], exchanges


def inputs_by_rank(case: Case) -> list[list[np.ndarray]]:
    """The whole batch for every rank, or its rows where the context says that the batch arrives split."""
    whole = make_inputs(case)
    if "dataset_strategy" not in case.context:
        return [list(whole)] * case.ranks
    parts = [np.split(value, case.data_parallel) for value in whole]
    return [[part[rank // case.model_parallel] for part in parts] for rank in range(case.ranks)]


def whole_gradient(case: Case, blocks: list[np.ndarray]) -> np.ndarray:
    """Each rank returns the gradient of its own block inside zeros, of its rows only where the batch is split."""
    summed = np.stack(blocks).astype(np.float64)
    if "dataset_strategy" not in case.context:
        return summed.sum(0)
    by_row = summed.reshape(case.data_parallel, case.model_parallel, *summed.shape[1:]).sum(1)
    return by_row.reshape(-1, *by_row.shape[2:])


def _error(actual: np.ndarray, wanted: np.ndarray) -> float:
    """nan where the result is, or is not infinite where the true value is."""
    finite = np.isfinite(wanted)
    if not np.array_equal(actual[~finite], wanted[~finite]):
        return math.nan
    return float(np.abs(actual[finite] - wanted[finite]).max())


class Classifier(nn.Cell):
    """A projection onto classes and the loss, as a language model ends."""

    def __init__(self, weight: np.ndarray, config: ParallelConfig, backend: str):
        super().__init__()
        rows, classes = config.data_parallel, config.model_parallel
        self.weight = Parameter(Tensor(weight), name="weight")
        self.project = ops.MatMul(transpose_b=True).shard(((rows, 1), (classes, 1)))
        self.loss = CrossEntropyLoss(config, backend=backend)

    def construct(self, features, label, mask):
        return self.loss(self.project(features, self.weight), label, mask)


class WithWeightGradient(nn.Cell):
    """The gradient of the weights, as TrainOneStepCell takes it."""

    def __init__(self, network: nn.Cell):
        super().__init__()
        self.network, self.weights = network, network.trainable_params()
        self.differentiate = ops.GradOperation(get_by_list=True, sens_param=True)
        self.upstream = Tensor([1.0])

    def construct(self, features, label, mask):
        return self.differentiate(self.network, self.weights)(features, label, mask, self.upstream)


def run_training(gradients_mean: bool, backend: str) -> dict:
    """Every rank's gradient of its block of the weights, against the reference's.

    The loss is the mean over the whole batch, so that gradients have to be summed over the data-parallel ranks. With
    gradients_mean the engine divides that sum by their number, for this loss as for any other.
    """
    case, hidden = Case(), 5
    _, label, mask = make_inputs(case)
    draw = np.random.default_rng(3)
    features = draw.normal(size=(len(label), hidden)).astype(np.float32)
    classes = CLASSES_PER_RANK * case.model_parallel
    weight = draw.normal(size=(classes, hidden)).astype(np.float32)
    config = ParallelConfig(case.data_parallel, case.model_parallel)
    inputs = [features, label, mask]
    graphs = compile_all_ranks(
        lambda: WithWeightGradient(Classifier(weight, config, backend)),
        [Tensor(value) for value in inputs],
        case.ranks,
        gradients_mean=gradients_mean,
    )
    blocks = np.split(weight, case.model_parallel)
    parameters = [
        {"network.weight": blocks[rank % case.model_parallel]} for rank in range(case.ranks)
    ]
    outputs, exchanges = run_lockstep(graphs, [inputs] * case.ranks, parameters)
    _, grad_logits, _ = expected(case, features.astype(np.float64) @ weight.T, label, mask)
    divisor = case.data_parallel if gradients_mean else 1
    wanted = np.split(grad_logits.T @ features / divisor, case.model_parallel)
    actual = [_only_tensor(output) for output in outputs]
    return {
        "gradient_errors": [
            _error(one, wanted[rank % case.model_parallel]) for rank, one in enumerate(actual)
        ],
        "exchanges": [[asdict(exchange) for exchange in rank] for rank in exchanges],
    }


def _only_tensor(output: object) -> np.ndarray:
    while not isinstance(output, np.ndarray):
        (output,) = output
    return output


def run_refusal(classes: int, devices: int) -> str:
    """What the user reads when a 2x2 mesh fits neither the logits nor the devices."""
    config = ParallelConfig(2, 2)
    inputs = [
        Tensor(np.zeros((4, classes), np.float32)),
        Tensor([0, 1, 2, 3], ms.int32),
        Tensor([1.0] * 4),
    ]
    try:
        compile_all_ranks(lambda: CrossEntropyLoss(config, backend="composed"), inputs, devices)
    except ValueError as error:
        return str(error)
    return "compiled"


def run_wrong_label(backend: str) -> list[float]:
    """The loss of every rank when one label is out of range."""
    case = Case()
    logits, label, mask = make_inputs(case)
    label[5] = logits.shape[1]
    config = ParallelConfig(case.data_parallel, case.model_parallel)
    inputs = [logits, label, mask]
    graphs = compile_all_ranks(
        lambda: CrossEntropyLoss(config, backend=backend),
        [Tensor(value) for value in inputs],
        case.ranks,
    )
    outputs, _ = run_lockstep(graphs, [inputs] * case.ranks)
    return [float(_only_tensor(output)[0]) for output in outputs]


class _Divided(nn.Cell):
    """A loss with its divisor from outside."""

    def __init__(self, loss: nn.Cell, total_weight: float):
        super().__init__()
        self.loss, self.total_weight = loss, total_weight

    def construct(self, logits, target):
        return self.loss(logits, target, total_weight=self.total_weight)


def run_sharded_cell(reduction: str, backend: str, total_weight: float | None = None) -> dict:
    """The ordinary Cell with every option, split over a mesh."""
    case = Case()
    random = np.random.default_rng(8)
    logits = (3 * random.normal(size=(8, 12))).astype(np.float32)
    target = random.integers(0, 12, 8).astype(np.int32)
    target[2] = -100
    weight = random.uniform(0.2, 2, 12).astype(np.float32)
    options = {"reduction": reduction, **SHARDED_CELL_OPTIONS}
    config = ParallelConfig(case.data_parallel, case.model_parallel)
    upstream = np.float32(1)
    inputs = [[logits, target, upstream]] * case.ranks

    def make_loss() -> nn.Cell:
        loss = ms_ce.CrossEntropyLoss(Tensor(weight), backend=backend, **options)
        sharded = shard(loss, config)
        return sharded if total_weight is None else _Divided(sharded, total_weight)

    outputs, exchanges = compile_and_run(case, lambda: WithGivenUpstream(make_loss()), inputs)
    if total_weight is not None:
        options["reduction"] = "sum"
    expected_loss = reference.cross_entropy(logits, target, weight, **options).loss
    share = 1 / (total_weight or 1)
    gradient = reference.cross_entropy_grad(
        logits, target, weight, **options, grad_loss=share
    ).logits
    return {
        "losses": [float(np.ravel(one[0])[0]) for one in outputs],
        "expected_loss": float(expected_loss) * share,
        "gradient_error": _error(whole_gradient(case, [one[1] for one in outputs]), gradient),
        "exchanges": [[asdict(exchange) for exchange in rank] for rank in exchanges],
    }


def run_check() -> dict[str, list[str]]:
    """What each rank's host raises after a step: with a logit of nan in the first two ranks' rows, and without."""
    case = Case()
    logits, label, mask = make_inputs(case)
    losses: list[CrossEntropyLoss] = []

    def make_cell() -> nn.Cell:
        losses.append(CrossEntropyLoss(ParallelConfig(2, 2), True, backend=case.backend))
        return WithGradient(losses[-1])

    graphs = compile_all_ranks(
        make_cell, [Tensor(one) for one in (logits, label, mask)], case.ranks
    )
    raised = {}
    for step, logit in (("bad", np.nan), ("good", 1.0)):
        logits[0, 3] = logit
        left = [
            {name.split(":")[-1]: np.zeros((), np.float32) for name in graph.parameters}
            for graph in graphs
        ]
        run_lockstep(graphs, [[logits, label, mask]] * case.ranks, left)
        raised[step] = [_raised_by(loss, rank, left[rank]) for rank, loss in enumerate(losses)]
        raised[f"{step} gradient"] = [
            _raised_by(loss, rank, left[rank] | {"loss.recorded_loss.latest": np.float32(0)})
            for rank, loss in enumerate(losses)
        ]
    return raised


def _raised_by(loss: CrossEntropyLoss, rank: int, left: dict[str, np.ndarray]) -> str:
    """The message of the callback where a graph left these values in the loss's parameters."""
    finite.get_rank = lambda: rank
    loss.recorded_loss.latest.set_data(Tensor(left["loss.recorded_loss.latest"]))
    loss.recorded_gradient.latest.set_data(Tensor(left["loss.recorded_gradient.latest"]))
    try:
        loss.callback().on_train_step_end(None)
    except ValueError as error:
        return str(error)
    return ""


def run_choice() -> list[str]:
    """What 'auto' takes in a partitioned graph, with the kernels installed and without."""
    chosen = [partitioned()]
    with kernels.uninstalled():
        chosen.append(partitioned())
    return chosen


EXTRAS = {
    "sharded cell, mean": lambda: run_sharded_cell("mean", "composed"),
    "sharded cell, sum": lambda: run_sharded_cell("sum", "composed"),
    "sharded cell, divisor from outside": lambda: run_sharded_cell("mean", "composed", 7.5),
    "fused sharded cell, mean": lambda: run_sharded_cell("mean", "auto"),
    "weights, gradients summed": lambda: run_training(False, "composed"),
    "weights, gradients averaged": lambda: run_training(True, "composed"),
    "fused weights, gradients summed": lambda: run_training(False, "auto"),
    "refusal": lambda: run_refusal(classes=7, devices=4),
    "refusal of copies": lambda: run_refusal(classes=8, devices=8),
    "wrong label": lambda: run_wrong_label("composed"),
    "fused wrong label": lambda: run_wrong_label("ascend"),
    "check after the step": run_check,
    "choice": run_choice,
}


def main(result_path: str, names: list[str]) -> None:
    register_pretended_ascend()
    kernels.pretend_installed(Path.cwd())
    results = {name: EXTRAS[name]() if name in EXTRAS else run_case(CASES[name]) for name in names}
    with open(result_path, "w") as sink:
        json.dump(results, sink)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
