"""One rank of a tensor-parallel group with mindformers' PyNative loss on its block of the vocabulary.

msrun … mindformers_ranks.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore.communication import get_group_size, get_rank, init

import ms_ce
from tests.models import cpu_operators, hyper_parallel_stand_in
from tests.models.mindformers_inputs import CASES, LABELS, LOGITS, MASK, ROWS, VOCABULARY


def main(directory: str) -> None:
    ms.set_device("CPU")
    init()
    hyper_parallel_stand_in.install()
    cpu_operators.install_for_mindformers()
    from mindformers.pynative.loss.loss import ChunkCrossEntropyLoss, CrossEntropyLoss

    rank, size = get_rank(), get_group_size()
    columns = np.split(np.arange(VOCABULARY), size)[rank]
    results = {}
    with ms_ce.patch.mindformers(static=False, core=False):
        for name, (options, chunked, masked) in CASES.items():
            loss = (ChunkCrossEntropyLoss if chunked else CrossEntropyLoss)(**options)
            loss.enable_vocab_parallel("hccl_world_group", rank, size)
            shape = (2, ROWS // 2) if chunked else (ROWS,)
            block = ms.Tensor(LOGITS[:, columns].reshape(*shape, -1))
            label, mask = (ms.Tensor(each.reshape(shape)) for each in (LABELS, MASK))
            inputs = (block, label, mask) if masked else (block, label)
            value, gradient = ms.value_and_grad(loss, 0)(*inputs)
            outputs = value if isinstance(value, tuple) else (value,)
            for place, each in enumerate(outputs):
                results[f"{name}/{place}"] = each.asnumpy()
            results[f"{name}/gradient"] = gradient.asnumpy().reshape(ROWS, -1)
    np.savez(Path(directory) / f"rank{rank}.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1])
