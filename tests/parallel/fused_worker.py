"""A fused kernel inside a partitioned graph: exact loss and gradient, with the collectives of the primitive form.

    python fused_worker.py RESULT.json

The kernel is a Custom operator that the partitioner takes as local (self_define_shard). Its numbers come from numpy:
what is shown is what the partitioner does with it. It learns its block's first class from a tensor that is split like
the logits.
"""

import json
import os
import sys
import tempfile
from dataclasses import asdict

os.environ.setdefault("ASCEND_OPP_PATH", tempfile.gettempdir())

import mindspore as ms
import numpy as np
from mindspore import Layout, Tensor, nn, ops
from mindspore.ops import CustomRegOp
from mindspore.ops.composite.base import _Grad
from rig.compiler import compile_all_ranks, register_pretended_ascend
from rig.interpreter import run_lockstep
from rig.operators import operator

from ms_ce import reference

ROWS, CLASSES, ROW_RANKS, CLASS_RANKS = 8, 12, 2, 2
PARTIAL, PARTIAL_BACKWARD = "aclnnMsCeTestPartial", "aclnnMsCeTestPartialBackward"


def custom(name, inputs, dtypes, out_shape):
    info = CustomRegOp(name)
    for index, argument in enumerate(inputs):
        info = info.input(index, argument, "required")
    info = info.output(0, "output", "required")
    info = info.dtype_format(*[(dtype, "DefaultFormat") for dtype in dtypes])
    registration = info.target("Ascend").get_op_info()
    return ops.Custom(name, out_shape, lambda *_: ms.float32, "aot", reg_info=registration)


class FusedRows(nn.Cell):
    """Row losses (N, 1) of logits (N, C), target (N, 1), and the first class of every block."""

    def __init__(self):
        super().__init__()
        layout = Layout((ROW_RANKS, CLASS_RANKS), ("rows", "classes"))
        self.partial = custom(
            PARTIAL,
            ("logits", "target", "first_class"),
            ("float32", "int32", "int32", "float32"),
            lambda logits, target, first_class: (logits[0], first_class[1], 2),
        )
        self.partial.add_prim_attr("self_define_shard", True)
        self.partial.shard(
            (layout("rows", "classes"), layout("rows", "None"), layout("rows", "classes")),
            (layout("rows", "classes", "None"),),
        )
        self.partial_backward = custom(
            PARTIAL_BACKWARD,
            ("upstream", "logits", "target", "first_class", "lse"),
            ("float32", "float32", "int32", "int32", "float32", "float32"),
            lambda upstream, logits, *_: logits,
        )
        block, column = (ROW_RANKS, CLASS_RANKS), (ROW_RANKS, 1)
        self.slice = ops.StridedSlice().shard(((*block, 1),))
        self.drop_axis = ops.ReduceSum().shard(((*block, 1),))
        self.maximum = ops.ReduceMax(keep_dims=True).shard((block,))
        self.subtract_column = ops.Sub().shard((block, column))
        self.exp, self.log = ops.Exp().shard((block,)), ops.Log().shard((column,))
        self.sum = ops.ReduceSum(keep_dims=True).shard((block,))
        self.add = ops.Add().shard((column, column))
        self.subtract = ops.Sub().shard((column, column))
        self.zeros_like = ops.ZerosLike()

    def construct(self, logits, target, first_class):
        statistics = self.partial(logits, target, first_class)
        local_lse, target_logit = self.statistic(statistics, 0), self.statistic(statistics, 1)
        top = self.maximum(local_lse, -1)
        log_sum = self.log(self.sum(self.exp(self.subtract_column(local_lse, top)), -1))
        lse = self.add(top, log_sum)
        return self.subtract(lse, self.sum(target_logit, -1)), lse

    def statistic(self, statistics, index):
        """(N, blocks) of (N, blocks, 2)."""
        end = (ROWS, CLASS_RANKS, index + 1)
        return self.drop_axis(self.slice(statistics, (0, 0, index), end, (1, 1, 1)), -1)

    def bprop(self, logits, target, first_class, out, dout):
        upstream = dout[0] * CLASS_RANKS
        gradient = self.partial_backward(upstream, logits, target, first_class, out[1])
        return gradient, self.zeros_like(target), self.zeros_like(first_class)


