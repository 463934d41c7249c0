"""Which implementation computes a loss: one ordered table, one way to choose from it.

`auto` takes the first row whose device target is in use and whose probe finds nothing missing. A backend asked for
by name either serves or says why it cannot; nothing falls back in silence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from mindspore import context
from mindspore._c_expression import ms_ctx_param

from ms_ce.ops.options import Plan, named
from ms_ce.ops.precision import constexpr
from ms_ce.ops.protocol import DistillationForm, Kernels, LinearForm, TopKForm
from ms_ce.ops.table import kernels_of

ANY_DEVICE = "any"


@dataclass(frozen=True)  # not named tuples, of which bytecode capture makes plain ones
class Forms:
    """What computes the linear loss with a weight (C, H), distillation of two models, and that of one beside what is
    stored of another."""

    linear: LinearForm
    distillation: DistillationForm
    top_k: TopKForm


@dataclass(frozen=True)
class Backend:
    """A row of the table."""

    name: str
    device: str
    dtypes: tuple[str, ...]
    forms: Callable[[], Forms]
    description: str
    partitioned: str


class Availability(NamedTuple):
    """A row of `available_backends()`; `reason` is None where the backend can be used, and `partitioned` says what
    ms_ce.parallel computes with, for this backend, in a graph that MindSpore's partitioner splits."""

    name: str
    device: str
    dtypes: tuple[str, ...]
    description: str
    reason: str | None
    partitioned: str


# Imported where a loss first asks for them, as `cpu` is (ops/table.py).


def _of_cpu() -> Forms:
    from ms_ce.ops.cpu import linear, linear_distillation

    return Forms(linear, linear_distillation, linear_distillation)


def _in_chunks() -> Forms:
    from ms_ce.ops.linear import chunked, divergence, top_k

    return Forms(chunked, divergence, top_k)


_PRIMITIVES = "primitives with sharding strategies"
_HALF_TO_DOUBLE = ("float16", "bfloat16", "float32", "float64")

TABLE = (
    Backend(
        "cpu",
        "CPU",
        _HALF_TO_DOUBLE,
        _of_cpu,
        "fused C++ kernel, one call each way",
        "nothing: MindSpore partitions no graphs on CPU",
    ),
    Backend(
        "ascend",
        "Ascend",
        ("float16", "bfloat16", "float32"),
        _in_chunks,
        "fused Ascend C operators, built from custom_aicore; not yet run on hardware",
        f"the fused kernel for class indices (self_define_shard), {_PRIMITIVES} for probabilities",
    ),
    Backend(
        "composed",
        ANY_DEVICE,
        _HALF_TO_DOUBLE,
        _in_chunks,
        "MindSpore primitives",
        _PRIMITIVES,
    ),
)
ROWS = {row.name: row for row in TABLE}


def device_target() -> str:
    """The device that MindSpore runs on: 'CPU', 'Ascend' or 'GPU'."""
    # get_context takes fifty times as long, and every call of a loss asks.
    return context._context().get_param(ms_ctx_param.device_target)


def _reason(row: Backend) -> str | None:
    if row.device not in (ANY_DEVICE, device_target()):
        return f"needs device target {row.device}, and MindSpore runs on {device_target()}"
    return kernels_of(row.name).probe()


def available_backends() -> tuple[Availability, ...]:
    """The table of backends in order of preference, each with the reason why it is not usable here.

    Returns:
        tuple of Availability: name, device, dtypes, description, reason (None where it can be used), partitioned (what
        ms_ce.parallel computes with in a graph that MindSpore's partitioner splits).

    Example:
        >>> import ms_ce
        >>> [row.name for row in ms_ce.available_backends()][-1]
        'composed'
    """
    return tuple(
        Availability(
            row.name, row.device, row.dtypes, row.description, _reason(row), row.partitioned
        )
        for row in TABLE
    )


def partitioned() -> str:
    """What backend='auto' computes with in a graph that MindSpore's partitioner splits (semi_auto_parallel,
    auto_parallel, AutoParallel), and why.

    Example:
        >>> from ms_ce.backend import partitioned
        >>> partitioned().partition(":")[0] in ("'ascend'", "'composed'")
        True
    """
    reason = _reason(ROWS["ascend"])
    if reason is None:
        return f"'ascend': {ROWS['ascend'].partitioned}"
    return f"'composed': {_PRIMITIVES}, since 'ascend' cannot be used: {reason}"


@functools.lru_cache(maxsize=4)
def _first_usable(device: str) -> str:
    return next(row.name for row in TABLE if _reason(row) is None)


def choose(op: str, backend: str = "auto") -> str:
    """The name of the backend that serves `backend`."""
    if backend == "auto":
        return _first_usable(device_target())
    if backend not in ROWS:
        raise ValueError(
            f"{op}: backend must be 'auto' or one of {', '.join(ROWS)}, got {backend!r}"
        )
    reason = _reason(ROWS[backend])
    if reason is not None:
        raise ValueError(f"{op}: backend {backend!r} cannot be used here: {reason}")
    return backend


def requested(op: str, backend: str) -> str:
    """What a Cell keeps of `backend`: a name that serves, or 'auto', which is answered at each call, since the
    device may be set after the Cell is made."""
    return backend if backend == "auto" else choose(op, backend)


@constexpr
def resolved(plan: Plan | tuple[Any, ...]) -> Plan:
    """The plan with the name of the backend that serves."""
    plan = named(plan)
    return plan._replace(backend=choose(plan.op, plan.backend))


@constexpr
def serving(op: str, backend: str) -> Kernels:
    """The kernels of the backend that serves `backend`."""
    return kernels_of(choose(op, backend))


@constexpr
@functools.cache
def linear_form(backend: str, weight_rank: int) -> LinearForm:
    """How a backend, which serves, computes the linear loss."""
    if weight_rank == 2:
        return ROWS[backend].forms().linear
    from ms_ce.ops.linear import plain

    return plain


@constexpr
@functools.cache
def distillation_form(backend: str) -> DistillationForm:
    """How a backend, which serves, computes distillation."""
    return ROWS[backend].forms().distillation


@constexpr
@functools.cache
def top_k_form(backend: str) -> TopKForm:
    """How a backend, which serves, computes distillation from stored log-probabilities."""
    return ROWS[backend].forms().top_k


@constexpr
def splits_into_blocks(op: str, backend: str, dtype: Any) -> bool:
    """Whether the kernels that serve `backend` take blocks of logits of this dtype in a partitioned graph."""
    row = ROWS[choose(op, backend)]
    return kernels_of(row.name).BLOCKS_IN_PARTITIONED_GRAPHS and str(dtype).lower() in row.dtypes
