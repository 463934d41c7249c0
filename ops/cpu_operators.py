"""What the operators of the `cpu` backend are made of: options, dtypes, registration.

The kernel's contract is ops/csrc/cross_entropy.h. The options travel as one int64 tensor, so that an operator is
built once and serves every option; an absent weight travels as a scalar.
"""

from __future__ import annotations

import functools
import itertools
import struct

import numpy as np
from mindspore import Tensor, from_numpy
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce.ops import library
from ms_ce.ops.custom import FLOATS, LABELS, compiled
from ms_ce.ops.options import ClassBlock, Options

# As tensor types: a bare dtype with shape () would make a graph see a Python number.
DOUBLE, INDEX = mstype.TensorType(mstype.float64), mstype.TensorType(mstype.int64)
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_HAS_WEIGHT, _HAS_GRAD_Z_LOSS = 1, 2
REDUCTION, Z_LOSS, SOFTCAP = 1, 4, 5  # positions in the options; the bits of 0.0 are 0
zeros_like = P.ZerosLike()  # the function ops.zeros_like breaks a second derivative in graph mode


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


@functools.lru_cache(maxsize=256)
def _fields(
    options: Options, block: ClassBlock, has_weight: bool, has_grad_z_loss: bool
) -> np.ndarray:
    ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale = options
    flags = _HAS_WEIGHT * has_weight + _HAS_GRAD_Z_LOSS * has_grad_z_loss
    fields = [
        ignore_index,
        REDUCTIONS[reduction],
        flags,
        *map(_bits, (label_smoothing, z_loss, softcap, logit_scale)),
        *block,
    ]
    return np.array(fields + [0] * (16 - len(fields)), np.int64)


@functools.lru_cache(maxsize=8)
def _zero(dtype) -> np.ndarray:
    return Tensor(0, dtype).asnumpy()


# Constants of numpy are shared by all calls, Tensors by none: several threads may call at once, and a Tensor over an
# array that exists takes a microsecond.


@constexpr
def packed_options(
    options: Options, block: ClassBlock, has_weight: bool, has_grad_z_loss: bool
) -> Tensor:
    """The kernel's options: int64[16] in the order of cross_entropy.h, doubles as their bits."""
    return from_numpy(_fields(options, block, has_weight, has_grad_z_loss))


@constexpr
def no_weight(dtype) -> Tensor:
    """The scalar that stands for an absent weight, in logits' dtype."""
    return from_numpy(_zero(dtype))


def _combinations(pattern: str, targets: str = "both") -> list[tuple[str, ...]]:
    """Accepted dtypes of an operator: F logits' dtype, T target, W weight, I int64, D float64."""
    rows = []
    for logits in FLOATS:
        reals = (logits,) if logits == "float32" else (logits, "float32")
        labels = () if targets == "probability" else LABELS
        probabilities = () if targets == "class" else reals
        for target, weight in itertools.product((*labels, *probabilities), reals):
            dtype = {"F": logits, "T": target, "W": weight, "I": "int64", "D": "float64"}
            rows.append(tuple(dtype[letter] for letter in pattern))
    return list(dict.fromkeys(rows))


def make_operator(name, inputs, outputs, pattern, out_dtype, bprop=None, targets="both"):
    """An operator of the library, made when ms_ce is imported, on whatever device; it runs on CPU only."""
    if library.excluded() is not None:
        return None
    rows = _combinations(pattern, targets)
    return compiled(str(library.PATH), name, inputs, outputs, rows, out_dtype, bprop)
