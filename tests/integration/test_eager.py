"""PyNative: which operators a gradient runs, and that it is right in every composition."""

from __future__ import annotations

import contextlib

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import ms_ce
from ms_ce import functional, reference
from ms_ce.ops import eager, pieces
from ms_ce.ops.cpu import library, losses

_random = np.random.default_rng(1)
ROWS, CLASSES, FEATURES = 6, 9, 4
LOGITS = _random.normal(size=(ROWS, CLASSES)).astype(np.float32)
TARGET = _random.integers(0, CLASSES, ROWS).astype(np.int32)
PROBABILITIES = _random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
WEIGHT = (_random.random(CLASSES) + 0.5).astype(np.float32)
GRADIENT = reference.cross_entropy_grad(LOGITS, TARGET).logits
FORWARD, BACKWARD, BOTH = (
    "CrossEntropyForward",
    "CrossEntropyBackward",
    "CrossEntropyValueAndGrad",
)


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(functional, "_LARGE_EAGER", 1)
    for operator in (losses._forward_with_gradient, losses._forward_with_gradients):
        monkeypatch.setattr(operator.derivative, "plain_calls", 0)


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernel's operations, in the order in which they run."""
    names, call = [], ops.Custom.__call__

    def noted(operator, *inputs):
        names.append(operator.func.split(":")[-1])
        return call(operator, *inputs)

    monkeypatch.setattr(ops.Custom, "__call__", noted)
    return names


def agree(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual.asnumpy(), expected, rtol=rtol, atol=1e-6)


def loss_of(**options):
    def loss(logits):
        return ms_ce.cross_entropy(logits, Tensor(TARGET), backend="cpu", **options)

    return loss


@pytest.mark.parametrize("reduction", ("mean", "sum"))
def test_one_pass_where_the_upstream_is_one(reduction, launched):
    gradient = ms.grad(loss_of(reduction=reduction))(Tensor(LOGITS))
    assert launched == [BOTH]
    agree(gradient, reference.cross_entropy_grad(LOGITS, TARGET, reduction=reduction).logits)


def test_two_passes_after_another_upstream(launched):
    loss = loss_of()
    for _ in range(eager._PLAIN_CALLS + 1):
        agree(ms.grad(lambda logits: 8 * loss(logits))(Tensor(LOGITS)), 8 * GRADIENT)
    assert launched == [BOTH, BACKWARD] + [FORWARD, BACKWARD] * eager._PLAIN_CALLS
    launched.clear()
    agree(ms.grad(loss)(Tensor(LOGITS)), GRADIENT)
    assert launched == [BOTH]


@pytest.mark.parametrize("options", ({"gradient_in_forward": False}, {"reduction": "none"}))
def test_two_passes(options, launched):
    loss = loss_of(**options)
    gradient = ms.grad(lambda logits: loss(logits).mean())(Tensor(LOGITS))
    rows = "Rows" if "reduction" in options else ""
    assert launched == [FORWARD + rows, BACKWARD]
    agree(gradient, GRADIENT)


def test_small_logits_take_two_passes(launched, monkeypatch):
    monkeypatch.setattr(functional, "_LARGE_EAGER", LOGITS.size + 1)
    agree(ms.grad(loss_of())(Tensor(LOGITS)), GRADIENT)
    assert launched == [FORWARD, BACKWARD]


@pytest.mark.mindspore(">=2.8", reason="PyNative does not tell which tensors need a gradient")
def test_nothing_is_recorded_for_nobody(launched):
    loss = loss_of()

    def detached(x):
        with ms._no_grad():
            value = loss(Tensor(LOGITS))
        return value + loss(ops.stop_gradient(x)) + x.sum()

    agree(ms.grad(detached)(Tensor(LOGITS)), np.ones_like(LOGITS))
    assert launched == [FORWARD, FORWARD]
    loss(Tensor(LOGITS))
    assert launched == [FORWARD] * 3


