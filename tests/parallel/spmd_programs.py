"""Checks of two ranks that are small programs of their own: `PROGRAMS[name]()` raises AssertionError."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import get_rank

import ms_ce
from ms_ce import reference
from ms_ce.parallel import (
    CrossEntropyLoss,
    GlobalMean,
    SumGradient,
    VocabParallelCrossEntropyLoss,
    global_mean,
    global_weight,
)
from tests.support.tolerances import check_close, tolerance

FEATURES, CLASSES, LEARNING_RATE = 4, 6, 0.5
# Rows of each rank; most of the second rank's are ignored.
ROWS, COUNTED = 6, (5, 1)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features and targets of both ranks, and the weights of a projection."""
    random = np.random.default_rng(5)
    features = random.normal(size=(2, ROWS, FEATURES)).astype(np.float32)
    target = random.integers(0, CLASSES, (2, ROWS))
    for rank, counted in enumerate(COUNTED):
        target[rank, counted:] = -100
    return features, target, random.normal(size=(CLASSES, FEATURES)).astype(np.float32)


def whole_gradient() -> np.ndarray:
    """Of the mean over both ranks' rows with respect to the projection's weights."""
    features, target, weight = (value.reshape(-1, value.shape[-1]) for value in data())
    logits = features.astype(np.float64) @ weight.T
    return reference.cross_entropy_grad(logits, target.reshape(-1)).logits.T @ features


def close(actual, expected, what: str) -> None:
    check_close(actual, expected, "float32", tolerance("cpu", "float32"), what)


class Classifier(nn.Cell):
    """A projection and the sum of its rows' losses, with the weight of the rows."""

    def __init__(self, weight: np.ndarray):
        super().__init__()
        self.weight = Parameter(Tensor(weight), name="weight")

    def construct(self, features, target):
        logits = ops.matmul(features, self.weight.T)
        stats = ms_ce.cross_entropy_with_stats(logits, target, reduction="sum")
        return stats[0], stats[1]


class WithGlobalMean(nn.Cell):
    def __init__(self, network: nn.Cell, gradients_mean: bool):
        super().__init__()
        self.network, self.mean = network, GlobalMean(gradients_mean=gradients_mean)

    def construct(self, features, target):
        loss_sum, total_weight = self.network(features, target)
        return self.mean(loss_sum, total_weight)


def train_one_step(gradients_mean: bool) -> None:
    """MindSpore's own training step, with its own reduction of gradients over the ranks."""
    features, target, weight = data()
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_auto_parallel_context(parallel_mode="data_parallel", gradients_mean=gradients_mean)
    try:
        network = WithGlobalMean(Classifier(weight), gradients_mean)
        optimizer = nn.SGD(network.trainable_params(), LEARNING_RATE)
        step = nn.TrainOneStepCell(network, optimizer)
        loss = step(Tensor(features[get_rank()]), Tensor(target[get_rank()]))
    finally:
        ms.reset_auto_parallel_context()
    logits = features.reshape(-1, FEATURES).astype(np.float64) @ weight.T
    close(loss.asnumpy(), reference.cross_entropy(logits, target.reshape(-1)).loss, "loss")
    moved = network.trainable_params()[0].asnumpy()
    close(moved, weight - LEARNING_RATE * whole_gradient(), "weights after a step")


def accumulate() -> None:
    """Two micro-batches of unequal numbers of tokens make the step of the whole batch."""
    features, target, weight = data()
    rank = get_rank()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = Classifier(weight)
    micro_batches = [(features[rank, :2], target[rank, :2]), (features[rank, 2:], target[rank, 2:])]
    counted = Tensor(float((target[rank] != -100).sum()), ms.float32)
    step_weight = global_weight(counted)
    assert float(step_weight) == sum(COUNTED)

    def share(features, target):
        loss_sum, total_weight = network(features, target)
        return global_mean(loss_sum, total_weight, step_weight=step_weight)

    differentiate = ms.value_and_grad(share, None, network.trainable_params())
    loss, gradient = 0.0, 0.0
    for one_features, one_target in micro_batches:
        one_loss, (one_gradient,) = differentiate(Tensor(one_features), Tensor(one_target))
        loss, gradient = loss + one_loss, gradient + one_gradient
    logits = features.reshape(-1, FEATURES).astype(np.float64) @ weight.T
    close(loss.asnumpy(), reference.cross_entropy(logits, target.reshape(-1)).loss, "loss")
    close(ops.AllReduce()(gradient).asnumpy(), whole_gradient(), "gradient")


def sum_gradient() -> None:
    """Hidden states that both ranks share get the gradient of all classes."""
    features, target, weight = data()
    features, target = features[0], target[0]
    columns = Tensor(np.split(weight, 2)[get_rank()])
    shared, loss = SumGradient(), VocabParallelCrossEntropyLoss()
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)

        def forward(hidden, target):
            return loss(ops.matmul(shared(hidden), columns.T), target)

        gradient = ms.grad(forward)(Tensor(features), Tensor(target))
        grad_logits = reference.cross_entropy_grad(features.astype(np.float64) @ weight.T, target)
        close(gradient.asnumpy(), grad_logits.logits @ weight, "gradient of the hidden states")


class CountedCalls:
    """Counts calls of a collective primitive."""

    def __init__(self, collective):
        self.collective, self.count, self.elements = collective, 0, 0

    def __call__(self, x):
        self.count, self.elements = self.count + 1, self.elements + x.size
        return self.collective(x)


