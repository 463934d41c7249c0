"""Which classes of a vocabulary each rank of a group holds."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore.ops import constexpr

from ms_ce.parallel.config import check_positive


def checked_blocks(
    op: str, class_blocks: Sequence[int] | None, ranks: int
) -> tuple[int, ...] | None:
    """Sizes of the blocks in order of rank; None where all are alike."""
    if class_blocks is None:
        return None
    sizes = tuple(
        check_positive(f"{op}: class_blocks[{i}]", size) for i, size in enumerate(class_blocks)
    )
    if len(sizes) != ranks:
        raise ValueError(
            f"{op}: class_blocks must have {ranks} entries, one a rank of the group, got {len(sizes)}"
        )
    return sizes


@constexpr
def class_block(
    op: str,
    name: str,
    rank: int,
    ranks: int,
    class_blocks: tuple[int, ...] | None,
    num_classes: int | None,
    held: int,
) -> tuple[int, int, int]:
    """(offset, classes that count, classes in all) of a rank whose tensor `name` has `held` classes."""
    sizes = class_blocks or (held,) * ranks
    if sizes[rank] != held:
        raise ValueError(
            f"{op}: {name} of rank {rank} must have {sizes[rank]} classes (class_blocks), got {held}"
        )
    offset, padded = sum(sizes[:rank]), sum(sizes)
    total = num_classes or padded
    if total > padded:
        raise ValueError(
            f"{op}: num_classes must be at most the {padded} classes that the ranks hold, got {total}"
        )
    counted = min(held, total - offset)
    if counted < 1:
        raise ValueError(
            f"{op}: rank {rank} would hold padding only: num_classes is {total} and its block "
            f"begins at {offset}; use fewer ranks or other class_blocks"
        )
    return offset, counted, total


@constexpr
def check_weight(op: str, total: int, shape: tuple[int, ...]) -> None:
    if tuple(shape) != (total,):
        raise ValueError(
            f"{op}: weight must have shape ({total},), one value a class of the whole vocabulary, "
            f"got {tuple(shape)}"
        )