@pytest.mark.parametrize(
    ("wanted", "operators"),
    (
        ((0,), ["CrossEntropyBackward"]),
        ((1,), ["CrossEntropyTargetGrad"]),
        ((2,), ["CrossEntropyWeightGrad"]),
        ((0, 2), ["CrossEntropyBackward", "CrossEntropyWeightGrad"]),
    ),
)
def test_only_what_is_wanted(wanted, operators, launched):
    arrays = (LOGITS, PROBABILITIES, WEIGHT)
    tensors = [
        Parameter(Tensor(array), name=f"p{place}", requires_grad=place in wanted)
        for place, array in enumerate(arrays)
    ]

    def loss():
        return ms_ce.cross_entropy(*tensors, backend="cpu", gradient_in_forward=False)

    gradients = ms.grad(loss, None, [tensors[place] for place in wanted])()
    assert launched == [FORWARD, *operators]
    expected = reference.cross_entropy_grad(*arrays)
    for place, gradient in zip(wanted, gradients, strict=True):
        agree(gradient, (expected.logits, expected.target, expected.weight)[place])


@pytest.mark.mindspore(
    ">=2.8", reason="PyNative does not tell which tensors need a gradient", only={"stopped": True}
)
@pytest.mark.parametrize(
    ("upstream", "stopped", "operators"),
    [
        (1.0, False, ["CrossEntropyValueAndGrads"]),
        (1.0, True, [BOTH]),
        (0.5, False, ["CrossEntropyValueAndGrads", BACKWARD, "CrossEntropyTargetGrad"]),
    ],
)
def test_probabilities_with_both_gradients_in_the_forward_pass(
    upstream, stopped, operators, launched
):
    """A target that is an argument counts as wanted."""
    options = {"reduction": "sum", "label_smoothing": 0.1, "z_loss": 1e-3}

    def loss(logits, target):
        target = ops.stop_gradient(target) if stopped else target
        return upstream * ms_ce.cross_entropy(
            logits, target, Tensor(WEIGHT), backend="cpu", **options
        )

    gradients = ms.grad(loss, (0, 1))(Tensor(LOGITS), Tensor(PROBABILITIES))
    assert launched == operators
    settings = {**options, "grad_loss": np.array(upstream)}
    expected = reference.cross_entropy_grad(LOGITS, PROBABILITIES, WEIGHT, **settings)
    agree(gradients[0], expected.logits)
    agree(gradients[1], 0.0 * expected.target if stopped else expected.target)


@pytest.mark.parametrize("backend", ["cpu", "composed"])
def test_an_output_behind_an_integer_goes_through_a_cell_with_a_bprop(backend):
    """MindSpore loses count of the outputs behind one that has no gradient."""

    def value(logits):
        stats = ms_ce.cross_entropy_with_stats(logits, Tensor(TARGET), backend=backend)
        return stats[0] + pieces.total(stats[5])

    agree(ms.grad(value)(Tensor(LOGITS)), GRADIENT)


def test_probabilities_differentiated_twice(launched):
    """Gradients made in the forward pass would be constants to the second derivative."""
    direction = Tensor(_random.normal(size=(ROWS, CLASSES)).astype(np.float32))

    def along(logits, target):
        gradient = ms.grad(
            lambda x, t: ms_ce.cross_entropy(x, t, backend="cpu", reduction="sum"), (0, 1)
        )(logits, target)
        return (gradient[1] * direction).sum()

    second = ms.grad(along, 0)(Tensor(LOGITS), Tensor(PROBABILITIES))
    p = np.exp(LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True)))
    d = direction.asnumpy()  # of sum d (lse - x)
    agree(second, p * d.sum(1, keepdims=True) - d)


def test_vjp_twice():
    """Each call gets a gradient of its own, which it may change."""
    _, pull = ms.vjp(loss_of(), Tensor(LOGITS))
    first = pull(Tensor(1.0))
    first = first[0] if isinstance(first, tuple) else first
    first[0] = 9.0
    second = pull(Tensor(1.0))
    agree(second[0] if isinstance(second, tuple) else second, GRADIENT)


