"""What the operators of the `cpu` backend are made of: options, dtypes, registration.

All of it comes from the kernel's own description (ops/csrc/interface/operations.h). The options travel as one int64
tensor, so that an operator is built once and serves every option; an absent weight travels as a scalar.
"""

from __future__ import annotations

import functools
import itertools
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, from_numpy
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from ms_ce.ops.cpu import library
from ms_ce.ops.custom import compiled
from ms_ce.ops.eager import Derivative
from ms_ce.ops.graph import OfKnown, is_class_index
from ms_ce.ops.options import ClassBlock, Options

_MOST_KEPT = 256  # constant tensors of a thread


def _bits(slot: dict[str, str], value: Any) -> int:
    if slot["type"] == "reduction":
        return reduction(value)
    return struct.unpack("<q", struct.pack("<d", value))[0] if slot["type"] == "float64" else value


def packed(slots: str, values: dict[str, Any]) -> np.ndarray:
    """An int64 array of the kernel's `slots`, "options" or "plan"; a double travels as its bits."""
    described = library.description()[slots]
    names = {slot["name"] for slot in described}
    if names != values.keys():
        different = ", ".join(sorted(names ^ values.keys()))
        raise library.of_other_sources(f"whose {slots} differ by {different}")
    bits = [_bits(slot, values[slot["name"]]) for slot in described]
    return np.array(bits, np.int64)


class _OfThread(threading.local):
    """Constant tensors of one thread.

    Kept, since MindSpore gives each new one a memory of its own, which takes a quarter of a small loss's time; and
    shared by no two threads, which may call at once.
    """

    def __init__(self):
        self.tensors: dict[tuple, Tensor] = {}


_of_thread = _OfThread()


def kept(make: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """The array that `make` makes of its arguments, as a constant tensor."""

    @functools.wraps(make)
    def constant(*arguments):
        tensors, key = _of_thread.tensors, (make, *arguments)
        if key not in tensors:
            if len(tensors) == _MOST_KEPT:
                tensors.clear()
            tensors[key] = from_numpy(make(*arguments))
        return tensors[key]

    return constexpr(constant)


@kept
def packed_options(
    options: Options,
    block: ClassBlock,
    has_weight: bool,
    has_row_weight: bool,
    has_grad_z_loss: bool,
    has_entropy: bool = False,
    beta: float = 0.0,
) -> np.ndarray:
    """The kernel's options. A graph may hand over named tuples as plain ones."""
    offset, total = block
    values = {
        **Options(*options)._asdict(),
        "class_offset": offset,
        "total_classes": total,
        "has_weight": has_weight,
        "has_row_weight": has_row_weight,
        "has_grad_z_loss": has_grad_z_loss,
        "has_entropy": has_entropy,
        "beta": beta,
    }
    return packed("options", values)


@kept
def no_weight(dtype) -> np.ndarray:
    """The scalar that stands for an absent weight, in logits' dtype."""
    return Tensor(0, dtype).asnumpy()


# One condition a function: a graph loses those that have two beside a Cell's bprop.


def given(weight, dtype):
    """A weight, or what stands for an absent one."""
    if weight is None:
        return no_weight(dtype)
    return weight


def _given_exactly(row_weight, dtype):
    if row_weight is None:
        return no_weight(dtype)
    return row_weight.astype(mstype.float64)


@OfKnown
def _options(options, block, weight, row_weight, has_grad_z_loss, beta):
    flags = (weight is not None, row_weight is not None, has_grad_z_loss, False)
    return packed_options(options, block, *flags, beta)


def factors(dtype, weight, row_weight, options, block, has_grad_z_loss=False, beta=0.0):
    """(weight, row_weight, options) as operators on logits of a dtype take them."""
    packed = _options(options, block, weight, row_weight, has_grad_z_loss, beta)
    return given(weight, dtype), _given_exactly(row_weight, dtype), packed


@OfKnown
def are_constants(target, weight) -> bool:
    """Of class indices and an absent weight, which have no gradients."""
    return is_class_index(target.dtype) and weight.ndim == 0


@constexpr
@functools.lru_cache(maxsize=16)
def option_index(name: str) -> int:
    """The place of an option in the packed ones; the bits of 0.0 are 0."""
    return [slot["name"] for slot in library.description()["options"]].index(name)


@constexpr
@functools.lru_cache(maxsize=4)
def reduction(name: str) -> int:
    """How a reduction travels in the packed options."""
    return library.description()["reductions"].index(name)


def _combinations(letters: str, types: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """Each choice of a dtype for each of `letters`, the kernel's types; a letter has one dtype in a call."""
    rows = []
    for floating in types["F"]:
        others = [letter for letter in dict.fromkeys(letters) if letter != "F"]
        choices = [dict.fromkeys(floating if d == "F" else d for d in types[o]) for o in others]
        for chosen in itertools.product(*choices):
            dtype = {"F": floating, **dict(zip(others, chosen, strict=True))}
            rows.append(tuple(dtype[letter] for letter in letters))
    return list(dict.fromkeys(rows))


def _out_dtype(inputs: str, outputs: str) -> Callable:
    """From the inputs' dtypes those of the outputs, of which there may be one alone."""
    # As tensor types: a bare dtype with shape () would make a graph see a Python number. Made once: PyNative asks at
    # every call.
    fixed = {
        letter: mstype.TensorType(getattr(mstype, names[0]))
        for letter, names in library.description()["types"].items()
        if len(names) == 1 and names[0] != "F"
    }
    sources = [(fixed.get(o), -1 if o in fixed else inputs.index(o)) for o in outputs]

    def dtypes(*given):
        results = tuple(given[place] if own is None else own for own, place in sources)
        return results if len(results) > 1 else results[0]

    return dtypes


def make_operator(name: str, bprop: Callable | None = None, derivative: Derivative | None = None):
    """The kernel's operation `name`, made when the backend is imported, on whatever device; it runs on CPU only."""
    if library.problem() is not None:
        return None
    operation = library.operation(name)
    inputs, outputs = operation["inputs"], operation["outputs"]
    types_in, types_out = ("".join(each["type"] for each in side) for side in (inputs, outputs))
    return compiled(
        str(library.PATH),
        name,
        [each["name"] for each in inputs],
        [each["name"] for each in outputs],
        _combinations(types_in + types_out, library.description()["types"]),
        _out_dtype(types_in, types_out),
        library.waiting,
        bprop,
        derivative,
    )
