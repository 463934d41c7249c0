"""The linear loss of ranks that hold their own block of the vocabulary's weight (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Parameter, Tensor, ops

from ms_ce import _checks, _divisor, _linear, _linear_checks
from ms_ce.backend import choose
from ms_ce.functional import constant
from ms_ce.ops import mean
from ms_ce.ops.graph import compiling
from ms_ce.ops.linear.losses import (
    ChunkedRows,
    ChunkedSum,
    made_in_graph,
    rows_in_graph,
    sum_in_graph,
)
from ms_ce.ops.linear.sweep import readable
from ms_ce.ops.options import Gradients
from ms_ce.parallel.blocks import check_weight
from ms_ce.parallel.exchange import SumGradient, world
from ms_ce.parallel.linear_blocks import LinearOverBlocks
from ms_ce.parallel.local import holds_class_indices
from ms_ce.parallel.mean import RowReduction

_OP = "VocabParallelLinearCrossEntropyLoss"


class VocabParallelLinearCrossEntropyLoss(LinearOverBlocks):
    r"""Cross entropy of input·Wᵀ + b where each rank of a group holds a block of W, without any rank's logits.

    The last linear layer and the loss of a tensor-parallel language model: `ms_ce.linear_cross_entropy` for the blocks
    put together, the same loss on every rank of the group. A chunk of rows at a time is multiplied by the rank's own
    block; the ranks exchange the chunk's statistics, three numbers a row, in one collective. Backward exchanges
    nothing but one sum of input's gradient over the group, so input must not pass through `SumGradient` besides;
    the gradients of W and b are those of the rank's own block. All are summed in float32. Works in PyNative mode, graph
    mode and ms.jit.

    W and b are inputs, not parameters of this Cell, since the model may share them with its embedding.

    Args:
        group (str): name of the communication group whose ranks, in order, hold consecutive blocks of classes.
            Default: all ranks.
        weight (Tensor): a factor for each class of the whole vocabulary, (C,), or None. A Parameter gets its whole
            gradient on every rank of the group, at the price of one more product and of one more collective, of C
            numbers, backward.
        ignore_index (int): class index that does not count; such rows are left out before the product. Default
            -100, also for None.
        reduction (str): 'none', 'mean' or 'sum'. Default 'mean'.
        label_smoothing (float): ε in [0, 1], over the whole vocabulary. Default 0.

    Keyword Args:
        class_blocks (sequence of int): classes that each rank holds. Default: equal blocks.
        num_classes (int): size of the vocabulary without its padding, where the last blocks hold rows of W beyond it.
            They take no part in the loss and get gradient 0. Default: every row of W counts.
        sequence_parallel (bool): whether input is this rank's block of rows along its first axis, as after a
            sequence-parallel layer: gathered before, and its gradient reduced and scattered after. Default False.
        row_group (str): name of the group of the ranks that hold other rows of the same classes. Default: none.
        gradients_mean (bool): whether gradients are averaged, not summed, over row_group; see `GlobalMean`.
        z_loss (float), softcap (float), logit_scale (float): as in `ms_ce.cross_entropy`.
        chunk_bytes (int): what a chunk's logits may take on a rank, in float32. Default: as in
            `ms_ce.linear_cross_entropy`, for the rank's logits.
        gradient_in_forward (bool): make the gradients in the forward pass, as in `ms_ce.linear_cross_entropy`;
            'auto' goes by `training` inside a compiled graph. Default 'auto'.
        frozen (tuple of str): as there, the same on every rank of the group. Of a frozen input no gradient is summed
            over the group.
        backend (str): 'auto', or a name of `available_backends()`.

    Inputs:
        - **input** - hidden states (…, in_features), the same on every rank of the group, or with sequence_parallel a
          block of their first axis; float16, bfloat16 or float32.
        - **linear_weight** - (C_local, in_features), this rank's block, input's dtype, or float32 beside an input of 16
          bits.
        - **target** - class indices of the whole vocabulary, of the leading shape of all hidden states, the same on
          every rank of the group; or this rank's block of probabilities, with a last axis of C_local,
          which get the gradient of that block.
        - **linear_bias** - (C_local,), this rank's block, input's dtype or as linear_weight's; or None.
        - **row_weight** - optional, a factor for each row as in `ms_ce.cross_entropy`, of class indices' shape, the
          same on every rank of the group.
        - **total_weight** - optional, the mean's divisor as there: one for all rows, those of the other ranks of
          `row_group` too.

    Outputs:
        Scalar, or with 'none' of target's leading shape, in input's dtype; float32 for a mean over `row_group`.

    Raises:
        TypeError, ValueError: for arguments and inputs that do not fit. A class index out of range raises when the
            result is read, on every rank; the position in the message counts within the chunk.
        NotImplementedError: for a second derivative.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import get_group_size, init
        >>> init()  # each rank of msrun runs this
        >>> loss = ms_ce.parallel.VocabParallelLinearCrossEntropyLoss()
        >>> hidden = mindspore.ops.ones((2, 4))
        >>> block = mindspore.ops.zeros((12 // get_group_size(), 4))  # this rank's rows of a table of 12
        >>> print(f"{float(loss(hidden, block, mindspore.Tensor([0, 11]))):.3f}")  # log 12
        2.485

    Source: Shoeybi et al. 2019 and Korthikanti et al. 2022 (Megatron-LM); Wijmans et al. 2024 (Cut Cross-Entropy).
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
        sequence_parallel: bool = False,
        row_group: str | None = None,
        gradients_mean: bool = False,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        chunk_bytes: int | None = None,
        gradient_in_forward: bool | str = "auto",
        frozen: Sequence[str] = (),
        backend: str = "auto",
    ) -> None:
        values = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
        more = (chunk_bytes, False, frozen, gradient_in_forward)
        plan = _linear_checks.make_plan(_OP, choose(_OP, backend), values, *more)
        super().__init__(plan, group, class_blocks, num_classes, sequence_parallel)
        self.reduction = reduction
        self.weight = _checks.check_class_weight(_OP, weight)
        self.weight_dtype = None if weight is None else weight.dtype
        # Only a Parameter is worth a gradient, which makes the logits once more.
        self.shared_weight = None
        if isinstance(weight, Parameter):
            self.shared_weight = SumGradient(world() if group is None else group)
        wanted = made_in_graph((False, *self.unfrozen()))[1:]
        self.rows = self.sweep(rows_in_graph(), Gradients(False, *wanted))
        self.sum = self.sweep(sum_in_graph(), Gradients(True, *wanted))
        self.reduced = RowReduction(reduction, row_group, gradients_mean)

    def construct(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        row_weight: Tensor | None = None,
        total_weight: float | Tensor | None = None,
    ) -> Tensor:
        weight, row_weight = self.weight, constant(row_weight)
        if self.shared_weight is not None:
            weight = self.shared_weight(weight)
        input = self.in_precision(input)
        self.check(input, linear_weight, target, linear_bias, row_weight, self.weight_dtype)
        total = self.location.block_of(linear_weight.shape[0])[2]
        if self.weight is not None:
            check_weight(_OP, total, self.weight.shape)
        from_outside = None
        if total_weight is not None:
            from_outside = _divisor.divisor_of(_OP, self.reduction, total_weight)
        input, linear_weight, linear_bias = _linear.constants(
            self.plan.frozen, input, linear_weight, linear_bias
        )
        frozen, parts = self.plan.frozen, (input, linear_weight, linear_bias)
        gradients = _linear.gradients(
            self.plan.gradient_in_forward, True, self.training, frozen, *parts
        )
        if compiling():
            gradients = made_in_graph(gradients)
        indices = holds_class_indices(target.dtype)
        hidden = readable(input)
        hidden = ops.reshape(hidden, (-1, input.shape[-1]))
        labels = ops.reshape(target, (-1,))
        if not indices:
            labels = ops.reshape(readable(target), (-1, target.shape[-1]))
        if row_weight is not None:
            row_weight = ops.reshape(row_weight, (-1,))
        given = (hidden, linear_weight, labels, linear_bias, weight, row_weight)
        summed = gradients.in_forward and self.reduction != "none"
        if not compiling():
            kind, wanted = ChunkedSum if summed else ChunkedRows, gradients[1:]
            losses = self.sweep(kind, Gradients(summed, *wanted))(*given)[0]
        elif summed:
            losses = self.sum(*given)[0]
        else:
            losses = self.rows(*given)[0]
        if self.reduction == "none":
            shape = target.shape if indices else target.shape[:-1]
            return ops.cast(ops.reshape(losses, shape), input.dtype)
        loss_sum = losses if gradients.in_forward else ops.ReduceSum()(losses)
        if from_outside is not None:
            return self.reduced.over(loss_sum, from_outside, input.dtype)
        divisor = None
        if self.reduction == "mean":
            rows = hidden.shape[0] * self.parts
            ignored, dtype = self.plan.options.ignore_index, loss_sum.dtype
            divisor = mean.total_weight(labels, rows, self.weight, row_weight, ignored, dtype)
        return self.reduced(loss_sum, divisor, input.dtype)
