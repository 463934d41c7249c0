"""Vocabulary-parallel cross entropy for programs that hold their own block of classes (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Parameter, Tensor, ops
from mindspore.ops import constexpr

from ms_ce import _arguments, _checks, _divisor
from ms_ce._cell import LossCell
from ms_ce.backend import choose
from ms_ce.functional import check_inputs, constant
from ms_ce.ops import mean
from ms_ce.ops.options import make_options
from ms_ce.ops.rows import RowLoss
from ms_ce.ops.table import kernels_of
from ms_ce.parallel.blocks import check_weight
from ms_ce.parallel.exchange import Group, SumGradient, world
from ms_ce.parallel.mean import RowReduction
from ms_ce.parallel.place import VocabularyBlocks

_OP = "VocabParallelCrossEntropyLoss"


@constexpr
def _check_split(rank: int) -> None:
    if rank < 2:
        raise ValueError(f"{_OP}: logits must have shape (N, C_local, …), got {rank} dimensions")


class VocabParallelCrossEntropyLoss(LossCell):
    r"""Cross entropy of logits whose classes are split over the ranks of a group.

    Every rank passes its own block of the logits' columns and the same targets, as class indices of the whole
    vocabulary. The loss is that of `ms_ce.CrossEntropyLoss` for the logits put together, the same on every rank of
    the group; the gradient is that of the rank's own block. Over `row_group`, gradients of parameters remain to be
    summed, as always where rows are split. Forward exchanges the statistics of the rows (their lse
    and target logit) in one collective, backward nothing. Works in PyNative mode, graph mode and ms.jit, in
    stand_alone and data_parallel contexts; under semi_auto_parallel use `ms_ce.parallel.CrossEntropyLoss`.

    With `row_group`, ranks hold different rows (data, sequence or context parallel), and a mean or sum is that of the
    rows of all of them.

    Args:
        group (str): name of the communication group whose ranks, in order, hold consecutive blocks of classes.
            Default: all ranks.
        weight (Tensor): a factor for each class of the whole vocabulary, (C,), or None. A Parameter gets its whole
            gradient on every rank of the group, at the price of one more collective, of C numbers, backward.
        ignore_index (int): class index that does not count. Default -100, also for None.
        reduction (str): 'none', 'mean' or 'sum'. Default 'mean'.
        label_smoothing (float): ε in [0, 1], over the whole vocabulary. Default 0.

    Keyword Args:
        class_blocks (sequence of int): columns that each rank holds. Default: equal blocks.
        num_classes (int): size of the vocabulary without its padding, where the last blocks hold columns beyond it.
            They take no part in the loss and get gradient 0. Default: every column counts.
        row_group (str): name of the group of the ranks that hold other rows of the same classes. Default: none.
        gradients_mean (bool): whether gradients are averaged, not summed, over row_group; see `GlobalMean`.
        z_loss (float), softcap (float), logit_scale (float): as in `ms_ce.cross_entropy`.
        backend (str): 'auto', or a name of `available_backends()`.

    Inputs:
        - **logits** - (N, C_local) or (N, C_local, d1…dK), float16, bfloat16, float32 or float64.
        - **target** - class indices of logits' shape without axis 1, int32, int64 or uint8; or this rank's block of
          probabilities, of logits' shape, which get the gradient of that block.
        - **row_weight** - optional, a factor for each row as in `ms_ce.cross_entropy`, the same on every rank of the
          group.
        - **total_weight** - optional, the mean's divisor as there: one for all rows, those of the other ranks of
          `row_group` too.

    Outputs:
        As `ms_ce.CrossEntropyLoss`, in logits' dtype; float32 for a mean over `row_group`.

    Raises:
        TypeError, ValueError: for arguments and inputs that do not fit. A class index out of range raises when the
            result is read, on every rank.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import get_group_size, init
        >>> init()  # each rank of msrun runs this
        >>> loss = ms_ce.parallel.VocabParallelCrossEntropyLoss()
        >>> block = mindspore.ops.zeros((2, 12 // get_group_size()))  # this rank's columns of 12 classes
        >>> print(f"{float(loss(block, mindspore.Tensor([0, 11]))):.3f}")  # log 12
        2.485

    Source: Shoeybi et al. 2019 (Megatron-LM), vocabulary-parallel cross entropy.
    """

    def __init__(
        self,
        group: str | None = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        class_blocks: Sequence[int] | None = None,
        num_classes: int | None = None,
        row_group: str | None = None,
        gradients_mean: bool = False,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.options = make_options(
            _OP, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
        )
        self.reduction, self.ignore_index = reduction, self.options.ignore_index
        self.weight = _checks.check_class_weight(_OP, weight)
        chosen = Group(_OP, world() if group is None else group)
        place = VocabularyBlocks(_OP, "logits", chosen, class_blocks, num_classes)
        # Only a Parameter is worth a gradient, which reads the logits once more.
        trains_weight = isinstance(weight, Parameter)
        kernels = kernels_of(choose(_OP, backend))
        self.rows = RowLoss(kernels, place, self.options, trains_weight)
        self.shared_weight = SumGradient(chosen.name) if trains_weight else None
        self.reduced = RowReduction(reduction, row_group, gradients_mean)

    def construct(self, *tensors: float | Tensor | None, **names: float | Tensor | None) -> Tensor:
        given = _arguments.inputs_of(_OP, tensors, names)
        logits, target, row_weight, total_weight = given
        logits = self.in_precision(logits)
        check_inputs(_OP, "logits", logits, target, None, row_weight, self.options, True)
        row_weight = constant(row_weight)
        from_outside = None
        if total_weight is not None:
            from_outside = _divisor.divisor_of(_OP, self.reduction, total_weight)
        _check_split(logits.ndim)
        if self.weight is not None:
            check_weight(_OP, self.rows.location.block_of(logits.shape[1])[2], self.weight.shape)
        weight = self.weight
        if self.shared_weight is not None:
            weight = self.shared_weight(weight)
        row_loss, _, _ = self.rows(logits, target, weight, row_weight)
        if self.reduction == "none":
            return ops.cast(row_loss, logits.dtype)
        loss_sum, divisor = ops.ReduceSum()(row_loss), None
        if from_outside is not None:
            return self.reduced.over(loss_sum, from_outside, logits.dtype)
        if self.reduction == "mean":
            given = (self.weight, row_weight, self.ignore_index, row_loss.dtype)
            divisor = mean.total_weight(target, row_loss.shape, *given)
        return self.reduced(loss_sum, divisor, logits.dtype)
