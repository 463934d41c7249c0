"""Gradients of the linear loss that nobody wants are not made, and no other one changes by that."""

from __future__ import annotations

import copy

import mindspore as ms
import mindspore.train.mind_ir_pb2 as mindir_protocol
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.api import _cell_graph_executor

import ms_ce
from ms_ce import reference
from ms_ce.ops import linear_sweep
from tests.linear_tolerances import check_linear

ROWS, FEATURES, CLASSES, CHUNK_ROWS = 23, 4, 30, 4
NAMES = ("input", "linear_weight", "linear_bias")
FROZEN = (
    ("input",),
    ("linear_weight",),
    ("linear_bias",),
    ("input", "linear_weight"),
    ("linear_weight", "linear_bias"),
    NAMES,
)
CHUNKS = {"chunk_bytes": CHUNK_ROWS * CLASSES * 4}
PLAIN = {"chunk_bytes": ROWS * CLASSES * 4}


def draw() -> list[np.ndarray]:
    """input, linear_weight, target, linear_bias."""
    random = np.random.default_rng(3)
    target = random.integers(0, CLASSES, ROWS).astype(np.int32)
    target[:3] = -100
    hidden, linear_weight, bias = (
        random.normal(size=shape).astype(np.float32)
        for shape in ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    )
    return [hidden, linear_weight, target, bias]


def expected_gradients(data, grad_loss=1.0, **options) -> dict[str, np.ndarray]:
    grads = reference.linear_cross_entropy_grad(*data, grad_loss=np.array(grad_loss), **options)
    return {name: getattr(grads, name) for name in NAMES}


def check(gradient, expected, backend, what):
    check_linear(gradient.asnumpy(), expected, backend, "float32", what)


def _forms():
    """Every form where Python runs; a loop takes seconds to compile, so of those the ones that differ."""
    for form in ("one sweep", "two sweeps", "none", "stats", "plain"):
        for names in FROZEN:
            for backend in ("cpu", "composed"):
                yield form, names, backend, "pynative"
            if form != "plain":
                yield form, names, "cpu", "jit"
    yield "one sweep", ("linear_weight",), "cpu", "graph"
    for form in ("one sweep", "two sweeps"):
        for names in (("input",), ("linear_weight", "linear_bias")):
            yield form, names, "composed", "jit"


@pytest.mark.parametrize(
    ("form", "frozen", "backend", "run"),
    [pytest.param(*each, id="-".join(map(str, each)).replace(" ", "-")) for each in _forms()],
    indirect=["run"],
)
def test_frozen_inputs_are_constants(form, frozen, backend, run):
    """Their gradient is 0, and that of the others is what it was."""
    options = {"backend": backend, "frozen": frozen, **(PLAIN if form == "plain" else CHUNKS)}
    if form == "none":
        options["reduction"] = "none"

    def loss(input, linear_weight, target, linear_bias):
        if form == "stats":
            return (
                3
                * ms_ce.linear_cross_entropy_with_stats(
                    input, linear_weight, target, linear_bias, **options
                )[0]
            )
        in_forward = form == "one sweep"
        return 3 * ms_ce.linear_cross_entropy(
            input, linear_weight, target, linear_bias, gradient_in_forward=in_forward, **options
        )

    data = draw()
    reduction = {"reduction": "none"} if form == "none" else {}
    upstream = np.full(ROWS, 3.0) if form == "none" else 3.0
    expected = expected_gradients(data, upstream, **reduction)
    gradients = run(ms.grad(loss, (0, 1, 3)), *map(Tensor, data))
    for name, gradient in zip(NAMES, gradients, strict=True):
        check(gradient, expected[name] * (name not in frozen), backend, name)


