"""One rank of an msrun job: compute each case on its share, compare with the reference, write the verdicts.

msrun ... spmd_worker.py DIRECTORY, in which wanted.json names the cases
"""

import json
import sys
from pathlib import Path

import distillation_checks
import linear_checks
import mindspore as ms
import numpy as np
import precision_programs
import spmd_programs
import token_checks
import top_k_checks
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import create_group, get_group_size, get_rank, init
from spmd_cases import GRAPH, JIT, PROGRAMS, ROWS_PER_RANK, Case, cases, draw, row_weight_of

from ms_ce import reference
from ms_ce.parallel import VocabParallelCrossEntropyLoss
from tests.support import docstrings
from tests.support.tolerances import check_close, tolerance

REFERENCE_OPTIONS = (
    "ignore_index",
    "reduction",
    "label_smoothing",
    "z_loss",
    "softcap",
    "logit_scale",
)


class Place:
    """Where a rank stands in a mesh, and the groups it belongs to."""

    made: set[str] = set()

    def __init__(self, case, rows_per_rank: int = ROWS_PER_RANK):
        rank = get_rank()
        self.row_rank, self.class_rank = divmod(rank, case.class_ranks)
        first = self.row_rank * case.class_ranks
        self.class_group = self._group(range(first, first + case.class_ranks))
        ranks = case.row_ranks * case.class_ranks
        self.row_group = self._group(range(self.class_rank, ranks, case.class_ranks))
        self.rows = slice(self.row_rank * rows_per_rank, (self.row_rank + 1) * rows_per_rank)
        begin = sum(case.blocks[: self.class_rank])
        self.classes = slice(begin, begin + case.blocks[self.class_rank])

    def _group(self, ranks: range) -> str:
        name = "ranks " + " ".join(map(str, ranks))
        if name not in self.made:
            create_group(name, list(ranks))
            self.made.add(name)
        return name


class Network(nn.Cell):
    def __init__(self, loss: nn.Cell):
        super().__init__()
        self.loss = loss

    def construct(self, *inputs):
        # A user's loss is one term of something larger: the upstream gradient is not 1.
        return (2 * self.loss(*inputs).astype(ms.float32)).sum()


