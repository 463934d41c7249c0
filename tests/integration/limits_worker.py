"""limits_worker.py export|load LIBRARY FILE static|dynamic: an operator of three lines, into a MindIR and out of it."""

from __future__ import annotations

import sys

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import CustomRegOp


class Twice(nn.Cell):
    def __init__(self, library):
        super().__init__()
        registration = CustomRegOp("Twice").input(0, "x").output(0, "y")
        float32 = ("float32", "DefaultFormat")
        info = registration.dtype_format(float32, float32).target("CPU").get_op_info()
        self.twice = ops.Custom(f"{library}:Twice", None, lambda x: x, "aot", reg_info=info)

    def construct(self, x):
        return self.twice(x)


def main(action: str, library: str, file: str, shape: str) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    x = Tensor(np.ones((3, 2), np.float32))
    if action == "export":
        rows = x if shape == "static" else Tensor(shape=[None, 2], dtype=ms.float32)
        ms.export(Twice(library), rows, file_name=file, file_format="MINDIR")
    else:
        print(nn.GraphCell(ms.load(file))(x).asnumpy().tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