class Network(nn.Cell):
    """hidden = x·A, then the loss: A is what is trained below the head."""

    def __init__(self, backend, gradient_in_forward=True, tied=None, stop=False, **options):
        super().__init__()
        self.adapter = Parameter(Tensor(np.eye(FEATURES, dtype=np.float32)), name="adapter")
        self.stop = stop
        self.loss = ms_ce.LinearCrossEntropyLoss(
            FEATURES,
            CLASSES if tied is None else tied,
            bias=True,
            backend=backend,
            gradient_in_forward=gradient_in_forward,
            **CHUNKS,
            **options,
        )
        _, linear_weight, _, bias = draw()
        self.loss.linear_weight.set_data(Tensor(linear_weight))
        self.loss.linear_bias.set_data(Tensor(bias))

    def construct(self, x, target):
        hidden = ops.matmul(x, self.adapter)
        return self.loss(ops.stop_gradient(hidden) if self.stop else hidden, target)

    def parts(self) -> dict[str, Parameter]:
        head = self.loss
        return {
            "adapter": self.adapter,
            "linear_weight": head.linear_weight,
            "linear_bias": head.linear_bias,
        }


class Step(nn.Cell):
    """(loss, gradients of `weights`): what a training step computes."""

    def __init__(self, network, weights):
        super().__init__()
        self.compute = ms.value_and_grad(network, None, weights=weights)

    def construct(self, x, target):
        return self.compute(x, target)


def check_step(step, names, backend) -> None:
    hidden, _, target, _ = data = draw()
    expected = expected_gradients(data)
    expected["adapter"] = hidden.T @ expected["input"]
    loss, gradients = step(Tensor(hidden), Tensor(target))
    check(loss, reference.linear_cross_entropy(*data).loss, backend, "loss")
    for name, gradient in zip(names, gradients, strict=True):
        check(gradient, expected[name], backend, f"gradient of {name}")


def training_step(network, run_mode):
    """(step, names): the gradients of what requires one."""
    trained = {name: part for name, part in network.parts().items() if part.requires_grad}
    step = Step(network, list(trained.values()))
    if run_mode == "jit":
        compute = step.compute

        @ms.jit
        def compiled(x, target):
            return compute(x, target)

        return compiled, list(trained)
    return step, list(trained)


@pytest.fixture(params=("pynative", "jit", "graph"))
def mode(request):
    if request.param == "graph":
        ms.set_context(mode=ms.GRAPH_MODE)
    yield request.param
    ms.set_context(mode=ms.PYNATIVE_MODE)


# What is frozen, as users do it.
PRACTICE = {
    "adapters below a frozen head": ("linear_weight", "linear_bias"),
    "frozen table, trained bias": ("linear_weight",),
    "bias alone": ("adapter", "linear_weight"),
    "head alone": ("adapter",),
    "everything": (),
}


def _practices():
    for practice in PRACTICE:
        for gradient_in_forward in (True, False):
            for mode in ("pynative", "jit", "graph"):
                yield practice, gradient_in_forward, "cpu", mode
            yield practice, gradient_in_forward, "composed", "pynative"
    yield "adapters below a frozen head", True, "composed", "jit"
    yield "head alone", False, "composed", "graph"


@pytest.mark.parametrize(
    ("practice", "gradient_in_forward", "backend", "mode"), list(_practices()), indirect=["mode"]
)
def test_training_with_frozen_parameters(practice, gradient_in_forward, backend, mode):
    network = Network(backend, gradient_in_forward)
    for name in PRACTICE[practice]:
        network.parts()[name].requires_grad = False
    step, names = training_step(network, mode)
    check_step(step, names, backend)


@pytest.mark.parametrize(
    ("backend", "mode"),
    [("cpu", "pynative"), ("cpu", "jit"), ("cpu", "graph"), ("composed", "pynative")],
    indirect=["mode"],
)
def test_tied_table_that_is_frozen(backend, mode):
    embedding = Parameter(Tensor(draw()[1]), name="embedding", requires_grad=False)
    step, names = training_step(Network(backend, tied=embedding), mode)
    assert names == ["adapter", "linear_bias"]
    check_step(step, names, backend)


