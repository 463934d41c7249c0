"""Checks of everything a caller can get wrong, made once, before any kernel runs.

Each check raises TypeError or ValueError that names the argument, what was expected, what arrived and what to do.
They are constant expressions: in graph mode they run while the graph is compiled. A dimension that is unknown then
(dynamic shape) is checked by the kernel when the graph runs; so is the range of the class indices, always.
"""

from __future__ import annotations

from mindspore import Tensor
from mindspore import dtype as mstype

from ms_ce.ops.graph import Known, known_shape
from ms_ce.ops.precision import constexpr, of_known

FLOATS = (mstype.float16, mstype.bfloat16, mstype.float32, mstype.float64)
LABELS = (mstype.int32, mstype.int64, mstype.uint8)
MAX_RANK = 7  # (N, C, d1…d5)
_CLASSES_LAST = (
    "; classes are axis 1: where they are the last axis of {logits} use "
    "{logits}.reshape(-1, {logits}.shape[-1]) and target.reshape(-1)"
)

Shape = tuple[int, ...]


def _names(dtypes) -> str:
    return ", ".join(str(dtype).lower() for dtype in dtypes)


def check_tensor(op: str, name: str, given):
    """A tensor, or what a graph knows of one, as it is."""
    if isinstance(given, (Tensor, Known)):
        return given
    got, remedy = type(given).__name__, "; make it one with mindspore.Tensor"
    if given is None:
        remedy = "; it is missing"
    elif isinstance(given, tuple):
        remedy = f"; of a network's several outputs pass {name} alone, for instance outputs[0]"
    elif isinstance(given, mstype.Type):
        got, remedy = given, ""  # a graph knows of a number what it is alone
    raise TypeError(f"{op}: {name} must be a mindspore.Tensor, got {got}{remedy}")


def as_class_indices(target) -> str:
    """The remedy where a target of another dtype may have been meant for class indices."""
    if target in LABELS:
        return ""
    return "; class indices are integers: cast them with target.astype(mindspore.int32)"


@constexpr
def check_dtypes(op: str, logits_name: str, logits, target, weight, probabilities: bool) -> None:
    """Dtypes of logits, target and weight (None without one)."""
    if logits not in FLOATS:
        raise TypeError(
            f"{op}: {logits_name} must have dtype {_names(FLOATS)}, got {str(logits).lower()}"
        )
    reals = (logits,) if logits == mstype.float32 else (logits, mstype.float32)
    accepted = (*LABELS, *reals) if probabilities else LABELS
    if target not in accepted:
        kinds = f"{_names(LABELS)} for class indices"
        if probabilities:
            kinds += f" or {_names(reals)} for probabilities"
        raise TypeError(
            f"{op}: target must have dtype {kinds}, got {str(target).lower()}{as_class_indices(target)}"
        )
    if weight is not None and weight not in reals:
        raise TypeError(
            f"{op}: weight must have dtype {_names(reals)} beside {logits_name} of "
            f"{str(logits).lower()}, got {str(weight).lower()}"
        )


def refuse_unknown_rank(op: str, **ranks) -> None:
    """A graph that is compiled for tensors of any rank (`Tensor(shape=None)`) has None for it."""
    for name, rank in ranks.items():
        if rank is None:
            raise ValueError(
                f"{op}: {name} must have a known number of dimensions in a compiled graph; give it a shape "
                "with None for unknown sizes, as Tensor(shape=[None, None]), not shape=None"
            )


def check_ranks(
    op: str, logits_name: str, logits_rank: int, target, target_rank: int, weight_rank
) -> None:
    """Numbers of dimensions, which are known even under dynamic shape."""
    refuse_unknown_rank(op, **{logits_name: logits_rank}, target=target_rank, weight=weight_rank)
    if not 1 <= logits_rank <= MAX_RANK:
        raise ValueError(
            f"{op}: {logits_name} must have shape (C), (N, C) or (N, C, d1…dK) with K up to "
            f"{MAX_RANK - 2}, got {logits_rank} dimensions"
        )
    expected = logits_rank - 1 if target in LABELS else logits_rank
    if target_rank != expected:
        remedy = as_class_indices(target) if target_rank == logits_rank - 1 else ""
        if target in LABELS and logits_rank > 2 and target_rank == 1:
            remedy = _CLASSES_LAST
        if target in LABELS and target_rank == logits_rank:
            remedy = "; class indices have no class axis: for probabilities pass a float target"
            if logits_rank == 2:
                remedy += ", for a column of indices use target.squeeze(-1)"
        raise ValueError(
            f"{op}: target of dtype {str(target).lower()} must have {expected} dimensions to match "
            f"{logits_name} of {logits_rank}, got {target_rank}{remedy.format(logits=logits_name)}"
        )
    if weight_rank != 1:
        raise ValueError(f"{op}: weight must have shape (C,), got {weight_rank} dimensions")


