"""What code that runs and code that is being compiled both ask."""

from __future__ import annotations

import numpy as np
from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr
from mindspore.ops.primitive import PrimitiveWithInfer


class _Compiling(PrimitiveWithInfer):
    """True while a graph is being compiled, False where Python runs."""

    def __init__(self):
        super().__init__("ms_ce_compiling")

    def __call__(self):
        return False

    def __infer__(self):
        return {"shape": (), "dtype": mstype.bool_, "value": True}


compiling = _Compiling()


@constexpr
def is_class_index(dtype) -> bool:
    """Whether a target of this dtype holds class indices, not probabilities."""
    return dtype in (mstype.int32, mstype.int64, mstype.uint8)


def nan_if_any(arriving):
    """0 where nothing arrives, else nan: a graph may hold a second derivative that it does not use."""
    return ops.where(ops.abs(arriving.astype(mstype.float32)).sum() == 0, 0.0, np.nan)