@pytest.mark.parametrize(
    ("backend", "mode"),
    [("cpu", "pynative"), ("cpu", "jit"), ("cpu", "graph"), ("composed", "pynative")],
    indirect=["mode"],
)
def test_requires_grad_changes_between_steps(backend, mode):
    """A new step is made for what is trained now, as optimisers are."""
    network = Network(backend)
    for wanted in (True, False, True):
        network.loss.linear_weight.requires_grad = wanted
        step, names = training_step(network, mode)
        assert ("linear_weight" in names) == wanted
        check_step(step, names, backend)


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_a_graph_gives_the_gradient_of_a_frozen_parameter_to_who_asks(gradient_in_forward, backend):
    """As MindSpore's graphs do for every other operator. PyNative gives 0 for all of them."""
    network = Network(backend, gradient_in_forward)
    for part in network.parts().values():
        part.requires_grad = False
    parts = network.parts()
    compute = ms.value_and_grad(network, None, weights=list(parts.values()))

    @ms.jit
    def step(x, target):
        return compute(x, target)

    check_step(step, list(parts), backend)
    for part in parts.values():
        part.requires_grad = True
    check_step(step, list(parts), backend)


def test_a_copied_cell_reads_its_own_parameters(mode):
    network = Network("cpu")
    other = copy.deepcopy(network)
    network.loss.linear_weight.requires_grad = False
    for each, trained in ((network, 2), (other, 3)):
        step, names = training_step(each, mode)
        assert len(names) == trained
        check_step(step, names, "cpu")


# What is computed and what memory is taken.


def nodes_of(step) -> list[tuple[str, list[list[int]]]]:
    """(operator, shapes of its outputs) of a compiled graph's nodes."""
    hidden, _, target, _ = draw()
    phase, _ = _cell_graph_executor.compile(step, Tensor(hidden), Tensor(target))
    model = mindir_protocol.ModelProto()
    executor = _cell_graph_executor._graph_executor
    model.ParseFromString(executor.get_func_graph_proto(phase, "mind_ir", False))
    functions = {
        primitive.name: attribute.s.decode().split(":")[-1]
        for primitive in model.primitives
        for attribute in primitive.attribute
        if attribute.name == "func_name"
    }
    nodes = []
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            shapes = [
                list(tensor.dims)
                for attribute in node.attribute
                if attribute.name == "shape"
                for tensor in attribute.tensors
            ]
            name = node.op_type.split("::")[-1]
            nodes.append((functions.get(name, name.split(":")[0]), shapes))
    return nodes


@pytest.fixture
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)


def compiled_step(backend, gradient_in_forward, *frozen, **options):
    network = Network(backend, gradient_in_forward, **options)
    for name in frozen:
        network.parts()[name].requires_grad = False
    return training_step(network, "graph")[0]


def count(nodes, kind: str) -> int:
    return sum(kind == each for each, _ in nodes)


def operator(gradient_in_forward, suffix) -> str:
    form = "ValueAndGrad" if gradient_in_forward else "Backward"
    return f"LinearCrossEntropy{form}{suffix}"


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_graph_of_a_frozen_head_makes_no_gradient_of_the_table(
    gradient_in_forward, backend, graph_mode
):
    """One product less, and nothing of V×H: neither the gradient nor what adds to it.

    A loop takes the table itself as a TensorMove, whoever is trained: MindSpore copies a Parameter for it.
    """
    whole = nodes_of(compiled_step(backend, gradient_in_forward))
    frozen = nodes_of(compiled_step(backend, gradient_in_forward, "linear_weight"))
    made = [kind for kind, shapes in frozen if [CLASSES, FEATURES] in shapes]
    assert set(made) <= {"Load", "TensorMove" if backend == "composed" else "Load"}, made
    if backend == "composed":
        assert count(frozen, "MatMul") == count(whole, "MatMul") - 1
        return
    assert count(whole, operator(gradient_in_forward, "")) == 1
    assert count(frozen, operator(gradient_in_forward, "Input")) == 1
    operators = 1 if gradient_in_forward else 2  # the backward operator, where there is one
    assert sum(kind.startswith("Linear") for kind, _ in frozen) == operators, frozen