class FusedSum(nn.Cell):
    def __init__(self):
        super().__init__()
        block, column = (ROW_RANKS, CLASS_RANKS), (ROW_RANKS, 1)
        self.rows = FusedRows()
        self.first_class = Tensor(
            np.arange(0, CLASSES, CLASSES // CLASS_RANKS, dtype=np.int32)[None]
        )
        self.no_class = Tensor(np.zeros((ROW_RANKS, 1), np.int32))
        self.split = ops.Add().shard((column, (1, CLASS_RANKS))).add_prim_attr("keep_alive", True)
        # A bprop sees the blocks of what sharded operators made, but the whole of what comes from outside.
        self.as_column = ops.ExpandDims().shard(((ROW_RANKS,),))
        self.scale, self.sum = ops.Mul().shard((block, ())), ops.ReduceSum().shard((column,))

    def construct(self, logits, target):
        first_class = self.split(self.no_class, self.first_class)
        doubled, column = self.scale(logits, 2.0), self.as_column(target, 1)
        return self.sum(self.rows(doubled, column, first_class)[0])


class WithGradient(nn.Cell):
    def __init__(self):
        super().__init__()
        self.network = FusedSum()
        self.differentiate = _Grad(sens_param=True, get_value=True)

    def construct(self, logits, target, upstream):
        return self.differentiate(self.network)(logits, target, upstream)


def _own_target(logits, target, first_class):
    local = target[:, 0] - first_class[0, 0]
    return local, (local >= 0) & (local < logits.shape[1])


@operator("Custom", PARTIAL, PARTIAL_BACKWARD)
def kernel(attributes, *values):
    """Numpy in the place of the device: three inputs forward, five backward."""
    if len(values) == 3:
        logits, target, first_class = values
        local, held = _own_target(*values)
        picked = logits[np.arange(len(logits)), np.where(held, local, 0)]
        lse = np.log(np.exp(logits).sum(1))
        return np.stack([lse, np.where(held, picked, 0)], -1)[:, None].astype(np.float32)
    upstream, logits, target, first_class, lse = values
    local, held = _own_target(logits, target, first_class)
    gradient = np.exp(logits - lse) * upstream
    gradient[np.arange(len(logits))[held], local[held]] -= upstream[held, 0]
    return gradient.astype(np.float32)


def main(result_path: str) -> None:
    register_pretended_ascend()
    # It would compile a call of the vendor's library.
    ops.Custom._generate_get_workspace_size_func = lambda self: None
    random = np.random.default_rng(0)
    logits = random.normal(size=(ROWS, CLASSES)).astype(np.float32)
    target = random.integers(0, CLASSES, ROWS).astype(np.int32)
    inputs = [logits, target, np.float32(1)]
    ranks = ROW_RANKS * CLASS_RANKS
    graphs = compile_all_ranks(WithGradient, [Tensor(value) for value in inputs], ranks)
    outputs, exchanges = run_lockstep(graphs, [inputs] * ranks)
    doubled = 2 * logits.astype(np.float64)
    wanted = 2 * reference.cross_entropy_grad(doubled, target, reduction="sum").logits
    gradient = sum(output[0][1] for output in outputs)
    result = {
        "losses": [float(output[0][0]) for output in outputs],
        "expected_loss": float(reference.cross_entropy(doubled, target, reduction="sum").loss),
        "gradient_error": float(np.abs(gradient - wanted).max()),
        "exchanges": [asdict(exchange) for exchange in exchanges[0]],
    }
    with open(result_path, "w") as sink:
        json.dump(result, sink)


if __name__ == "__main__":
    main(sys.argv[1])
