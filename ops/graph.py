"""What code that runs and code that is being compiled both ask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr
from mindspore.ops.primitive import PrimitiveWithInfer

from ms_ce import _versions


class _Compiling(PrimitiveWithInfer):
    """True while a graph is being compiled, False where Python runs."""

    def __init__(self):
        super().__init__("ms_ce_compiling")

    def __call__(self):
        return False

    def __infer__(self):
        return {"shape": (), "dtype": mstype.bool_, "value": True}


compiling = _Compiling()


class Known(NamedTuple):
    """What a graph that is being compiled knows of a tensor, by the names of a tensor's attributes; -1 for an unknown
    dimension, and None where their number is unknown."""

    dtype: Any
    ndim: int | None
    shape: tuple[int, ...] | None


def _known(item: dict[str, Any]) -> Any:
    """Of an argument: Known, or the value of a constant; of anything else its type, or a sequence of types."""
    dtype, value = item["dtype"], item["value"]
    if not isinstance(dtype, mstype.TensorType):
        return dtype if value is None else value
    shape = tuple(item["shape"])
    if shape == (-2,):
        return Known(dtype.element_type(), None, None)
    return Known(dtype.element_type(), len(shape), shape)


class OfKnown(PrimitiveWithInfer):
    """`constexpr` for a function of tensors, for each of which a graph hands over Known. Named tuples become plain ones
    there, and the result is a constant.

    A graph has whatever it calls parsed, and every attribute and branch inferred: milliseconds for the checks of a
    loss. An operator's inference is Python that is simply called.
    """

    def __init__(self, function: Callable):
        super().__init__(f"{function.__module__}.{function.__qualname__}")
        # Not the attribute "constexpr_prim" too: for each tensor a graph would make one of its size, to be handed over.
        self.set_const_prim(True)
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __infer__(self, *items):
        value = self.function(*[_known(item) for item in items])
        return {"shape": None, "dtype": None, "value": value}


@OfKnown
def known_shape(tensor) -> tuple[int, ...] | None:
    """The shape, or None where a compiled graph does not know all of it yet."""
    shape = tensor.shape
    return None if shape is None or -1 in shape else shape


class _MayNeedGradient(PrimitiveWithInfer):
    """Whether the gradient of a tensor may be wanted: PyNative knows, and nothing tells while a graph is compiled."""

    def __init__(self):
        super().__init__("ms_ce_may_need_gradient")

    def __call__(self, tensor):
        return tensor is not None and _versions.may_require_grad(tensor)

    def __infer__(self, tensor):
        return {"shape": (), "dtype": mstype.bool_, "value": True}


may_need_gradient = _MayNeedGradient()


class Frozen(OfKnown):
    """Frozen(**parameters)(names): the names, and those of Parameters with requires_grad=False, which a graph that is
    being compiled may not read itself."""

    def __init__(self, **parameters):
        super().__init__(self._with_names)
        # Past what MindSpore makes of a Parameter that is an attribute.
        object.__setattr__(self, "parameters", parameters)
        # Or a graph takes the answer of another primitive of that name.
        given = [f"{each.name} {id(each)}" for each in parameters.values()]
        self.add_prim_attr("of", ", ".join(given))

    def _with_names(self, names):
        frozen = [name for name, each in self.parameters.items() if not each.requires_grad]
        return (*names, *frozen)

    def __deepcopy__(self, memo):
        return Frozen(**copy.deepcopy(self.parameters, memo))


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


class _IsConstantChoice(PrimitiveWithInfer):
    """True where a graph that is being compiled knows the values of all its arguments, of which the first has axes."""

    def __init__(self):
        super().__init__("ms_ce_is_constant_choice")

    def __call__(self, *arguments):
        return False

    def __infer__(self, *items):
        known = all(item["value"] is not None for item in items)
        return {"shape": (), "dtype": mstype.bool_, "value": known and len(items[0]["shape"]) > 0}


_is_constant_choice = _IsConstantChoice()


def _filled(large, where, value):
    """`large`, with a scalar where a condition holds, or with a tensor."""
    if isinstance(value, Tensor) and value.ndim > 0:
        return ops.where(where, value, large)
    return ops.masked_fill(large, where, value)


def _chosen(condition, x, y):
    """Of constants, past a compiler that makes a scalar of a choice between constants of which one is a scalar."""
    if isinstance(y, Tensor) and y.ndim > 0:
        return _filled(y, condition, x)
    if isinstance(x, Tensor) and x.ndim > 0:
        return _filled(x, ops.logical_not(condition), y)
    large = _versions.zeros_like(condition.astype(mstype.float32))
    return _filled(_filled(large, condition, x), ops.logical_not(condition), y)


def _select(condition, x, y):
    # Not `condition.ndim > 0 and …`: that is a graph of its own, which a partitioned one loses.
    if _is_constant_choice(condition, x, y):
        return _chosen(condition, x, y)
    return ops.where(condition, x, y)


# ops.where, of constants too.
select = ops.where if _versions.chooses_between_constants else _select


@constexpr
def is_class_index(dtype) -> bool:
    """Whether a target of this dtype holds class indices, not probabilities."""
    return dtype in (mstype.int32, mstype.int64, mstype.uint8)
