"""Tells code that runs from code that is being compiled."""

from __future__ import annotations

from mindspore import dtype as mstype
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
