"""Which versions of MindSpore ms_ce was tested with, and everything that differs between them.

Nothing else here asks for a version. This comes before MindSpore is imported, so that it can warn of what breaks it.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, NamedTuple

import numpy
from packaging.version import Version

# MindSpore, and the Pythons beside it: what `make test-versions` runs the tests with. docs/versions.md has the results.
TESTED = {
    "2.7.0": ("3.10",),
    "2.8.0": ("3.11",),
    "2.9.0": ("3.11",),
    "2.10.0": ("3.11", "3.12"),
}
OLDEST, NEWEST = Version(next(iter(TESTED))), Version(list(TESTED)[-1])


class Difference(NamedTuple):
    """What is so in the MindSpore versions that a specifier names, and what ms_ce makes of it."""

    versions: str
    fact: str


DIFFERENCES = (
    Difference(
        "<2.8",
        "a graph holds no loop in a bprop: the linear loss on 'composed' in several chunks makes its gradients in the "
        "forward pass, has none of a target or class weight in a graph, and none at all there with reduction 'none' or "
        "statistics",
    ),
    Difference(
        "<2.8",
        "PyNative does not tell which tensors need a gradient: what is made in the forward pass is made for a constant "
        "too, and an assignment to the logits before the backward pass is not noticed",
    ),
    Difference(
        "<2.8", "vmap and jacrev of losses on 'composed' fail where some arguments are shared"
    ),
    Difference(
        "<2.8",
        "AllReduce on CPU takes the group of all ranks only: no mesh of groups under msrun there",
    ),
    Difference("<2.8", "a Cell has a method named place, which no attribute may be called"),
    Difference(
        "<2.9",
        "CPU operators for zeros and products do not take bfloat16; ms_ce makes both in float32",
    ),
    Difference(
        "<2.10",
        "PyNative now and then leaves a Cell with a bprop out of the graph that hands back a tensor of no graph; ms_ce "
        "hands back a product",
    ),
    Difference(
        ">=2.9",
        "PyNative's executor lives in mindspore.graph.api; its old home logs a warning whenever it is imported",
    ),
    Difference(
        "==2.9.*",
        "a graph makes a scalar of ops.where of constants, one of which is a scalar; ms_ce gives it tensors",
    ),
    Difference(
        ">=2.11",
        "PyNative refuses to differentiate integers; ms_ce gives them no gradient",
    ),
)


def _first(*places: str) -> Any:
    """What the first of `module:name` that this MindSpore has is; None where it has none."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    return None


def state(version: Version) -> str:
    """How well ms_ce knows this version of MindSpore."""
    if version.base_version in TESTED:
        return f"mindspore {version} is tested"
    if version < OLDEST:
        return f"mindspore {version} is older than {OLDEST}, the oldest that ms_ce was tested with"
    if version.release[:2] > NEWEST.release[:2]:
        return f"mindspore {version} is newer than {NEWEST}, the newest that ms_ce was tested with"
    return f"mindspore {version} lies between versions that are tested"


def differences(version: Version) -> list[Difference]:
    """What holds for this version of MindSpore and not for all."""
    from packaging.specifiers import SpecifierSet  # for the tools alone: milliseconds

    return [each for each in DIFFERENCES if version.base_version in SpecifierSet(each.versions)]


def _warn(message: str) -> None:
    warnings.warn(f"ms_ce: {message}", UserWarning, stacklevel=2)


if Version(numpy.__version__) >= Version("2"):
    _warn(
        f"numpy {numpy.__version__} is installed, with which MindSpore's operators fail or return wrong values; "
        "install 'numpy<2'"
    )
MINDSPORE = Version(importlib.import_module("mindspore").__version__)
if MINDSPORE < OLDEST or MINDSPORE.release[:2] > NEWEST.release[:2]:
    _warn(f"{state(MINDSPORE)}; the losses may fail or be wrong where it differs")
pynative_executor = _first(
    "mindspore.graph.api:_pynative_executor", "mindspore.common.api:_pynative_executor"
)
# An autograd function of PyNative, where MindSpore has it (docs/pynative.md).
Function = _first("mindspore.common._grad_function:_Function")

_ops = importlib.import_module("mindspore.ops")
_zeros_like = _ops.ZerosLike()
_dtype = importlib.import_module("mindspore.common.dtype")


def _zeros_like_of_old(x):
    """Without a branch: MindSpore 2.7 loses the graph of one inside a loop."""
    return _zeros_like(x.astype(_dtype.float32)).astype(x.dtype)


# The function ops.zeros_like breaks a second derivative in graph mode.
zeros_like = _zeros_like_of_old if Version("2.9") > MINDSPORE else _zeros_like


def _multiply_of_old(x, y):
    if x.dtype == _dtype.bfloat16:
        return (x.astype(_dtype.float32) * y.astype(_dtype.float32)).astype(_dtype.bfloat16)
    return x * y


# Of a tensor that may be bfloat16.
multiply = _multiply_of_old if Version("2.9") > MINDSPORE else _ops.Mul()

# Whether a graph's compiler computes ops.where of constants.
chooses_between_constants = MINDSPORE.release[:2] != (2, 9)

# Whether a Cell's bprop in a graph may hold a loop over the same functions as its construct.
loops_in_bprops = Version("2.8") <= MINDSPORE


def may_require_grad(tensor: Any) -> bool:
    """False where it is known, while PyNative records, that nobody can ask for the gradient of a tensor."""
    if isinstance(getattr(type(tensor), "_requires_grad", None), bool):
        return True  # mindtorch's, for all tensors, which says nothing of this one
    known = getattr(tensor, "_requires_grad", None)
    return getattr(tensor, "requires_grad", True) if known is None else known


def grad_node(tensor: Any) -> Any:
    """What made a tensor that PyNative differentiates; None where that is not known."""
    return getattr(tensor, "_grad_node", None)
