"""Compile the drop-in loss for every rank of a mesh, run the graphs in lockstep, and write what came out as JSON.

    python partitioner_worker.py RESULT.json CASE [CASE ...]
"""

import json
import sys
from dataclasses import asdict

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from ms_ce.parallel import CrossEntropyLoss, ParallelConfig
from partitioner_cases import CASES, CLASSES_PER_RANK, Case, expected, make_inputs
from rig.compiler import compile_all_ranks, register_pretended_ascend
from rig.interpreter import run_lockstep

class WithGradients(nn.Cell):
    """(loss, gradient of the first input), and the gradient of the second where `of_label`.

    The upstream gradient is given: the one that MindSpore would fill in is computed on the pretended device. And each
    gradient is asked for by itself, since the partitioner fails on several inputs of a Cell with its own bprop.
    """

    def __init__(self, loss: nn.Cell, of_label: bool):
        super().__init__()
        self.loss, self.swapped, self.of_label = loss, Swapped(loss), of_label
        self.differentiate = ops.GradOperation(sens_param=True)
        self.upstream = Tensor([1.0])

    def construct(self, logits, label, mask):
        loss = self.loss(logits, label, mask)
        grad_logits = self.differentiate(self.loss)(logits, label, mask, self.upstream)
        if self.of_label:
            return loss, grad_logits, self.differentiate(self.swapped)(label, logits, mask, self.upstream)
        return loss, grad_logits


class Swapped(nn.Cell):
    def __init__(self, loss: nn.Cell):
        super().__init__()
        self.loss = loss

    def construct(self, label, logits, mask):
        return self.loss(logits, label, mask)


def run_case(case: Case) -> dict:
    config = ParallelConfig(case.data_parallel, case.model_parallel)
    inputs = inputs_by_rank(case)
    graphs = compile_all_ranks(
        lambda: WithGradients(CrossEntropyLoss(config, **case.loss), case.probabilities),
        [Tensor(value) for value in inputs[0]],
        case.ranks,
        **case.context,
    )
    outputs, exchanges = run_lockstep(graphs, inputs)
    return compare(case, [output[0] for output in outputs], exchanges)


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


def compare(case: Case, outputs: list, exchanges: list) -> dict:
    loss, grad_logits, grad_label = expected(case, *make_inputs(case))
    errors = {"logits": _error(whole_gradient(case, [one[1] for one in outputs]), grad_logits)}
    if case.probabilities:
        errors["label"] = _error(whole_gradient(case, [one[2] for one in outputs]), grad_label)
    return {
        "mesh": [case.data_parallel, case.model_parallel],
        "expected_loss": loss,
        "losses": [float(one[0][0]) for one in outputs],
        "loss_shapes": [list(one[0].shape) for one in outputs],
        "gradient_errors": errors,
        "exchanges": [[asdict(exchange) for exchange in rank] for rank in exchanges],
    }


def _error(actual: np.ndarray, wanted: np.ndarray) -> float:
    """nan where the result is; entries whose true value is infinite are left out."""
    finite = np.isfinite(wanted)
    return float(np.abs(actual[finite] - wanted[finite]).max())


class Classifier(nn.Cell):
    """A projection onto classes and the loss, as a language model ends."""

    def __init__(self, weight: np.ndarray, config: ParallelConfig):
        super().__init__()
        rows, classes = config.data_parallel, config.model_parallel
        self.weight = Parameter(Tensor(weight), name="weight")
        self.project = ops.MatMul(transpose_b=True).shard(((rows, 1), (classes, 1)))
        self.loss = CrossEntropyLoss(config)

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


def run_training(gradients_mean: bool) -> dict:
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
        lambda: WithWeightGradient(Classifier(weight, config)),
        [Tensor(value) for value in inputs],
        case.ranks,
        gradients_mean=gradients_mean,
    )
    blocks = np.split(weight, case.model_parallel)
    parameters = [{"network.weight": blocks[rank % case.model_parallel]} for rank in range(case.ranks)]
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


def run_refusal() -> str:
    """What the user reads when rows and classes do not divide by the mesh."""
    config = ParallelConfig(2, 2)
    inputs = [Tensor(np.zeros((4, 7), np.float32)), Tensor([0, 1, 2, 3], ms.int32), Tensor([1.0] * 4)]
    try:
        compile_all_ranks(lambda: CrossEntropyLoss(config), inputs, 4)
    except ValueError as error:
        return str(error)
    return "compiled"


def run_wrong_label() -> list[float]:
    """The loss of every rank when one label is out of range."""
    case = Case()
    logits, label, mask = make_inputs(case)
    label[5] = logits.shape[1]
    config = ParallelConfig(case.data_parallel, case.model_parallel)
    inputs = [logits, label, mask]
    graphs = compile_all_ranks(
        lambda: CrossEntropyLoss(config), [Tensor(value) for value in inputs], case.ranks
    )
    outputs, _ = run_lockstep(graphs, [inputs] * case.ranks)
    return [float(_only_tensor(output)[0]) for output in outputs]


def main(result_path: str, names: list[str]) -> None:
    register_pretended_ascend()
    results = {}
    for name in names:
        results[name] = run_case(CASES[name])
    results["weights, gradients summed"] = run_training(gradients_mean=False)
    results["weights, gradients averaged"] = run_training(gradients_mean=True)
    results["refusal"] = run_refusal()
    results["wrong label"] = run_wrong_label()
    with open(result_path, "w") as sink:
        json.dump(results, sink)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(CASES))
