"""Read MindSpore's MindIR protobuf of one rank into plain Python objects."""

from dataclasses import dataclass, field

import numpy as np
from mindspore.train.mind_ir_pb2 import AttributeProto, ModelProto, TensorProto

COLLECTIVES = frozenset({"AllReduce", "AllGather", "ReduceScatter", "Broadcast", "AlltoAll"})
TENSOR_DTYPES = {
    1: np.float32, 2: np.uint8, 3: np.int8, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16,
    11: np.float64,
}  # fmt: skip
SCALAR_FIELDS = {"STRING": "s", "FLOAT": "f", "DOUBLE": "d"}


@dataclass(frozen=True)
class Operator:
    """A primitive with its attributes."""

    name: str
    attributes: dict[str, object] = field(default_factory=dict)

    @property
    def is_collective(self) -> bool:
        return self.name in COLLECTIVES

    def ranks(self, world_size: int) -> tuple[int, ...]:
        """The ranks that take part in a collective."""
        listed = self.attributes.get("group_rank_ids") or self.attributes.get("rank_list")
        if not listed and self.attributes.get("group_ranks"):
            listed = (int(rank) for rank in self.attributes["group_ranks"].split("-"))
        return tuple(listed) if listed else tuple(range(world_size))


@dataclass(frozen=True)
class Node:
    """One call in the graph, in execution order.  A constant has `value` and no operator."""

    operator: Operator | None
    inputs: tuple[str, ...]
    output: str
    value: object = None


@dataclass(frozen=True)
class RankGraph:
    """What one rank executes.  Parameters come without their values: nothing was loaded on a device."""

    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @classmethod
    def from_model(cls, model: ModelProto) -> "RankGraph":
        if model.functions:
            raise NotImplementedError("graphs with sub-graphs (control flow) are not interpreted")
        primitives = {
            primitive.name: Operator(
                primitive.op_type,
                {attribute.name: decode(attribute) for attribute in primitive.attribute},
            )
            for primitive in model.primitives
        }
        return cls(
            inputs=tuple(entry.name for entry in model.graph.input),
            parameters=tuple(entry.name for entry in model.graph.parameter),
            nodes=tuple(_read_node(node, primitives) for node in model.graph.node),
            outputs=tuple(entry.name for entry in model.graph.output),
        )


def _read_node(node: object, primitives: dict[str, Operator]) -> Node:
    if node.op_type == "Constant":
        return Node(None, (), node.output[0], decode(node.attribute[0]))
    reference = node.op_type.removeprefix("REF::")
    operator = primitives[reference] if reference != node.op_type else Operator(node.op_type)
    return Node(operator, tuple(node.input), node.output[0])


def decode(attribute: AttributeProto) -> object:
    """The Python value of an attribute; types are told by their number, None for what carries no value."""
    kind = AttributeProto.AttributeType.Name(attribute.type)
    if kind in ("TUPLE", "LIST"):
        return tuple(decode(value) for value in attribute.values)
    if kind in ("TENSORS", "TENSOR"):
        return decode_tensor(attribute.tensors[0] if attribute.tensors else attribute.t)
    if kind == "BOOL":
        return bool(attribute.i)
    if kind.startswith(("INT", "UINT")):
        return int(attribute.ints[0]) if attribute.ints else int(attribute.i)
    if kind == "FLOAT" and attribute.floats:
        return float(attribute.floats[0])
    if kind == "DOUBLE" and attribute.doubles:
        return float(attribute.doubles[0])
    if kind in SCALAR_FIELDS:
        value = getattr(attribute, SCALAR_FIELDS[kind])
        return value.decode() if isinstance(value, bytes) else value
    return None


def decode_tensor(tensor: TensorProto) -> np.ndarray:
    """The numpy value of a tensor, whichever field carries it.  A tensor without data is an error, not zeros."""
    dtype, shape = TENSOR_DTYPES[tensor.data_type], list(tensor.dims)
    if tensor.raw_data:
        return np.frombuffer(tensor.raw_data, dtype).reshape(shape).copy()
    for name in ("float_data", "int32_data", "int64_data", "double_data"):
        values = list(getattr(tensor, name))
        if values:
            return np.array(values, dtype).reshape(shape)
    if np.prod(shape, dtype=np.int64) == 0:
        return np.zeros(shape, dtype)
    raise ValueError(f"tensor {tensor.name!r} of shape {shape} carries no data")
