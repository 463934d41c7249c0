"""Vocabulary-parallel cross entropy for programs that hold their own block of classes (SPMD)."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.ops import constexpr

from ms_ce import _checks
from ms_ce.backend import choose, device_target
from ms_ce.functional import check_inputs
from ms_ce.ops.eager import DifferentiableCell, wanted
from ms_ce.ops.mean import total_weight
from ms_ce.ops.options import ClassBlock, Options, make_options
from ms_ce.ops.table import KERNELS
from ms_ce.parallel.blocks import check_weight, checked_blocks, class_block
from ms_ce.parallel.config import check_positive
from ms_ce.parallel.exchange import AllStatistics, Group, SumGradient, world
from ms_ce.parallel.local import holds_class_indices
from ms_ce.parallel.mean import RowReduction

_OP = "VocabParallelCrossEntropyLoss"


@constexpr
def _check_split(rank: int) -> None:
    if rank < 2:
        raise ValueError(f"{_OP}: logits must have shape (N, C_local, …), got {rank} dimensions")


@constexpr
def _rows_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the rows of logits (N, C, …)."""
    return (shape[0], *shape[2:])


class VocabParallelRows(DifferentiableCell):
    """Row losses of logits whose classes are split over a group.

    Inputs: logits (N, C_local, …), target, weight of all classes or None.
    Output: row losses, then lse and Σ w·q' of the whole rows, which the derivative needs; each of the rows' shape, in
    float64 on CPU and float32 elsewhere.
    """

    def __init__(
        self,
        group: Group,
        class_blocks: tuple[int, ...] | None,
        num_classes: int | None,
        options: Options,
        backend: str,
        weight_gradient: bool,
    ):
        super().__init__()
        self.options, self.weight_gradient = options._replace(reduction="none"), weight_gradient
        self.z_loss, self.ignore_index = options.z_loss, options.ignore_index
        kernels = KERNELS[choose(_OP, backend)]
        self.partial, self.partial_backward = kernels.partial, kernels.partial_backward
        self.target_grad, self.weight_grad = (
            kernels.partial_target_grad,
            kernels.partial_weight_grad,
        )
        # On CPU the statistics cross as two float32 each, so that they arrive in float64.
        self.in_two_parts = device_target() == "CPU"
        self.wide = ms.float64 if self.in_two_parts else ms.float32
        self.gather = AllStatistics(group)
        self.rank, self.ranks = group.rank, group.size
        self.class_blocks, self.num_classes = class_blocks, num_classes
        self.zeros_like, self.concatenate = ops.ZerosLike(), ops.Concat(axis=1)

    def block_of(self, logits):
        columns = logits.shape[1]
        return class_block(
            _OP, "logits", self.rank, self.ranks, self.class_blocks, self.num_classes, columns
        )

    def construct(self, logits, target, weight):
        offset, held, total = self.block_of(logits)
        block = ClassBlock(offset, total)
        own, own_target = logits, target
        if held < logits.shape[1]:
            own = logits[:, :held]
            if not holds_class_indices(target.dtype):
                own_target = target[:, :held]
        local = self.partial(own, own_target, weight, self.options, block)
        statistics = self.exchanged(ops.cast(ops.reshape(local, (-1, 3)), self.wide))
        lse, dot, mass = self.combined(statistics)
        row_loss = mass * lse - dot
        if self.z_loss:
            row_loss = row_loss + self.z_loss * lse * lse
        if holds_class_indices(target.dtype):
            ignored = ops.equal(ops.cast(ops.reshape(target, (-1,)), ms.int64), self.ignore_index)
            # Not masked_fill, which takes float64 through float32 on CPU.
            row_loss = ops.select(ignored, self.zeros_like(row_loss), row_loss)
        shape = _rows_shape(logits.shape)
        return ops.reshape(row_loss, shape), ops.reshape(lse, shape), ops.reshape(mass, shape)

    def exchanged(self, statistics):
        """(rows, 3) of this rank to (ranks, rows, 3)."""
        if not self.in_two_parts:
            return self.gather(statistics)
        high = ops.cast(statistics, ms.float32)
        rest = ops.cast(statistics - ops.cast(high, self.wide), ms.float32)
        low = ops.masked_fill(rest, ops.logical_not(ops.isfinite(high)), 0.0)
        both = self.gather(self.concatenate((high, low)))
        return ops.cast(both[:, :, :3], self.wide) + ops.cast(both[:, :, 3:], self.wide)

    def combined(self, statistics):
        """lse, Σ w·q'·x and Σ w·q' of whole rows; a block of nothing but -inf adds nothing to the first."""
        lse, rest = statistics[:, :, 0], ops.ReduceSum()(statistics[:, :, 1:], 0)
        top = ops.ReduceMax()(lse, 0)
        log_sum = ops.log(ops.ReduceSum()(ops.exp(lse - top), 0))
        return top + log_sum, rest[:, 0], rest[:, 1]

    def bprop(self, logits, target, weight, out, dout):
        offset, held, total = self.block_of(logits)
        block = ClassBlock(offset, total)
        upstream, of_lse = dout[0], self.zeros_like(dout[0])
        if self.z_loss:
            of_lse = 2.0 * self.z_loss * out[1] * upstream
        own, own_target = logits, target
        if held < logits.shape[1]:
            own = logits[:, :held]
            if not holds_class_indices(target.dtype):
                own_target = target[:, :held]
        inputs = (own, own_target, weight, out[1])
        gradient, grad_target = logits, self.zeros_like(target)
        if wanted(0):
            gradient = self.partial_backward(upstream, of_lse, *inputs, out[2], self.options, block)
            gradient = self.padded(gradient, logits)
        if wanted(1) and not holds_class_indices(target.dtype):
            grad_target = self.target_grad(upstream, *inputs, self.options, block)
            grad_target = self.padded(grad_target, target)
        if weight is None:
            return gradient, grad_target, None
        grad_weight = self.zeros_like(weight)
        if self.weight_gradient and wanted(2):
            grad_weight = self.weight_grad(upstream, *inputs, self.options, block)
        return gradient, grad_target, grad_weight

    def padded(self, gradient, whole):
        """With 0 for the columns of padding."""
        if gradient.shape[1] == whole.shape[1]:
            return gradient
        return self.concatenate((gradient, self.zeros_like(whole[:, gradient.shape[1] :])))


