"""Log-probabilities of tokens and entropies where the classes are split over the ranks of a group (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, ops

from ms_ce import _checks, _linear, _linear_checks
from ms_ce._cell import LossCell
from ms_ce._versions import zeros_like
from ms_ce.backend import choose
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.eager import DifferentiableCell
from ms_ce.ops.graph import compiling, select
from ms_ce.ops.linear.losses import ChunkedRows, made_in_graph, rows_in_graph
from ms_ce.ops.linear.sweep import readable
from ms_ce.ops.options import ClassBlock, Gradients, Plan, make_options
from ms_ce.ops.rows import Rows, with_padding
from ms_ce.ops.table import kernels_of
from ms_ce.parallel.exchange import Group, world
from ms_ce.parallel.linear_blocks import LinearOverBlocks
from ms_ce.parallel.place import VocabularyBlocks
from ms_ce.tokens import checked_rows

_OP, _LINEAR = "VocabParallelTokenLogProbs", "VocabParallelLinearTokenLogProbs"


class TokenRows(Rows, DifferentiableCell):
    """Log-probabilities and entropies of logits.

    Inputs: logits (N, C_local), target (N,).
    Outputs: both, then lse and Σ q of the whole rows, which the derivative needs; all (N,).
    """

    def __init__(self, kernels, place, options, entropies: bool):
        super().__init__(kernels, place, options)
        self.entropies = entropies

    def own(self, logits):
        """(logits, block) of this device without the columns of padding."""
        offset, held, total = self.location.block_of(logits.shape[1])
        return logits[:, :held] if held < logits.shape[1] else logits, (offset, total)

    def construct(self, logits, target):
        own, block = self.own(logits)
        rows, keep = self.statistics(own, target, None, block), self.kept(target, None)
        lse, mass = rows[:, 0], rows[:, 2]
        log_prob = self.counted(keep, rows[:, 1] - mass * lse)[0]
        entropy = zeros_like(lse)
        if self.entropies:
            entropy = self.counted(keep, rows[:, 3])[0]
        return log_prob, entropy, lse, mass

    def bprop(self, logits, target, out, dout):
        own, (offset, total) = self.own(logits)
        options, block = self.options, ClassBlock(offset, total)
        upstream, of_lse = -dout[0], zeros_like(dout[0])
        rows = (out[2], out[3])
        gradient = self.partial_backward(upstream, of_lse, own, target, None, *rows, options, block)
        if self.entropies:
            part = self.entropy_backward(dout[1], own, out[2], out[1], options)
            part = select(self.kept(target, None).expand_dims(1), part, 0.0)
            gradient = (gradient.astype(part.dtype) + part).astype(own.dtype)
        return with_padding(gradient, logits, 1), zeros_like(target)


class VocabParallelTokenLogProbs(LossCell):
    r"""`ms_ce.token_log_probs` of logits whose classes are split over the ranks of a group.

    Every rank passes its own block of the logits' columns and the same targets, as class indices of the whole
    vocabulary; log-probabilities and entropies are those of the logits put together, the same on every rank, and the
    gradient is that of the rank's own block. Of a rank's block with share s of a row's probability and entropy h the
    row's entropy has s·(h - log s): forward exchanges three numbers a row, four with entropies, in one collective,
    backward nothing. Works in PyNative mode, graph mode and ms.jit.

    Args:
        group (str): name of the communication group whose ranks, in order, hold consecutive blocks of classes.
            Default: all ranks.

    Keyword Args:
        temperature (float), entropy (bool), ignore_index (int), softcap (float), logit_scale (float): as in
            `ms_ce.token_log_probs`.
        class_blocks (sequence of int), num_classes (int): as in `VocabParallelCrossEntropyLoss`.
        backend (str): 'auto', or a name of `available_backends()`.

    Inputs:
        - **logits** - (…, C_local), float16, bfloat16, float32 or float64.
        - **target** - class indices of the whole vocabulary of the leading shape, int32, int64 or uint8.

    Outputs:
        Tensor of target's shape, float32 (float64 for float64 logits); with `entropy` a tuple of two.

    Raises:
        TypeError, ValueError: for arguments and inputs that do not fit. A class index out of range raises when the
            result is read, on every rank.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import get_group_size, init
        >>> init()  # each rank of msrun runs this
        >>> tokens = ms_ce.parallel.VocabParallelTokenLogProbs(entropy=True)
        >>> block = mindspore.ops.zeros((2, 12 // get_group_size()))  # this rank's columns of 12 classes
        >>> log_prob, entropy = tokens(block, mindspore.Tensor([0, 11]))
        >>> print(f"{float(log_prob[1]):.3f} {float(entropy[1]):.3f}")  # log 12
        -2.485 2.485

    Source: as `ms_ce.token_log_probs`; blocks of classes: Shoeybi et al. 2019 (Megatron-LM).
    """

    def __init__(
        self,
        group: str | None = None,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        ignore_index: int | None = -100,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        class_blocks: Sequence[int] | None = None,
        num_classes: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        values = _linear_checks.tempered(_OP, temperature, ignore_index, softcap, logit_scale)
        self.plan = Plan(_OP, choose(_OP, backend), make_options(_OP, *values))
        self.entropy = _checks.check_flag(_OP, "entropy", entropy)
        chosen = Group(_OP, world() if group is None else group)
        place = VocabularyBlocks(_OP, "logits", chosen, class_blocks, num_classes)
        self.rows = TokenRows(kernels_of(self.plan.backend), place, self.plan.options, self.entropy)

    def construct(self, logits: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.in_precision(logits)
        rows, labels = checked_rows(_OP, logits, target, self.plan.options)
        log_prob, entropies, _, _ = self.rows(rows, labels)
        exact, shape = exact_dtype(logits.dtype), target.shape
        log_prob = ops.cast(ops.reshape(log_prob, shape), exact)
        if not self.entropy:
            return log_prob
        return log_prob, ops.cast(ops.reshape(entropies, shape), exact)


class VocabParallelLinearTokenLogProbs(LinearOverBlocks):
    r"""`ms_ce.linear_token_log_probs` where each rank of a group holds a block of the weight.

    A chunk of rows at a time is multiplied by the rank's own block, forward and again backward; the ranks exchange a
    chunk's statistics in one collective forward, three numbers a row, four with entropies. Backward exchanges nothing
    but one sum of input's gradient over the group, so input must not pass through `SumGradient` besides. Works in
    PyNative mode, graph mode and ms.jit.

    Args:
        group (str): name of the communication group whose ranks, in order, hold consecutive blocks of classes.
            Default: all ranks.

    Keyword Args:
        temperature (float), entropy (bool), ignore_index (int), softcap (float), logit_scale (float): as in
            `ms_ce.token_log_probs`.
        class_blocks (sequence of int), num_classes (int), sequence_parallel (bool): as in
            `VocabParallelLinearCrossEntropyLoss`.
        chunk_bytes (int), frozen (tuple of str), backend (str): as there.

    Inputs:
        - **input**, **linear_weight**, **target** - as there, target of class indices only.
        - **linear_bias** - optional, as there.

    Outputs:
        Tensor of target's shape, float32; with `entropy` a tuple of two; the same on every rank of the group.

    Raises:
        TypeError, ValueError: as there.
        NotImplementedError: for a second derivative.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import get_group_size, init
        >>> init()  # each rank of msrun runs this
        >>> tokens = ms_ce.parallel.VocabParallelLinearTokenLogProbs()
        >>> hidden = mindspore.ops.ones((2, 4))
        >>> block = mindspore.ops.zeros((12 // get_group_size(), 4))  # this rank's rows of a table of 12
        >>> print(f"{float(tokens(hidden, block, mindspore.Tensor([0, 11]))[1]):.3f}")  # -log 12
        -2.485

    Source: as `VocabParallelTokenLogProbs`; chunks: as `ms_ce.linear_cross_entropy`.
    """

    def __init__(
        self,
        group: str | None = None,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        ignore_index: int | None = -100,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        class_blocks: Sequence[int] | None = None,
        num_classes: int | None = None,
        sequence_parallel: bool = False,
        chunk_bytes: int | None = None,
        frozen: Sequence[str] = (),
        backend: str = "auto",
    ) -> None:
        values = _linear_checks.tempered(_LINEAR, temperature, ignore_index, softcap, logit_scale)
        name = choose(_LINEAR, backend)
        plan = _linear_checks.make_plan(_LINEAR, name, values, chunk_bytes, False, frozen)
        super().__init__(plan, group, class_blocks, num_classes, sequence_parallel)
        self.entropy = _checks.check_flag(_LINEAR, "entropy", entropy)
        wanted = made_in_graph(Gradients(False, *self.unfrozen()))
        self.rows = self.sweep(rows_in_graph(), wanted, False, self.entropy)

    def construct(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        input = self.in_precision(input)
        _checks.check_class_indices(_LINEAR, target)
        self.check(input, linear_weight, target, linear_bias, None, None)
        frozen = self.plan.frozen
        input, linear_weight, linear_bias = _linear.constants(
            frozen, input, linear_weight, linear_bias
        )
        hidden = readable(input)
        hidden = ops.reshape(hidden, (-1, input.shape[-1]))
        given = (hidden, linear_weight, ops.reshape(target, (-1,)), linear_bias, None, None)
        if compiling():
            found = self.rows(*given)
        else:
            parts = (input, linear_weight, linear_bias)
            wanted = _linear.gradients(False, True, False, frozen, *parts)
            found = self.sweep(ChunkedRows, wanted, False, self.entropy)(*given)
        exact = exact_dtype(input.dtype)
        log_prob = ops.cast(ops.reshape(-found[0], target.shape), exact)
        if not self.entropy:
            return log_prob
        return log_prob, ops.cast(ops.reshape(found[4], target.shape), exact)
