"""What a loss is asked for beside its tensors: one table of options, and the tuples that carry what was chosen."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

REDUCTIONS = ("none", "mean", "sum")
_IGNORE_INDEX = -100


class Option(NamedTuple):
    """A row of the table: an argument of the public functions and Cells, with its default there.

    `check(op, name, value)` returns the value as backends take it, or raises TypeError or ValueError.
    """

    name: str
    default: Any
    check: Callable[[str, str, Any], Any]


def _number(op: str, name: str, value) -> float:
    # The first question spares a float the second, which takes ten times as long.
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(
            f"{op}: {name} must be a float, got {value!r} of type {type(value).__name__}"
        )
    if not math.isfinite(value):
        raise ValueError(f"{op}: {name} must be finite, got {value}")
    return float(value)


def _share(op: str, name: str, value) -> float:
    number = _number(op, name, value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{op}: {name} must be in [0, 1], got {value}")
    return number


def _factor(op: str, name: str, value) -> float:
    number = _number(op, name, value)
    if number < 0.0:
        raise ValueError(f"{op}: {name} must be at least 0, got {value}")
    return number


def positive(op: str, name: str, value, remedy: str = "") -> float:
    number = _number(op, name, value)
    if number <= 0.0:
        raise ValueError(f"{op}: {name} must be above 0, got {value}{remedy}")
    return number


def softcap_of(op: str, name: str, value) -> float:
    """0 for none."""
    return 0.0 if value is None else positive(op, name, value, "; use None for no cap")


def _class_index(op: str, name: str, value) -> int:
    """None means the default, in every loss."""
    if value is None:
        return _IGNORE_INDEX
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{op}: {name} must be an int, got {value!r} of type {type(value).__name__}"
        )
    if not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"{op}: {name} must fit 64 bits, got {value}")
    return int(value)


def _reduction(op: str, name: str, value) -> str:
    if value not in REDUCTIONS:
        raise ValueError(f"{op}: {name} must be 'none', 'mean' or 'sum', got {value!r}")
    return value


OPTIONS = (
    Option("ignore_index", _IGNORE_INDEX, _class_index),
    Option("reduction", "mean", _reduction),
    Option("label_smoothing", 0.0, _share),
    Option("z_loss", 0.0, _factor),
    Option("softcap", None, softcap_of),
    Option("logit_scale", 1.0, _number),
)


def _fields(options: tuple[Option, ...]) -> Any:
    """A named tuple with a field for each row; mypy need not know the names."""
    defaults = [option.check("Options", option.name, option.default) for option in options]
    return namedtuple("Options", [option.name for option in options], defaults=defaults)


_Fields: Any = _fields(OPTIONS)


class Options(_Fields):
    """The options of a call in the order of the table, checked: Python constants, known when a graph is compiled.
    `softcap` 0 means none."""

    __slots__ = ()


def make_options(op: str, *values, **named) -> Options:
    """Options from values in the order of the table or by name; the others are left at their defaults."""
    if named:
        rest = OPTIONS[len(values) :]
        values += tuple(named.pop(option.name, option.default) for option in rest)
    if named:
        raise TypeError(f"{op}: no options {', '.join(named)}")
    given = zip(OPTIONS, values, strict=False)
    return Options(*[check(op, name, value) for (name, _, check), value in given])


class ClassBlock(NamedTuple):  # MindSpore compiles no function that names anything "shard"
    """The block of classes that logits hold: [offset, offset + C) of total; total 0 means all of C."""

    offset: int = 0
    total: int = 0


class Plan(NamedTuple):
    """Everything that a loss is asked for beside its tensors: a Cell holds one, a function makes one at each call.

    op: the name in messages. backend: a name, or 'auto'. The other fields but `options` are the arguments of those
    names; `chunk_bytes`, `shift` and `frozen` are the linear loss's, and chunk_bytes 0 means the default.
    """

    op: str
    backend: str
    options: Options
    gradient_in_forward: bool | str = "auto"
    chunk_bytes: int = 0
    shift: bool = False
    frozen: tuple[str, ...] = ()


def named(plan: Plan | tuple[Any, ...]) -> Plan:
    """The plan with its fields' names: a graph hands named tuples over as plain ones."""
    values: tuple[Any, ...] = tuple(plan)
    op, backend, options, *rest = values
    return Plan(op, backend, Options(*options), *rest)


class Gradients(NamedTuple):
    """Of the linear loss: which gradients to make, and whether in the forward pass. What nobody wants costs nothing."""

    in_forward: bool = False
    input: bool = True
    linear_weight: bool = True
    linear_bias: bool = True
