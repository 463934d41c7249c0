"""A linear loss below and above which anything may be frozen, what its gradients are, and what its graphs hold."""

from __future__ import annotations

import mindspore as ms
import mindspore.train.mind_ir_pb2 as mindir_protocol
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.api import _cell_graph_executor

import ms_ce
from ms_ce import reference
from tests.support.linear_tolerances import check_linear

ROWS, FEATURES, CLASSES, CHUNK_ROWS = 23, 4, 30, 8
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


def nodes_of(step, *tensors) -> list[tuple[str, list[list[int]]]]:
    """(operator, shapes of its outputs) of the nodes of a Cell's compiled graph."""
    phase, _ = _cell_graph_executor.compile(step, *tensors)
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
