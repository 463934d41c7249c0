"""Our drop-in and mindformers' own loss on the same inputs; runs where mindformers is installed.

python mindformers_worker.py local|partitioned RESULT.json
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import mindformers.core
import mindspore as ms
import numpy as np
from mindformers.core.loss.loss import CrossEntropyLoss as Theirs
from mindformers.modules.transformer.op_parallel_config import OpParallelConfig
from mindspore import Tensor

from ms_ce.parallel import CrossEntropyLoss as Ours
from tests.support import docstrings

ROWS, CLASSES = 8, 12


def inputs(dtype=np.float32, mask_dtype=np.float32) -> list[Tensor]:
    random = np.random.default_rng(1)
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 1], mask_dtype)
    logits = (3 * random.normal(size=(ROWS, CLASSES))).astype(dtype)
    label = random.integers(0, CLASSES, ROWS).astype(np.int32)
    return [Tensor(logits), Tensor(label), Tensor(mask)]


def described(outputs) -> list[dict]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [
        {
            "values": one.asnumpy().ravel().tolist(),
            "shape": list(one.shape),
            "dtype": str(one.dtype),
        }
        for one in outputs
    ]


def loss_and_gradient(loss, arguments) -> dict:
    def first(*arguments):
        outputs = loss(*arguments)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    gradient = ms.grad(first)(*arguments)
    return {
        "outputs": described(loss(*arguments)),
        "gradient": gradient.astype(ms.float32).asnumpy().tolist(),
        "gradient_dtype": str(gradient.dtype),
    }


def both(arguments, **options) -> dict:
    return {
        "theirs": loss_and_gradient(Theirs(OpParallelConfig(), **options), arguments),
        "ours": loss_and_gradient(Ours(OpParallelConfig(), **options), arguments),
    }


def one_loss(loss, arguments) -> float | str:
    try:
        return float(loss(*arguments).asnumpy()[0])
    except (RuntimeError, ValueError, TypeError) as error:
        return str(error)


def where_theirs_fails() -> dict:
    """Single losses: theirs and ours, and ours on inputs that say the same in a way that both understand."""
    logits, label, mask = inputs()
    beyond = Tensor(np.where(np.arange(ROWS) == 0, CLASSES + 3, label.asnumpy()).astype(np.int32))
    pruned = logits.asnumpy().copy()  # asnumpy() is a view of the tensor
    row_labels = label.asnumpy()
    pruned[0, (row_labels[0] + 1) % CLASSES] = -np.inf
    almost = np.where(np.isinf(pruned), -1e30, pruned).astype(np.float32)
    boolean = Tensor(mask.asnumpy().astype(bool))
    return {
        name: {"theirs": one_loss(Theirs(), arguments), "ours": one_loss(Ours(), arguments),
               "right": one_loss(Theirs(), right)}
        for name, arguments, right in (
            ("label out of range", (logits, beyond, mask), (logits, label, mask)),
            ("infinite logit", (Tensor(pruned), label, mask), (Tensor(almost), label, mask)),
            ("bool mask", (logits, label, boolean), (logits, label, mask)),
        )
    }  # fmt: skip


def local() -> dict:
    ms.set_device("CPU")
    docstrings.check(docstrings.NEEDS_MINDFORMERS)
    built = mindformers.core.build_loss({"type": "MsCeCrossEntropyLoss", "label_smoothing": 0.1})
    results = {"built": f"{type(built).__module__}.{type(built).__qualname__}"}
    for mode in ("pynative", "graph"):
        ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
        results[mode] = {
            "default": both(inputs()),
            "per token": both(inputs(), calculate_per_token_loss=True),
            "sequence pipeline": both(inputs(), seq_split_num=2),
            "float16": both(inputs(np.float16)),
            "nothing counts": both([*inputs()[:2], Tensor(np.zeros(ROWS, np.float32))]),
        }
    ms.set_context(mode=ms.PYNATIVE_MODE)
    results["failures"] = where_theirs_fails()
    return results


def partitioned() -> dict:
    """Loss, gradient and exchanges of a step on a 2×2 mesh."""
    from partitioner_cases import Case
    from partitioner_worker import WithGradient
    from rig.compiler import compile_all_ranks, register_pretended_ascend
    from rig.interpreter import run_lockstep

    register_pretended_ascend()
    arguments = inputs()
    values = [one.asnumpy() for one in arguments]
    config, results = OpParallelConfig(data_parallel=2, model_parallel=2), {}
    for name, loss in (("theirs", Theirs), ("ours", Ours)):
        graphs = compile_all_ranks(
            lambda loss=loss: WithGradient(loss(config)), arguments, Case().ranks
        )
        outputs, exchanges = run_lockstep(graphs, [values] * Case().ranks)
        results[name] = {
            "losses": [float(output[0][0][0]) for output in outputs],
            "gradient": sum(output[0][1] for output in outputs).tolist(),
            "exchanges": [asdict(exchange) for exchange in exchanges[0]],
        }
    return results


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        json.dumps({"local": local, "partitioned": partitioned}[sys.argv[1]]())
    )
