"""The lines a loss is called by: torch's order of positional arguments, MindSpore's, and both sets of names.

Behind weight stand, as torch.nn, torch.nn.functional and mindspore.nn, mindspore.mint, mindspore.ops take them,

    torch       size_average, ignore_index, reduce, reduction, label_smoothing
    MindSpore   ignore_index, reduction, label_smoothing

The first of them tells the orders apart: a bool or None is torch's, an int MindSpore's.
"""

from __future__ import annotations

import functools
import sys
import warnings
from numbers import Integral
from typing import Any, NamedTuple

from ms_ce import _checks
from ms_ce.ops.options import OPTIONS, Options, Plan, make_options
from ms_ce.ops.precision import constexpr, of_known


class Default(NamedTuple):
    """The value of an argument that nobody gave: one that is given and equal to it can be told from it.

    A tuple, since compiled graphs take one as a default; shown as its value.
    """

    value: Any

    def __repr__(self):
        return repr(self.value)


# Of any type for a checker: each stands where a signature has a bool, an int, a str or a float.
NOT_GIVEN: Any = Default(None)
IGNORE_INDEX: Any
REDUCTION: Any
LABEL_SMOOTHING: Any
IGNORE_INDEX, REDUCTION, LABEL_SMOOTHING = (Default(option.default) for option in OPTIONS[:3])

