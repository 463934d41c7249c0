"""Calls of the operators of ops/ascend/operators.py, answered by the kernels of the host model."""

from __future__ import annotations

import numpy as np

from ms_ce.ops.ascend import operators as table
from tests.ascend.host_model import CORES, HostModel, kernel_name

ATTRIBUTES = {
    "reduction": "reduction",
    "ignore_index": "ignoreIndex",
    "label_smoothing": "labelSmoothing",
    "z_loss": "zLoss",
    "has_weight": "hasWeight",
    "class_offset": "classOffset",
    "total_classes": "totalClasses",
}


def run_on_host(
    machine: HostModel, name: str, per_row: bool, arrays, attributes
) -> tuple[np.ndarray, ...]:
    """Outputs of an operator for the tensors and attributes of one call, in the order of the call."""
    operator = table.OPERATORS[name]
    inputs = {n: a for (n, _), a in zip(operator.inputs, arrays, strict=True)}
    position = next(i for i, (_, kind) in enumerate(operator.inputs) if kind == "F")
    rows, classes = arrays[position].shape
    convert = {"int": int, "double": float, "bool": int}
    options = {
        ATTRIBUTES[n]: convert[kind](v)
        for (n, kind), v in zip(operator.attributes, attributes, strict=True)
    }
    options["totalClasses"] = options.get("totalClasses") or classes
    options.setdefault("reduction", 0)
    options["targetBytes"] = arrays[position + 1].itemsize
    kernel = kernel_name(name).removeprefix("ms_ce_")
    lengths = {"loss": rows if per_row else 1, "total_weight": 1, "error": 8}
    outputs = {}
    for result, kind in operator.outputs:
        shape = (rows, classes) if kind == "F" else (lengths.get(result, rows),)
        outputs[result] = np.zeros(
            shape, {"F": arrays[position].dtype, "W": "float32", "E": "int32"}[kind]
        )
    problem = machine.problem(kernel, rows, classes, cores=CORES, **options)
    machine.launch(f"ms_ce_{kernel}", inputs, outputs, machine.tiling(problem))
    return tuple(outputs.values())