def value_and_gradients(
    case: Case, loss: nn.Cell, inputs: list[Tensor]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The loss, and its gradients by name: logits, probabilities, and the weights if they are a Parameter."""
    ms.set_context(mode=ms.GRAPH_MODE if case.mode == GRAPH else ms.PYNATIVE_MODE)
    network = Network(loss)
    names = ["logits", "target"] if case.probabilities else ["logits"]
    parameters = network.trainable_params() or None
    function = ms.value_and_grad(network, tuple(range(len(names))), parameters)
    if case.mode == JIT:
        function = ms.jit(function)
    _, gradients = function(*inputs)
    if parameters is not None:
        names.append("weight")
    found = [to_numpy(one) / 2 for one in flat(gradients)]
    return to_numpy(loss(*inputs)), dict(zip(names, found, strict=True))


def flat(gradients: object) -> list[Tensor]:
    """MindSpore returns a lone gradient without a tuple."""
    if isinstance(gradients, Tensor):
        return [gradients]
    return [one for group in gradients for one in flat(group)]


def to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.astype(ms.float64).asnumpy()


def run(case: Case) -> None:
    """Raises AssertionError where this rank's loss or gradient is not that of the whole."""
    place = Place(case)
    logits, target, weight = draw(case)
    dtype = getattr(ms, case.dtype)
    padded = np.full((*logits.shape[:1], sum(case.blocks), *case.positions), np.nan)
    padded[:, : case.classes] = logits
    whole = Tensor(padded).astype(dtype)
    seen = to_numpy(whole)[:, : case.classes]
    own_target = target[place.rows]
    if case.probabilities:
        target = target.astype(np.float32)
        own_target = target[place.rows, place.classes]
    loss = VocabParallelCrossEntropyLoss(
        place.class_group,
        weight=None if weight is None else class_weight(weight, case.trains_weight),
        class_blocks=case.class_blocks,
        num_classes=case.num_classes,
        row_group=place.row_group if case.row_ranks > 1 else None,
        gradients_mean=case.gradients_mean,
        **case.loss,
    )
    own_logits = whole[place.rows, place.classes]
    if case.probabilities and case.num_classes:
        own_target = np.zeros(own_logits.shape, np.float32)
        held = target[place.rows, place.classes]
        own_target[:, : held.shape[1]] = held
    inputs, row_weight = [own_logits, Tensor(own_target)], row_weight_of(case)
    if row_weight is not None:
        inputs.append(Tensor(row_weight[place.rows]))
    if case.total_weight is not None:
        inputs.append(Tensor(case.total_weight, ms.float32))
    actual, gradients = value_and_gradients(case, loss, inputs)
    if "weight" in gradients and case.row_ranks > 1:
        rows_summed = ops.AllReduce(group=place.row_group)(Tensor(gradients["weight"], ms.float32))
        gradients["weight"] = to_numpy(rows_summed)
    compare(case, place, seen, target, weight, actual, gradients)


def class_weight(values: np.ndarray, trains: bool) -> Tensor:
    tensor = Tensor(values, ms.float32)
    return Parameter(tensor, name="class_weight") if trains else tensor


def compare(case: Case, place: Place, logits, target, weight, actual, gradients) -> None:
    options = {name: case.loss[name] for name in REFERENCE_OPTIONS if name in case.loss}
    options["row_weight"] = row_weight_of(case)
    weight = None if weight is None else weight.astype(np.float32)
    if case.total_weight is not None:
        options["reduction"] = "sum"
    expected = reference.cross_entropy(logits, target, weight, **options).loss
    if case.loss.get("reduction") == "none":
        expected = expected[place.rows]
    upstream = 1 / (case.total_weight or 1)
    wanted = reference.cross_entropy_grad(logits, target, weight, **options, grad_loss=upstream)
    expected = expected * upstream
    backend = case.loss.get("backend", "cpu")
    # A mean over ranks that hold different rows is float32 whatever the logits are.
    loss_dtype = "float32" if case.row_ranks > 1 else case.dtype
    check_close(actual, expected, loss_dtype, tolerance(backend, loss_dtype), "loss")
    for name, gradient in gradients.items():
        whole = wanted.weight if name == "weight" else own_block(case, place, wanted, name)
        whole = whole * (case.row_ranks if case.gradients_mean else 1)
        dtype = case.dtype if name == "logits" else "float32"
        check_close(gradient, whole, dtype, tolerance(backend, dtype), f"gradient of {name}")


def own_block(case: Case, place: Place, wanted: object, name: str) -> np.ndarray:
    """This rank's block of a gradient, which is 0 in the columns of padding."""
    gradient = getattr(wanted, name)
    whole = np.zeros((gradient.shape[0], sum(case.blocks), *gradient.shape[2:]))
    whole[:, : case.classes] = gradient
    return whole[place.rows, place.classes]


def example(name: str) -> None:
    ms.set_context(mode=ms.PYNATIVE_MODE)
    docstrings.check(name)


def main(directory: Path) -> None:
    ms.set_device("CPU")
    init()
    ranks = get_group_size()
    verdicts = {}
    checks = {case.name: lambda case=case: run(case) for case in cases(ranks)}
    checks |= linear_checks.checks(ranks, Place)
    checks |= token_checks.checks(ranks, Place)
    checks |= distillation_checks.checks(ranks, Place)
    checks |= top_k_checks.checks(ranks, Place)
    programs = [name for name in PROGRAMS[ranks] if name not in spmd_programs.RAISING]
    made = {**spmd_programs.PROGRAMS, **precision_programs.PROGRAMS}
    checks |= {name: made[name] for name in programs}
    checks |= {name: lambda name=name: example(name) for name in docstrings.NEED_RANKS}
    # After a kernel's error nothing runs but programs that look for one (spmd_programs.raised).
    raising = [name for name in PROGRAMS[ranks] if name in spmd_programs.RAISING]
    checks |= {name: spmd_programs.RAISING[name] for name in raising}
    checks |= linear_checks.checks_that_raise(ranks)
    checks |= token_checks.checks_that_raise(ranks)
    wanted = set(json.loads((directory / "wanted.json").read_text()))
    assert wanted <= set(checks), wanted - set(checks)
    for name, check in checks.items():
        if name not in wanted:
            continue
        try:
            check()
            verdicts[name] = "passed"
        except AssertionError as failure:
            verdicts[name] = str(failure)
        print(name, verdicts[name], flush=True)
    (directory / f"rank{get_rank()}.json").write_text(json.dumps(verdicts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
