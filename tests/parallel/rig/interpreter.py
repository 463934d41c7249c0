"""Execute the graphs of all ranks in lockstep: every rank runs to its next collective, then the group exchanges."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rig.mindir import Node, Operator, RankGraph
from rig.operators import OPERATORS

REDUCTIONS = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}


@dataclass(frozen=True)
class Exchange:
    """One collective as a rank of it saw it: what it sent."""

    operator: str
    reduction: str | None
    ranks: tuple[int, ...]
    elements: int
    bytes: int


class Rank:
    """The state of one rank: values by name, the next node, the collective it waits in."""

    def __init__(
        self, graph: RankGraph, inputs: Sequence[np.ndarray], parameters: dict[str, np.ndarray]
    ):
        self.graph, self.parameters = graph, parameters
        self.values = dict(zip(graph.inputs, inputs, strict=True))
        self.values.update({name: parameters[name.split(":")[-1]] for name in graph.parameters})
        self.position = 0
        self.waiting: Node | None = None
        self.exchanges: list[Exchange] = []

    def run_to_collective(self) -> None:
        self.waiting = None
        while self.position < len(self.graph.nodes):
            node = self.graph.nodes[self.position]
            if node.operator is None:
                self.values[node.output] = node.value
            elif node.operator.is_collective:
                self.waiting = node
                return
            else:
                self.values[node.output] = self._evaluate(node)
            self.position += 1

    def _evaluate(self, node: Node) -> object:
        operator = node.operator
        if operator.name == "Assign":
            parameter, value = self._inputs(node)[0], self._inputs(node)[1]
            assert parameter.shape == value.shape, (node.inputs[0], parameter.shape, value.shape)
            self.values[node.inputs[0]] = self.parameters[node.inputs[0].split(":")[-1]] = value
            return value
        if operator.name not in OPERATORS:
            raise NotImplementedError(f"operator {operator.name} {operator.attributes}")
        with np.errstate(all="ignore"):
            return OPERATORS[operator.name](operator.attributes, *self._inputs(node))

    def _inputs(self, node: Node) -> list[object]:
        return [self.values[name] if name else None for name in node.inputs]

    def sent(self) -> np.ndarray:
        return self._inputs(self.waiting)[0]

    def receive(self, result: np.ndarray, ranks: tuple[int, ...]) -> None:
        operator, sent = self.waiting.operator, self.sent()
        self.exchanges.append(
            Exchange(
                operator.name,
                operator.attributes.get("op"),
                ranks,
                int(sent.size),
                int(sent.nbytes),
            )
        )
        self.values[self.waiting.output] = result
        self.position += 1
        self.run_to_collective()


def _exchange(operator: Operator, sent: list[np.ndarray]) -> list[np.ndarray]:
    """What every member of the group receives."""
    count = len(sent)
    if operator.name == "AllReduce":
        reduced = REDUCTIONS[operator.attributes.get("op", "sum")](np.stack(sent), axis=0).astype(
            sent[0].dtype
        )
        return [reduced] * count
    if operator.name == "AllGather":
        return [np.concatenate(sent, axis=0)] * count
    if operator.name == "ReduceScatter":
        return [
            part.astype(sent[0].dtype) for part in np.split(np.sum(np.stack(sent), axis=0), count)
        ]
    if operator.name == "Broadcast":
        return [sent[0]] * count
    if operator.name == "AlltoAll":
        split_axis, join_axis = operator.attributes["split_dim"], operator.attributes["concat_dim"]
        pieces = [np.split(value, count, split_axis) for value in sent]
        return [
            np.concatenate([piece[member] for piece in pieces], join_axis)
            for member in range(count)
        ]
    raise NotImplementedError(operator.name)


def _ready_group(ranks: list[Rank]) -> tuple[int, ...] | None:
    """A group whose members all wait in the same collective."""
    for number, rank in enumerate(ranks):
        if rank.waiting is None:
            continue
        operator = rank.waiting.operator
        group = operator.ranks(len(ranks))
        members = [ranks[member].waiting for member in group]
        if group[0] == number and all(
            member
            and member.operator.name == operator.name
            and member.operator.ranks(len(ranks)) == group
            for member in members
        ):
            return group
    return None


def run_lockstep(
    graphs: Sequence[RankGraph],
    inputs: Sequence[Sequence[np.ndarray]],
    parameters: Sequence[dict[str, np.ndarray]] | None = None,
) -> tuple[list[list[object]], list[list[Exchange]]]:
    """Outputs and exchanges of every rank.

    Args:
        graphs: one per rank, rank 0 first.
        inputs: the inputs of every rank.
        parameters: of every rank, the values of its blocks by parameter name; what a graph assigns is written there.
    """
    chosen = parameters or [{} for _ in graphs]
    ranks = [
        Rank(graph, given, values)
        for graph, given, values in zip(graphs, inputs, chosen, strict=True)
    ]
    for rank in ranks:
        rank.run_to_collective()
    while any(rank.waiting for rank in ranks):
        group = _ready_group(ranks)
        if group is None:
            stuck = {
                number: rank.waiting.operator for number, rank in enumerate(ranks) if rank.waiting
            }
            raise RuntimeError(f"deadlock: {stuck}")
        members = [ranks[number] for number in group]
        received = _exchange(members[0].waiting.operator, [member.sent() for member in members])
        for member, result in zip(members, received, strict=True):
            member.receive(result, group)
    outputs = [[rank.values[name] for name in rank.graph.outputs] for rank in ranks]
    return outputs, [rank.exchanges for rank in ranks]