@pytest.mark.parametrize("gradient_in_forward", (True, False))
def test_graph_of_a_frozen_input_makes_no_gradient_of_it(gradient_in_forward, backend, graph_mode):
    """That nobody wants it cannot be seen there: `frozen` says so."""
    step = compiled_step(backend, gradient_in_forward, "adapter", stop=True, frozen=("input",))
    whole, frozen = (
        nodes_of(each)
        for each in (compiled_step(backend, gradient_in_forward, "adapter", stop=True), step)
    )
    if backend == "composed":
        assert count(frozen, "MatMul") == count(whole, "MatMul") - 1
        return
    assert count(whole, operator(gradient_in_forward, "")) == 1
    assert count(frozen, operator(gradient_in_forward, "Weight")) == 1
    operators = 1 if gradient_in_forward else 2  # the backward operator, where there is one
    assert sum(kind.startswith("Linear") for kind, _ in frozen) == operators, frozen


class CountedProducts:
    """linear_sweep's products for the gradients, counted."""

    def __init__(self, monkeypatch):
        self.counts = {"input": 0, "linear_weight": 0}
        for name, attribute in (("input", "_product"), ("linear_weight", "_product_of_transpose")):
            monkeypatch.setattr(linear_sweep, attribute, self.counted(name, attribute))

    def counted(self, name, attribute):
        product = getattr(linear_sweep, attribute)

        def count(*arguments):
            self.counts[name] += 1
            return product(*arguments)

        return count


@pytest.mark.parametrize("gradient_in_forward", ("auto", True, False))
def test_pynative_makes_no_product_for_what_needs_no_gradient(gradient_in_forward, monkeypatch):
    hidden, _, target, _ = draw()
    chunks = 5  # of 20 rows that count
    for frozen, stop, expected in (
        (("linear_weight",), False, {"input": chunks, "linear_weight": 0}),
        (("adapter",), True, {"input": 0, "linear_weight": chunks}),
        (("adapter", "linear_weight"), True, {"input": 0, "linear_weight": 0}),
        ((), False, {"input": chunks, "linear_weight": chunks}),
    ):
        network = Network("composed", gradient_in_forward, stop=stop)
        for name in frozen:
            network.parts()[name].requires_grad = False
        products = CountedProducts(monkeypatch)
        trained = network.trainable_params()
        gradients = ms.value_and_grad(network, None, weights=trained)(
            Tensor(hidden), Tensor(target)
        )[1]
        for gradient in gradients:
            gradient.asnumpy()
        assert products.counts == expected, (frozen, stop)
        monkeypatch.undo()


@pytest.mark.parametrize("gradient_in_forward", ("auto", True, False))
def test_pynative_calls_the_operator_that_makes_what_is_wanted(gradient_in_forward, monkeypatch):
    called = []
    call = ops.Custom.__call__

    def recorded(self, *arguments):
        called.append(self.func_name.split(":")[-1])
        return call(self, *arguments)

    monkeypatch.setattr(ops.Custom, "__call__", recorded)
    for frozen, stop, suffix in (
        (("linear_weight",), False, "Input"),
        (("adapter",), True, "Weight"),
        (("adapter", "linear_weight"), True, "Bias"),
        ((), False, ""),
    ):
        network = Network("cpu", gradient_in_forward, stop=stop)
        for name in frozen:
            network.parts()[name].requires_grad = False
        step, names = training_step(network, "pynative")
        called.clear()
        check_step(step, names, "cpu")
        made = [name for name in called if "Backward" in name or "Value" in name]
        assert made == [operator(gradient_in_forward, suffix)], (frozen, called)


def test_wrong_names():
    loss = ms_ce.linear_cross_entropy
    hidden, linear_weight, target, _ = map(Tensor, draw())
    with pytest.raises(TypeError, match="frozen must be a tuple of names"):
        loss(hidden, linear_weight, target, frozen="input")
    with pytest.raises(ValueError, match="'weight'"):
        ms_ce.LinearCrossEntropyLoss(FEATURES, CLASSES, frozen=("weight",))
