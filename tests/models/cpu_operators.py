"""Stand-ins for operators of mint that MindSpore 2.7 has no CPU kernel for, so that mindone's models run there."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import mint, ops
from mindspore.mint.nn import functional
from mindspore.ops import function


def _arange(start, end=None, step=1, dtype=None):
    values = np.arange(start) if end is None else np.arange(start, end, step)
    return ms.Tensor(values) if dtype is None else ms.Tensor(values, dtype)


def _embedding(self, input):
    return ops.gather(self.weight, input, 0)


def _softmax(input, dim=None, dtype=None):
    return ops.softmax(input if dtype is None else input.astype(dtype), axis=dim)


def _dropout(input, p=0.5, training=True, inplace=False):
    assert not p or not training, "the networks of these tests drop nothing"
    return input


def _pad(input, pad, mode="constant", value=0.0):
    assert mode == "constant"
    assert pad[0] == 0
    fill = ops.full((*input.shape[:-1], pad[1]), value, dtype=input.dtype)
    return ops.cat([input, fill], -1)


def install() -> None:
    mint.arange = _arange
    mint.nn.Embedding.construct = _embedding
    functional.softmax, functional.dropout, functional.pad = _softmax, _dropout, _pad
    # What mint.nn.CrossEntropyLoss calls: the loss of mindone as it is without a patch.
    mint.nn.cross_entropy = function.nn_func.cross_entropy


def _full(size, value, dtype=None):
    return ms.Tensor(np.full(size, value), dtype or ms.float32)


def install_for_mindformers() -> None:
    """What GPTModel and its loss call beside the decoder, on MindSpore 2.10."""
    mint.arange = _arange
    mint.full = _full
    mint.zeros = lambda size, dtype=None: _full(size, 0, dtype)
    mint.ones_like = lambda input, dtype=None: _full(input.shape, 1, dtype or input.dtype)
    ms.Tensor.clone = lambda self: self.copy()
    ms.Tensor.detach = ops.stop_gradient  # new in MindSpore 2.11
    mint.zeros_like = lambda input, dtype=None: _full(input.shape, 0, dtype or input.dtype)
    mint.tril = lambda input, diagonal=0: ms.Tensor(np.tril(input.asnumpy(), diagonal))
    mint.triu = lambda input, diagonal=0: ms.Tensor(np.triu(input.asnumpy(), diagonal))
    mint.index_select = lambda input, dim, index: ops.gather(input, index, dim)
    mint.scatter_add = lambda input, dim, index, src: ops.tensor_scatter_elements(
        input, index, src, axis=dim, reduction="add"
    )