def test_the_gradient_of_a_step_is_not_that_of_the_next():
    step = ms.grad(loss_of())
    first = step(Tensor(LOGITS))
    second = step(Tensor(2 * LOGITS))
    agree(first, GRADIENT)
    agree(second, reference.cross_entropy_grad(2 * LOGITS, TARGET).logits)


def _changed_after_the_loss(change, in_forward):
    def changed(x):
        logits = x * 1
        loss = ms_ce.cross_entropy(
            logits, Tensor(TARGET), backend="cpu", gradient_in_forward=in_forward
        )
        if change == "assigned":
            logits[0] = 9.0
        elif change == "copied into":
            logits.copy_(logits * 2)
        else:
            logits.assign_value(logits * 2)
        return loss

    return ms.grad(changed)


@pytest.mark.parametrize("change", ("assigned", "replaced"))
def test_a_gradient_made_before_is_that_of_the_logits_as_they_were(change):
    agree(_changed_after_the_loss(change, True)(Tensor(LOGITS)), GRADIENT)


@pytest.mark.mindspore(">=2.8", reason="PyNative does not tell that a tensor was assigned to")
@pytest.mark.parametrize(
    ("change", "in_forward"),
    (("copied into", True), ("assigned", False), ("copied into", False), ("replaced", False)),
)
def test_logits_that_are_changed_afterwards_are_refused(change, in_forward):
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|assigned to"):
        _changed_after_the_loss(change, in_forward)(Tensor(LOGITS))


def test_hook():
    def hooked(x):
        logits = x * 1
        logits.register_hook(lambda gradient: gradient * 3)
        return loss_of()(logits)

    agree(ms.grad(hooked)(Tensor(LOGITS)), 3 * GRADIENT)


def test_used_twice():
    def twice(x):
        loss = loss_of()(x)
        return loss * loss + loss

    value = reference.cross_entropy(LOGITS, TARGET).loss
    agree(ms.grad(twice)(Tensor(LOGITS)), (2 * value + 1) * GRADIENT)


def test_views_and_transposed_logits():
    wide = np.ascontiguousarray(np.concatenate((LOGITS, LOGITS), 1).T)

    def of_a_view(x):
        return loss_of()(x.T[:, :CLASSES])

    expected = np.zeros_like(wide)
    expected[:CLASSES] = GRADIENT.T
    agree(ms.grad(of_a_view)(Tensor(wide)), expected)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64"))
def test_dtypes(dtype, launched):
    logits = Tensor(LOGITS).astype(getattr(ms, dtype))
    gradient = ms.grad(loss_of())(logits)
    assert launched == [BOTH]
    assert gradient.dtype == logits.dtype
    exact = logits.astype(ms.float64).asnumpy()
    expected = reference.cross_entropy_grad(exact, TARGET).logits
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3, "float64": 1e-12}[dtype]
    actual = gradient.astype(ms.float64).asnumpy()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_synchronous_mode(launched):
    ms.set_context(pynative_synchronize=True)
    try:
        agree(ms.grad(loss_of())(Tensor(LOGITS)), GRADIENT)
    finally:
        ms.set_context(pynative_synchronize=False)
    assert launched == [BOTH]


def test_third_derivative_is_refused():
    second = ms.grad(lambda x: ms.grad(lambda x: (ms.grad(loss_of())(x) ** 2).sum())(x).sum())
    with pytest.raises(NotImplementedError, match="end at the second order"):
        second(Tensor(LOGITS)).asnumpy()


