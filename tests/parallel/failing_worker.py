"""One rank of a job that goes wrong, in the middle of a loss that the other ranks wait for.

msrun ... failing_worker.py raise|die|hang
"""

import os
import signal
import sys

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.communication import get_rank, init

from ms_ce.parallel import VocabParallelCrossEntropyLoss


def main(how: str) -> None:
    if how == "hang":
        print("hanging", flush=True)
        signal.pause()
    ms.set_device("CPU")
    init()
    loss = VocabParallelCrossEntropyLoss()
    logits, target = ops.zeros((4, 3)), Tensor([0, 1, 2, 3], ms.int32)
    loss(logits, target).asnumpy()
    if get_rank() == 1:
        if how == "raise":
            raise RuntimeError("rank 1 has had enough")
        os.kill(os.getpid(), signal.SIGKILL)
    loss(logits, target).asnumpy()


if __name__ == "__main__":
    main(sys.argv[1])
