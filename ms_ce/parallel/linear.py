"""The linear loss of ranks that hold their own block of the vocabulary's weight (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import constexpr

from ms_ce import _checks, _divisor, _linear, _linear_checks
from ms_ce._cell import LossCell
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
from ms_ce.ops.table import KERNELS
from ms_ce.parallel.blocks import check_weight
from ms_ce.parallel.exchange import Group, SumGradient, world
from ms_ce.parallel.local import holds_class_indices
from ms_ce.parallel.mean import RowReduction
from ms_ce.parallel.place import VocabularyBlocks

_OP = "VocabParallelLinearCrossEntropyLoss"


@constexpr
def _check_dtype(dtype) -> None:
    if dtype == ms.float64:
        raise TypeError(
            f"{_OP}: input must have dtype float16, bfloat16 or float32, got float64, whose gradients "
            "MindSpore's CPU collectives do not sum"
        )


@constexpr
def _check_ranks(hidden: int, target: int, indices: bool) -> None:
    expected = hidden - 1 if indices else hidden
    if target != expected:
        kind = "class indices" if indices else "class probabilities"
        raise ValueError(
            f"{_OP}: target of {kind} must have {expected} dimensions beside input of {hidden}, got {target}"
        )


@constexpr
def _check_rows(hidden, target, ranks: int, held: int, indices: bool) -> None:
    """Shapes of input and target, as far as they are known."""
    if hidden is None or target is None:
        return
    expected = (hidden[0] * ranks, *hidden[1:-1]) + (() if indices else (held,))
    if target != expected:
        whole = "" if ranks == 1 else f" of each of {ranks} ranks"
        raise ValueError(
            f"{_OP}: target must have shape {expected} to match input {hidden}{whole}, got {target}"
        )


@constexpr
def _rows(target, indices: bool):
    """The shape of the rows of a target, as far as it is known."""
    return target if target is None or indices else target[:-1]


class VocabParallelLinearCrossEntropyLoss(LossCell):
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
        super().__init__()
        if not isinstance(sequence_parallel, bool):
            raise TypeError(
                f"{_OP}: sequence_parallel must be True or False, got {sequence_parallel!r}"
            )
        name = choose(_OP, backend)
        values = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
        self.plan = _linear_checks.make_plan(
            _OP, name, values, chunk_bytes, False, frozen, gradient_in_forward
        )
        self.reduction = reduction
        self.weight = _checks.check_class_weight(_OP, weight)
        chosen = Group(_OP, world() if group is None else group)
        # Only a Parameter is worth a gradient, which makes the logits once more.
        self.shared_weight = SumGradient(chosen.name) if isinstance(weight, Parameter) else None
        self.location = VocabularyBlocks(
            _OP, "linear_weight", chosen, class_blocks, num_classes, sequence_parallel
        )
        self.kernels = KERNELS[name]
        wanted = [name not in self.plan.frozen for name in _linear_checks.FREEZABLE]
        wanted = made_in_graph((False, *wanted))[1:]
        self.rows = self.made_sweep(rows_in_graph(), False, wanted)
        self.sum = self.made_sweep(sum_in_graph(), True, wanted)
        self.sweeps: dict[tuple, nn.Cell] = {}
        self.parts = chosen.size if sequence_parallel else 1
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
        self.check(input, linear_weight, target, linear_bias, row_weight)
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
        if not compiling():
            losses = self.sweep(gradients)(*given)[0]
        elif gradients.in_forward and self.reduction != "none":
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

    def made_sweep(self, kind, in_forward, wanted):
        gradients = Gradients(in_forward, *wanted)
        return kind(
            self.kernels, self.location, self.plan.options, self.plan.chunk_bytes, gradients
        )

    def sweep(self, gradients):
        """Where Python runs, the Cell that makes what is wanted this time."""
        in_forward = gradients.in_forward and self.reduction != "none"
        key = (in_forward, *gradients[1:])
        if key not in self.sweeps:
            kind = ChunkedSum if in_forward else ChunkedRows
            self.sweeps[key] = self.made_sweep(kind, in_forward, gradients[1:])
        return self.sweeps[key]

    def check(self, input, linear_weight, target, linear_bias, row_weight):
        """Everything that can be known of the tensors before the kernel runs."""
        input = _checks.check_tensor(_OP, "input", input)
        linear_weight = _checks.check_tensor(_OP, "linear_weight", linear_weight)
        target = _checks.check_tensor(_OP, "target", target)
        bias_dtype, bias_shape = None, None
        if linear_bias is not None:
            linear_bias = _checks.check_tensor(_OP, "linear_bias", linear_bias)
            bias_dtype, bias_shape = linear_bias.dtype, linear_bias.shape
        weight_dtype = None if self.weight is None else self.weight.dtype
        _checks.check_dtypes(_OP, "input", input.dtype, target.dtype, weight_dtype, True)
        _check_dtype(input.dtype)
        _linear_checks.check_dtypes(_OP, input.dtype, linear_weight.dtype, bias_dtype)
        _linear_checks.check_matrix(_OP, linear_weight.ndim)
        _linear_checks.check_block(_OP, input.shape[-1], linear_weight.shape, bias_shape)
        indices = holds_class_indices(target.dtype)
        _check_ranks(input.ndim, target.ndim, indices)
        shapes = (_checks.known_shape(input), _checks.known_shape(target))
        _check_rows(shapes[0], shapes[1], self.parts, linear_weight.shape[0], indices)
        _checks.check_ignore_index(_OP, target.dtype, self.plan.options.ignore_index)
        if row_weight is not None:
            row_weight = _checks.check_tensor(_OP, "row_weight", row_weight)
            shape, rows = _checks.known_shape(row_weight), _rows(shapes[1], indices)
            given = (row_weight.dtype, row_weight.ndim, shape)
            _checks.check_row_weight(_OP, *given, input.ndim - 1, rows)
        total = self.location.block_of(linear_weight.shape[0])[2]
        if self.weight is not None:
            check_weight(_OP, total, self.weight.shape)