def test_accumulated_micro_batches():
    network = nn.Dense(FEATURES, CLASSES)
    hidden = _random.normal(size=(ROWS, FEATURES)).astype(np.float32)
    halves = [(Tensor(hidden[part]), Tensor(TARGET[part])) for part in (slice(0, 3), slice(3, 6))]
    criterion = ms_ce.CrossEntropyLoss(reduction="sum", backend="cpu")
    step = ms.grad(lambda x, y: criterion(network(x), y), None, network.trainable_params())
    sums = [first + second for first, second in zip(*(step(*half) for half in halves), strict=True)]
    table, bias = network.weight.asnumpy(), network.bias.asnumpy()
    expected = reference.cross_entropy_grad(hidden @ table.T + bias, TARGET, reduction="sum").logits
    agree(sums[0], expected.T @ hidden, rtol=1e-4)
    agree(sums[1], expected.sum(axis=0), rtol=1e-4)


def test_recomputed_network():
    class Block(nn.Cell):
        def __init__(self):
            super().__init__()
            self.dense = nn.Dense(FEATURES, CLASSES)
            self.loss = ms_ce.CrossEntropyLoss(backend="cpu")

        def construct(self, hidden, target):
            return self.loss(self.dense(hidden), target)

    hidden = Tensor(_random.normal(size=(ROWS, FEATURES)).astype(np.float32))
    block, weights = Block(), None
    gradients = []
    for _ in range(2):
        weights = block.trainable_params()
        gradients.append(ms.grad(block, None, weights)(hidden, Tensor(TARGET)))
        block.recompute()
    for plain, recomputed in zip(*gradients, strict=True):
        agree(recomputed, plain.asnumpy())


def test_wrong_label_in_training():
    wrong = Tensor(np.array([0, 1, 2, CLASSES, 0, 0], np.int32))
    with pytest.raises(RuntimeError, match=f"target {CLASSES} at position"):
        ms.grad(lambda x: ms_ce.cross_entropy(x, wrong, backend="cpu"))(Tensor(LOGITS)).asnumpy()
    agree(ms.grad(loss_of())(Tensor(LOGITS)), GRADIENT)


def test_bits_are_those_of_a_graph():
    logits = Tensor(_random.normal(size=(37, 1001)).astype(np.float32) * 5)
    target = Tensor(_random.integers(0, 1001, 37))
    for choice in (True, False):
        loss = ms_ce.CrossEntropyLoss(backend="cpu", gradient_in_forward=choice)
        step = ms.value_and_grad(loss)
        compiled = ms.jit(step)(logits, target)
        for eager_one, graph_one in zip(step(logits, target), compiled, strict=True):
            assert eager_one.asnumpy().tobytes() == graph_one.asnumpy().tobytes()


def test_without_function(monkeypatch, launched):
    """An older MindSpore goes through its own way, to the same numbers."""
    monkeypatch.setattr(eager, "AVAILABLE", False)
    agree(ms.grad(loss_of())(Tensor(LOGITS)), GRADIENT)
    assert launched[0] == FORWARD


def test_linear_loss_called_twice_by_one_vjp():
    hidden = _random.normal(size=(ROWS, FEATURES)).astype(np.float32)
    table = _random.normal(size=(CLASSES, FEATURES)).astype(np.float32)

    def loss(hidden, table):
        return ms_ce.linear_cross_entropy(hidden, table, Tensor(TARGET), backend="cpu")

    _, pull = ms.vjp(loss, Tensor(hidden), Tensor(table))
    expected = reference.linear_cross_entropy_grad(hidden, table, TARGET)
    for upstream in (1.0, 2.0, 1.0):
        gradients = pull(Tensor(upstream))
        agree(gradients[0], upstream * expected.input)
        agree(gradients[1], upstream * expected.linear_weight)


@pytest.mark.parametrize(("rows", "waits"), ((3, 0), (1050, 1)))
def test_a_long_operation_is_waited_for_asleep(rows, waits, monkeypatch):
    waited = []
    operator = losses._forward

    @contextlib.contextmanager
    def noted():
        finished = library.load().MsCeFinished()
        with library.waiting():
            yield
        waited.append(library.load().MsCeFinished() > finished)

    monkeypatch.setattr(operator, "waiting", noted)
    ms_ce.cross_entropy(ops.zeros((rows, 1000)), ops.zeros((rows,), ms.int32), backend="cpu")
    assert waited == [True] * waits