def one_collective() -> None:
    """Forward sends six floats a row into a slot for each rank; backward sends nothing."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    loss = VocabParallelCrossEntropyLoss()
    counted = CountedCalls(loss.rows.location.gather.collective)
    loss.rows.location.gather.collective = counted
    logits, target = Tensor(np.zeros((ROWS, 3), np.float32)), Tensor(np.zeros(ROWS, np.int32))
    ms.value_and_grad(loss)(logits, target)
    assert counted.count == 1, counted.count
    assert counted.elements == 2 * 6 * ROWS, counted.elements


def drop_in(mode: str) -> None:
    """Without a partitioner the drop-in is that of one device, whatever its mesh."""
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    random = np.random.default_rng(2)
    logits = random.normal(size=(6, 5)).astype(np.float32)
    logits[1] = np.nan
    label = np.array([0, 9, 2, -100, 4, 1], np.int32)
    mask = np.array([True, False, True, True, True, True])
    weight = np.array([0.5, 1.0, 2.0, 1.0, 0.25], np.float32)
    options = {"weight": weight, "label_smoothing": 0.1, "z_loss": 0.01}
    loss = CrossEntropyLoss(calculate_per_token_loss=True, **options)

    def sums(logits, label, mask):
        numerator, denominator = loss(logits, label, mask)
        return numerator, denominator

    function = ms.value_and_grad(sums, 0, None, True)
    if mode == "jit":
        function = ms.jit(function)
    (numerator, denominator), gradient = function(Tensor(logits), Tensor(label), Tensor(mask))
    rows = mask & (label != -100)
    expected = reference.cross_entropy(logits[rows], label[rows], reduction="sum", **options)
    assert numerator.shape == ()
    assert denominator.shape == (1,)
    close(numerator.asnumpy(), expected.loss, "numerator")
    close(denominator.asnumpy(), [expected.total_weight], "denominator")
    expected_gradient = np.zeros(logits.shape)
    expected_gradient[rows] = reference.cross_entropy_grad(
        logits[rows], label[rows], reduction="sum", **options
    ).logits
    close(gradient.asnumpy(), expected_gradient, "gradient")


def not_finite() -> None:
    """The message names the rank that it happened on; the other rank goes on."""
    loss = CrossEntropyLoss(check_for_nan_in_loss_and_grad=True)
    logits = np.zeros((2, 3), np.float32)
    if get_rank() == 1:
        logits[0, 0] = np.nan
    inputs = [Tensor(logits), Tensor([0, 1], ms.int32), Tensor([1.0, 1.0])]
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        message = message_of(lambda: loss(*inputs).asnumpy())
        assert ("rank 1: the local loss is not finite" in message) == (get_rank() == 1), message


def message_of(call) -> str:
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    return ""


def wrong_arguments() -> None:
    """Each message names the argument, what was expected and what arrived."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    logits, target = Tensor(np.zeros((2, 3), np.float32)), Tensor([0, 1], ms.int32)
    loss = VocabParallelCrossEntropyLoss
    columns = 3 if get_rank() == 0 else 4
    for call, expected in (
        (lambda: loss(group="nobody"), "group 'nobody' cannot be used"),
        (lambda: loss(group=3), "a group must be the name"),
        (lambda: loss(weight=[1.0]), "weight must be a mindspore.Tensor, got list"),
        (lambda: loss(class_blocks=(1, 2, 3)), "class_blocks must have 2 entries"),
        (lambda: loss(class_blocks=(3, 0)), "class_blocks[1] must be at least 1, got 0"),
        (lambda: loss(num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: loss(reduction="max"), "reduction must be 'none', 'mean' or 'sum'"),
        (lambda: loss(weight=Tensor([1.0]))(logits, target), "weight must have shape (6,)"),
        (lambda: loss(num_classes=9)(logits, target), "at most the 6 classes"),
        (
            lambda: loss(class_blocks=(2, 2))(logits, target),
            "must have 2 classes (class_blocks), got 3",
        ),
        (lambda: loss()(logits[0], target), "target of dtype int32 must have 0 dimensions"),
        (lambda: loss()(logits[0], target[0]), "logits must have shape (N, C_local, …)"),
    ):
        message = message_of(call)
        assert expected in message, f"{expected!r} is not in {message!r} ({columns})"


def raised(call, expected: str) -> None:
    """Kernels raise while Python goes on: PyNative may tell an earlier program's error first, and this one's again."""
    messages = [message_of(call) for _ in range(3)]
    assert any(expected in message for message in messages), messages


def label_out_of_range() -> None:
    """The kernel names the label, on every rank."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    logits, target = Tensor(np.zeros((2, 3), np.float32)), Tensor([0, 6], ms.int32)
    loss = VocabParallelCrossEntropyLoss()
    raised(lambda: loss(logits, target).asnumpy(), "target 6 at position (1,) is outside [0, 6)")


PROGRAMS = {
    "accumulated micro-batches": accumulate,
    "TrainOneStepCell, gradients summed": lambda: train_one_step(gradients_mean=False),
    "TrainOneStepCell, gradients averaged": lambda: train_one_step(gradients_mean=True),
    "SumGradient": sum_gradient,
    "one collective forward, none backward": one_collective,
    "drop-in pynative": lambda: drop_in("pynative"),
    "drop-in graph": lambda: drop_in("graph"),
    "drop-in jit": lambda: drop_in("jit"),
    "check_for_nan names the rank": not_finite,
    "wrong arguments": wrong_arguments,
}
RAISING = {"label out of range": label_out_of_range}