class VocabParallelCrossEntropyLoss(nn.Cell):
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
        group=None,
        weight=None,
        ignore_index=-100,
        reduction="mean",
        label_smoothing=0.0,
        *,
        class_blocks=None,
        num_classes=None,
        row_group=None,
        gradients_mean=False,
        z_loss=0.0,
        softcap=None,
        logit_scale=1.0,
        backend="auto",
    ):
        super().__init__()
        self.options = make_options(
            _OP, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
        )
        self.reduction, self.ignore_index = reduction, self.options.ignore_index
        self.weight = _checks.check_class_weight(_OP, weight)
        chosen = Group(_OP, world() if group is None else group)
        blocks = checked_blocks(_OP, class_blocks, chosen.size)
        if num_classes is not None:
            check_positive(f"{_OP}: num_classes", num_classes)
        # Only a Parameter is worth a gradient, which reads the logits once more.
        trains_weight = isinstance(weight, Parameter)
        self.rows = VocabParallelRows(
            chosen, blocks, num_classes, self.options, backend, trains_weight
        )
        self.shared_weight = SumGradient(chosen.name) if trains_weight else None
        self.reduced = RowReduction(reduction, row_group, gradients_mean)

    def construct(self, logits, target):
        check_inputs(_OP, "logits", logits, target, None, self.options, True)
        _check_split(logits.ndim)
        if self.weight is not None:
            check_weight(_OP, self.rows.block_of(logits)[2], self.weight.shape)
        weight = self.weight
        if self.shared_weight is not None:
            weight = self.shared_weight(weight)
        row_loss, _, _ = self.rows(logits, target, weight)
        if self.reduction == "none":
            return ops.cast(row_loss, logits.dtype)
        divisor = self.divisor(target, row_loss) if self.reduction == "mean" else None
        return self.reduced(ops.ReduceSum()(row_loss), divisor, logits.dtype)

    def divisor(self, target, row_loss):
        """The mean's divisor over the rows of this rank, as a scalar."""
        if not holds_class_indices(target.dtype):
            return ops.ReduceSum()(ops.OnesLike()(row_loss))
        return total_weight(target, 0, self.weight, self.ignore_index, row_loss.dtype)
