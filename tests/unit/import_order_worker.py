"""Import ms_ce while the device is not the CPU, choose the CPU afterwards, compute. Prints what served as JSON.

python import_order_worker.py before|after    whether Cells and operators are made before the CPU is chosen
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parallel"))

import mindspore as ms
import numpy as np
from rig.target import pretend_ascend

pretend_ascend()
import ms_ce  # noqa: E402
import ms_ce.parallel  # noqa: E402
from ms_ce.backend import choose  # noqa: E402

assert ms.get_context("device_target") == "Ascend"
elsewhere = {row.name: row.reason for row in ms_ce.available_backends()}["cpu"]


def make():
    return {
        "CrossEntropyLoss": ms_ce.CrossEntropyLoss(),
        "NLLLoss": ms_ce.NLLLoss(),
        "ops.NLLLoss": ms_ce.ops.NLLLoss(),
        "LinearCrossEntropyLoss": ms_ce.LinearCrossEntropyLoss(5, 4),
        "parallel.CrossEntropyLoss": ms_ce.parallel.CrossEntropyLoss(),
    }


cells = {}
if sys.argv[1] == "before":
    cells = make()
    import ms_ce.ops.cpu  # makes its operators
ms.set_device("CPU")
cells = cells or make()


def first_of(cell):
    """The loss alone, where a Cell returns its total weight too."""

    def loss(*inputs):
        result = cell(*inputs)
        return result[0] if isinstance(result, tuple) else result

    return loss


logits, target = ms.Tensor(np.arange(20, dtype=np.float32).reshape(4, 5)), ms.Tensor([0, 1, 2, 3])
values = {}
for name, cell in cells.items():
    more = {"ops.NLLLoss": (ms.ops.ones(5),), "parallel.CrossEntropyLoss": (ms.ops.ones(4),)}
    inputs = (logits, target, *more.get(name, ()))
    gradient = ms.value_and_grad(first_of(cell))
    for mode, run in (("pynative", gradient), ("graph", ms.jit(gradient))):
        loss, grad = run(*inputs)
        values[f"{name} {mode}"] = [
            float(loss.asnumpy().sum()),
            np.abs(grad.asnumpy()).sum().item(),
        ]

report = {
    "elsewhere": elsewhere,
    "chosen": choose("test", "auto"),
    "named": ms_ce.CrossEntropyLoss(backend="cpu").plan.backend,
    "values": values,
}
print(json.dumps(report))