def check_shapes(
    op: str, logits_name: str, logits: Shape | None, target: Shape | None, weight: Shape | None
) -> None:
    """Dimensions, as far as they are known."""
    if logits is None:
        return
    classes = logits[0] if len(logits) == 1 else logits[1]
    if classes == 0:
        raise ValueError(f"{op}: {logits_name} must have at least one class, got shape {logits}")
    if target is not None:
        rows = logits[:1] + logits[2:] if len(logits) > 1 else ()
        expected = logits if len(target) == len(logits) else rows
        if target != expected:
            remedy = _CLASSES_LAST if len(logits) > 2 and target == logits[:-1] else ""
            raise ValueError(
                f"{op}: target must have shape {expected} to match {logits_name} "
                f"{logits}, got {target}{remedy.format(logits=logits_name)}"
            )
    if weight is not None and weight[0] != classes:
        raise ValueError(
            f"{op}: weight must have shape ({classes},), one value a class of {logits_name} "
            f"{logits}, got {weight}"
        )


def check_class_weight(op: str, weight):
    """A Cell's class weight, as far as it is known when the Cell is made."""
    if weight is None:
        return None
    weight = check_tensor(op, "weight", weight)
    if weight.dtype not in FLOATS:
        raise TypeError(
            f"{op}: weight must have dtype {_names(FLOATS)}, got {str(weight.dtype).lower()}"
        )
    if weight.ndim != 1:
        raise ValueError(f"{op}: weight must have shape (C,), got {weight.shape}")
    return weight


def check_row_weight(op: str, row_weight, rows_rank: int, rows: Shape | None) -> None:
    """A factor for each row; `rows` is their shape, as far as it is known, and `rows_rank` its length."""
    row_weight = check_tensor(op, "row_weight", row_weight)
    dtype, rank, shape = row_weight.dtype, row_weight.ndim, known_shape(row_weight)
    if dtype not in FLOATS:
        raise TypeError(
            f"{op}: row_weight must have dtype {_names(FLOATS)}, got {str(dtype).lower()}; "
            "cast it with row_weight.astype(mindspore.float32)"
        )
    refuse_unknown_rank(op, row_weight=rank)
    if rank != rows_rank or (shape is not None and rows is not None and shape != rows):
        expected = f"shape {rows}" if rows is not None else f"{rows_rank} dimensions"
        got = f"{rank} dimensions" if shape is None else f"shape {shape}"
        raise ValueError(f"{op}: row_weight must have {expected}, one value a row, got {got}")


@constexpr
def check_divides(op: str, reduction: str) -> None:
    if reduction != "mean":
        raise ValueError(
            f"{op}: total_weight is the divisor of a mean, and reduction is {reduction!r}; leave one of them out"
        )


@constexpr
def check_total_weight(op: str, dtype, shape: Shape) -> None:
    """A mean's divisor that is a tensor; its value is the graph's or the device's."""
    if dtype not in (*LABELS, *FLOATS):
        raise TypeError(
            f"{op}: total_weight must have dtype {_names((*LABELS, *FLOATS))}, got {str(dtype).lower()}"
        )
    refuse_unknown_rank(op, total_weight=None if shape is None else len(shape))
    if shape != ():
        raise ValueError(
            f"{op}: total_weight must be a number or have shape (), got {shape}; use total_weight.reshape(()) or the "
            "sum of it"
        )


@constexpr
def check_ignore_index(op: str, target, ignore_index: int) -> None:
    """Probabilities have no rows to ignore."""
    if target not in LABELS and ignore_index >= 0:
        raise ValueError(
            f"{op}: ignore_index must stay negative with a probability target, got {ignore_index}; "
            "set the probabilities of a row to 0 to leave it out"
        )


@constexpr
def check_flag(op: str, name: str, value) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")
    return value


@of_known
def check_class_indices(op: str, target) -> None:
    dtype = check_tensor(op, "target", target).dtype
    if dtype not in LABELS:
        raise TypeError(
            f"{op}: target must hold class indices of dtype {_names(LABELS)}, got {str(dtype).lower()}"
            + as_class_indices(dtype)
        )


@constexpr
def check_gradient_in_forward(op: str, value) -> None:
    if value not in ("auto", True, False):
        raise ValueError(f"{op}: gradient_in_forward must be 'auto', True or False, got {value!r}")


@constexpr
def check_reduced(op: str, reduction: str) -> None:
    if reduction == "none":
        raise ValueError(f"{op}: reduction must be 'mean' or 'sum', got 'none'")