_OPTION_NAMES = [option.name for option in OPTIONS]
_DEPRECATED = ("size_average", "reduce")
_TORCH = ("size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
_MINDSPORE = ("ignore_index", "reduction", "label_smoothing")


def _is_default(value) -> bool:
    return isinstance(value, tuple)  # a graph knows Default as a plain one


def _names(op: str, positional: tuple) -> tuple[str, ...]:
    """What the positional arguments behind weight are, by the type of the first."""
    first = positional[0]
    names: tuple[str, ...] = _MINDSPORE
    if first is None or isinstance(first, bool):
        names = _TORCH
    elif not isinstance(first, Integral):
        raise TypeError(
            f"{op}: behind weight stands ignore_index, an int, or torch's size_average, a bool or None; "
            f"got {first!r}: pass it by keyword"
        )
    if len(positional) > len(names):
        raise TypeError(
            f"{op}: behind weight stand at most {len(names)} positional arguments, {', '.join(names)}; "
            f"got {len(positional)}"
        )
    return names


def _reduction(op: str, size_average, reduce, reduction):
    """torch's deprecated pair overrides reduction where either is given."""
    if size_average is None and reduce is None:
        return reduction
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{op}: {name} must be True, False or None, got {value!r}")
    chosen = "none" if reduce is False else "sum" if size_average is False else "mean"
    warnings.warn(
        f"{op}: size_average and reduce are deprecated; use reduction={chosen!r}",
        DeprecationWarning,
        stacklevel=_callers_level(),
    )
    return chosen


_NOT_THE_CALLER = ("ms_ce", "mindspore", "contextlib")


def _callers_level() -> int:
    """The stacklevel, for a warning of the function that asks, of the line outside ms_ce, MindSpore and contextlib."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_THE_CALLER:
            break
        level, frame = level + 1, frame.f_back
    return level


def _by_name(op: str, positional: tuple, deprecated: tuple, values: tuple) -> tuple:
    """(deprecated, values) with the positional arguments in their places."""
    names = (*_DEPRECATED, *_OPTION_NAMES)
    given = dict(zip(names, (*deprecated, *values), strict=False))
    for name, value in zip(_names(op, positional), positional, strict=False):
        if not _is_default(given[name]):
            raise TypeError(
                f"{op}: {name} is given twice: {value!r} by position and {name}={given[name]!r}"
            )
        given[name] = value
    together = tuple(given.values())
    return together[:2], together[2:]


def _resolved(op: str, positional: tuple, deprecated: tuple, values: tuple) -> Options:
    """Options from the positional arguments behind weight and from keywords, each checked."""
    if positional:
        deprecated, values = _by_name(op, positional, deprecated, values)
    given = [value[0] if _is_default(value) else value for value in values]
    if deprecated != (NOT_GIVEN, NOT_GIVEN):
        size_average, reduce = (value[0] if _is_default(value) else value for value in deprecated)
        place = _OPTION_NAMES.index("reduction")
        given[place] = _reduction(op, size_average, reduce, given[place])
    return make_options(op, *given)


def make_plan(
    op: str,
    backend: str,
    positional: tuple,
    deprecated: tuple,
    values: tuple,
    gradient_in_forward="auto",
) -> Plan:
    """What a call or a Cell asks for.

    positional: the arguments behind weight. deprecated: size_average and reduce. values: the options by keyword, in the
    order of the table.
    """
    options = _resolved(op, positional, deprecated, values)
    _checks.check_gradient_in_forward(op, gradient_in_forward)
    return Plan(op, backend, options, gradient_in_forward)


def make_nll_plan(
    op: str, backend: str, positional: tuple, deprecated: tuple, values: tuple
) -> Plan:
    """That of a negative log likelihood: mindspore.ops.nll_loss has a place for label smoothing."""
    plan = make_plan(op, backend, positional, deprecated, values)
    if plan.options.label_smoothing:
        raise ValueError(
            f"{op}: label_smoothing must be 0, got {plan.options.label_smoothing}; cross_entropy smooths, and takes "
            "log-probabilities as the logits that they are"
        )
    return plan


planned, planned_nll = constexpr(make_plan), constexpr(make_nll_plan)


@constexpr
def _refuse_twice(op: str, name: str, other: str) -> None:
    raise TypeError(f"{op}: {name} and {other} are the same argument, and both are given")


def either(op, name, value, other, other_value):
    """The value of a function's argument that has two names; code that runs and code that is compiled call it."""
    if other_value is None:
        return value
    if value is not None:
        _refuse_twice(op, name, other)
    return other_value


_INPUTS = {
    "input": ("input", "logits"),
    "target": ("target", "labels"),
    "row_weight": ("row_weight",),
    "total_weight": ("total_weight",),
}
_OPTIONAL = ("row_weight", "total_weight")


@functools.lru_cache(maxsize=64)
def _places(op: str, by_position: int, by_name: tuple[str, ...]) -> tuple[int, ...]:
    """Where each of a Cell's inputs stands in (*by position, *by name, None); it is there once, under one of its names,
    and weights may be missing."""
    if by_position > len(_INPUTS):
        raise TypeError(f"{op}: the inputs are {', '.join(_INPUTS)}, got {by_position} by position")
    known = [name for names in _INPUTS.values() for name in names]
    for name in by_name:
        if name not in known:
            raise TypeError(f"{op}: the inputs are {', '.join(known)}, got {name}")
    places: list[int] = []
    for position, (kind, names) in enumerate(_INPUTS.items()):
        given = {"the one by position": position} if position < by_position else {}
        given |= {name: by_position + by_name.index(name) for name in names if name in by_name}
        if not given and kind not in _OPTIONAL:
            raise TypeError(f"{op}: {kind} is missing; it is also called {names[1]}")
        if len(given) > 1:
            raise TypeError(f"{op}: {kind} is given twice: {' and '.join(given)}")
        places += given.values() or [by_position + len(by_name)]
    return tuple(places)


@of_known
def _missing(op, tensors, names):
    """A None for each weight that is missing behind the tensors; no tuple but None where inputs are given by name."""
    places = _places(op, len(tensors), names)
    return None if names else (None,) * (len(places) - len(tensors))


_known_places = constexpr(_places)


def _by_places(op, tensors, names):
    """A function of its own: a graph whose inputs all come by position does not parse it."""
    first, second, third, fourth = _known_places(op, len(tensors), tuple(names.keys()))
    given = (*tensors, *names.values(), None)
    return given[first], given[second], given[third], given[fourth]


def inputs_of(op, tensors, names):
    """(input, target, row_weight or None, total_weight or None) of a Cell from its positional and its named inputs.

    A Cell takes them as `*tensors, **names`: inside a compiled graph MindSpore differentiates no Cell that has inputs
    with defaults.
    """
    missing = _missing(op, tensors, tuple(names.keys()))
    if missing is None:
        return _by_places(op, tensors, names)
    return (*tensors, *missing)
