"""What the linear losses share where each rank of a group holds a block of the last layer's weight."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import nn
from mindspore.ops import constexpr

from ms_ce import _checks, _linear_checks
from ms_ce._cell import LossCell
from ms_ce.ops.graph import known_shape
from ms_ce.ops.options import Gradients, Plan, named
from ms_ce.ops.precision import of_known
from ms_ce.ops.table import kernels_of
from ms_ce.parallel.exchange import Group, world
from ms_ce.parallel.local import holds_class_indices
from ms_ce.parallel.place import VocabularyBlocks


@constexpr
def check_dtype(op: str, name: str, dtype) -> None:
    if dtype == ms.float64:
        raise TypeError(
            f"{op}: {name} must have dtype float16, bfloat16 or float32, got float64, whose gradients "
            "MindSpore's CPU collectives do not sum"
        )


def _check_ranks(op: str, hidden: int, target: int, indices: bool) -> None:
    expected = hidden - 1 if indices else hidden
    if target != expected:
        kind = "class indices" if indices else "class probabilities"
        raise ValueError(
            f"{op}: target of {kind} must have {expected} dimensions beside input of {hidden}, got {target}"
        )


def _check_rows(op: str, hidden, target, ranks: int, held: int, indices: bool) -> None:
    """Shapes of input and target, as far as they are known."""
    if hidden is None or target is None:
        return
    expected = (hidden[0] * ranks, *hidden[1:-1]) + (() if indices else (held,))
    if target != expected:
        whole = "" if ranks == 1 else f" of each of {ranks} ranks"
        raise ValueError(
            f"{op}: target must have shape {expected} to match input {hidden}{whole}, got {target}"
        )


def _rows(target, indices: bool):
    """The shape of the rows of a target, as far as it is known."""
    return target if target is None or indices else target[:-1]


@of_known
def _check(plan, parts, weight_dtype, input, linear_weight, target, linear_bias, row_weight):
    plan = named(plan)
    op = plan.op
    input = _checks.check_tensor(op, "input", input)
    linear_weight = _checks.check_tensor(op, "linear_weight", linear_weight)
    target = _checks.check_tensor(op, "target", target)
    bias_dtype, bias_shape = None, None
    if linear_bias is not None:
        linear_bias = _checks.check_tensor(op, "linear_bias", linear_bias)
        bias_dtype, bias_shape = linear_bias.dtype, linear_bias.shape
    _checks.check_dtypes(op, "input", input.dtype, target.dtype, weight_dtype, True)
    check_dtype(op, "input", input.dtype)
    _linear_checks.check_dtypes(op, input.dtype, linear_weight.dtype, bias_dtype)
    _linear_checks.check_matrix(op, linear_weight.ndim)
    _linear_checks.check_block(op, input.shape[-1], linear_weight.shape, bias_shape)
    indices = holds_class_indices(target.dtype)
    _check_ranks(op, input.ndim, target.ndim, indices)
    hidden, labels = known_shape(input), known_shape(target)
    _check_rows(op, hidden, labels, parts, linear_weight.shape[0], indices)
    _checks.check_ignore_index(op, target.dtype, plan.options.ignore_index)
    if row_weight is not None:
        _checks.check_row_weight(op, row_weight, input.ndim - 1, _rows(labels, indices))


class LinearOverBlocks(LossCell):
    """A Cell whose weight lies in blocks: `location` knows where, `sweep` makes what walks over the chunks of rows."""

    def __init__(
        self,
        plan: Plan,
        group: str | None,
        class_blocks: Sequence[int] | None,
        num_classes: int | None,
        sequence_parallel: bool,
    ):
        super().__init__()
        self.plan, self.kernels = plan, kernels_of(plan.backend)
        _checks.check_flag(plan.op, "sequence_parallel", sequence_parallel)
        chosen = Group(plan.op, world() if group is None else group)
        self.location = VocabularyBlocks(
            plan.op, "linear_weight", chosen, class_blocks, num_classes, sequence_parallel
        )
        self.parts = chosen.size if sequence_parallel else 1
        self.made_sweeps: dict[tuple, nn.Cell] = {}

    def sweep(self, kind: type, gradients: Gradients, *more: bool) -> nn.Cell:
        """The Cell of this kind that makes these gradients, built once."""
        key = (kind, gradients, *more)
        if key not in self.made_sweeps:
            options, chunk_bytes = self.plan.options, self.plan.chunk_bytes
            self.made_sweeps[key] = kind(
                self.kernels, self.location, options, chunk_bytes, gradients, *more
            )
        return self.made_sweeps[key]

    def unfrozen(self) -> tuple[bool, ...]:
        """Of input, weight and bias, what is not known to need no gradient."""
        return tuple(name not in self.plan.frozen for name in _linear_checks.FREEZABLE)

    def check(self, input, linear_weight, target, linear_bias, row_weight, weight_dtype):
        """Everything that can be known of the tensors before the kernel runs."""
        tensors = (input, linear_weight, target, linear_bias, row_weight)
        _check(self.plan, self.parts, weight_dtype, *tensors)
