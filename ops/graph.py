"""What code that runs and code that is being compiled both ask."""

from __future__ import annotations

import copy

from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops import functional as F
from mindspore.ops.primitive import PrimitiveWithInfer

from ms_ce import _versions
from ms_ce.ops import eager


class _Compiling(PrimitiveWithInfer):
    """True while a graph is being compiled, False where Python runs."""

    def __init__(self):
        super().__init__("ms_ce_compiling")

    def __call__(self):
        return False

    def __infer__(self):
        return {"shape": (), "dtype": mstype.bool_, "value": True}


compiling = _Compiling()


def known_shape(tensor):
    """The shape as a tuple, or None where a compiled graph does not know it yet."""
    # Only in a graph: PyNative would run an operator for it.
    if compiling() and F.is_sequence_value_unknown(tensor.shape):
        return None
    return tensor.shape


class _MayNeedGradient(PrimitiveWithInfer):
    """Whether the gradient of a tensor may be wanted: PyNative knows, and nothing tells while a graph is compiled."""

    def __init__(self):
        super().__init__("ms_ce_may_need_gradient")

    def __call__(self, tensor):
        return tensor is not None and _versions.may_require_grad(tensor)

    def __infer__(self, tensor):
        return {"shape": (), "dtype": mstype.bool_, "value": True}


may_need_gradient = _MayNeedGradient()


class IsFrozen(PrimitiveWithInfer):
    """Whether a Parameter has requires_grad=False: a graph that is being compiled may not read the attribute itself."""

    def __init__(self, parameter):
        super().__init__("ms_ce_is_frozen")
        # Past what MindSpore makes of a Parameter that is an attribute.
        object.__setattr__(self, "parameters", (parameter,))
        # Or a graph takes the answer of another primitive of that name.
        self.add_prim_attr("parameter", f"{parameter.name} {id(parameter)}")

    def __call__(self):
        return not self.parameters[0].requires_grad

    def __infer__(self):
        return {"shape": (), "dtype": mstype.bool_, "value": self()}

    def __deepcopy__(self, memo):
        return IsFrozen(copy.deepcopy(self.parameters[0], memo))


recording = constexpr(eager.recording)


class _KnownOne(PrimitiveWithInfer):
    """True where a graph that is being compiled holds its argument as the constant 1."""

    def __init__(self):
        super().__init__("ms_ce_known_one")

    def __call__(self, value):
        return False

    def __infer__(self, value):
        constant = value["value"]
        known = isinstance(constant, Tensor) and constant.shape == ()
        return {"shape": (), "dtype": mstype.bool_, "value": known and constant.item() == 1}


known_one = _KnownOne()


@constexpr
def is_class_index(dtype) -> bool:
    """Whether a target of this dtype holds class indices, not probabilities."""
    return dtype in (mstype.int32, mstype.int64, mstype.uint8)
