"""What a device mesh is to a loss: how many ways rows and classes are split."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

from mindspore import get_auto_parallel_context
from mindspore.ops import constexpr
from mindspore.parallel._utils import _get_device_num, _get_global_rank

_FIELDS = ("data_parallel", "model_parallel", "context_parallel")
_PARTITIONED_MODES = ("semi_auto_parallel", "auto_parallel")


@dataclass(frozen=True)
class ParallelConfig:
    """How the work of a loss is split over devices.

    Args:
        data_parallel: ways that the rows are split over data-parallel groups.
        model_parallel: ways that the classes (the vocabulary) are split.
        context_parallel: ways that the rows are split once more, along the sequence.

    Raises:
        TypeError: a field is not an int.
        ValueError: a field is below 1.

    Example:
        >>> from ms_ce.parallel import ParallelConfig
        >>> ParallelConfig(data_parallel=2, model_parallel=4)
        ParallelConfig(data_parallel=2, model_parallel=4, context_parallel=1)
    """

    data_parallel: int = 1
    model_parallel: int = 1
    context_parallel: int = 1

    def __post_init__(self) -> None:
        for name in _FIELDS:
            check_positive(f"ParallelConfig: {name}", getattr(self, name))


class Mesh(NamedTuple):
    """`rows` ways over the rows times `classes` ways over the classes."""

    rows: int
    classes: int


def check_positive(argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be an int, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, got {value}")
    return int(value)


def mesh_of(op: str, parallel_config: object) -> Mesh:
    """The mesh of any object with data_parallel and model_parallel.

    Our own `ParallelConfig` carries its context_parallel with it. mindformers multiplies context_parallel into
    data_parallel before it builds its loss and leaves the attribute set, so that there it must not count again.
    """
    for name in _FIELDS[:2]:
        if not hasattr(parallel_config, name):
            raise TypeError(
                f"{op}: parallel_config must have data_parallel and model_parallel, got "
                f"{parallel_config!r}; use ms_ce.parallel.ParallelConfig"
            )
    rows, classes = (
        check_positive(f"{op}: parallel_config.{name}", getattr(parallel_config, name))
        for name in _FIELDS[:2]
    )
    if isinstance(parallel_config, ParallelConfig):
        rows *= parallel_config.context_parallel
    return Mesh(rows, classes)


def is_partitioned() -> bool:
    """Whether MindSpore's partitioner splits the graph that is being built or compiled."""
    return get_auto_parallel_context("parallel_mode") in _PARTITIONED_MODES


is_partitioned_at_compile = constexpr(is_partitioned, reuse_result=False)


def mesh_copies(op: str, rows: int, classes: int) -> int:
    """How many times the mesh fits into the devices of a pipeline stage; copies of it compute the same."""
    devices = _get_device_num() // get_auto_parallel_context("pipeline_stages")
    copies, rest = divmod(devices, rows * classes)
    if rest or not copies:
        raise ValueError(
            f"{op}: data_parallel times model_parallel must divide the number of devices (of a pipeline stage), "
            f"{devices}, got {rows} times {classes}"
        )
    return copies


def class_rank(op: str, rows: int, classes: int) -> int:
    """Which block of classes this rank holds: copies of one are neighbours, then come the classes, then the rows."""
    return _get_global_rank() // mesh_copies(op, rows, classes) % classes


def _refuse_copies(op: str, rows: int, classes: int) -> None:
    if classes > 1 and mesh_copies(op, rows, classes) > 1:
        raise ValueError(
            f"{op}: data_parallel times model_parallel must be the number of devices (of a pipeline stage), got {rows} "
            f"times {classes} on {_get_device_num()} devices: MindSpore's GatherD then fetches target logits of "
            "other blocks; raise data_parallel"
        )


refuse_copies_at_compile = constexpr(_refuse_copies, reuse_result=False)


@constexpr
def check_divisible(op: str, shape: tuple[int, ...] | None, rows: int, classes: int) -> None:
    """The partitioner only splits evenly; None stands for a shape unknown at compile time."""
    if shape is None:
        return
    for axis, (noun, ways, field) in enumerate(
        (("rows", rows, "data_parallel"), ("classes", classes, "model_parallel"))
    ):
        if shape[axis] % ways:
            raise ValueError(
                f"{op}: the {noun} of logits must be divisible by {ways} ({field}), got logits of "
                f"shape {tuple(shape)}; pad them (label ignore_index for rows, -inf logits for "
                "classes) or change parallel_config"
            )
