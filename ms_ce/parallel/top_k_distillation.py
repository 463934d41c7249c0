"""Distillation from a stored teacher where each rank of a group holds a block of the student's classes (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor

from ms_ce import _checks
from ms_ce.distillation import checked_model
from ms_ce.ops.linear.top_k import ChunkedTopK, ChunkedTopKSum, as_top_k
from ms_ce.parallel.distillation_blocks import DistillationOverBlocks
from ms_ce.top_k_distillation import check_top_k, constant_top_k

_OP = "VocabParallelLinearTopKDistillationLoss"


class VocabParallelLinearTopKDistillationLoss(DistillationOverBlocks):
    r"""`ms_ce.linear_top_k_distillation_loss` where each rank of a group holds a block of student_weight.

    The same loss on every rank of the group, without any rank's logits. A chunk of rows at a time is multiplied by the
    rank's own block; the ranks exchange k + 1 numbers a row, forward the logits of the teacher's classes and lse of the
    others, and backward those logits again and one sum of student_hidden's gradient. Works in PyNative mode, graph
    mode and ms.jit.

    Args:
        group (str): name of the communication group whose ranks, in order, hold consecutive blocks of classes.
            Default: all ranks.

    Keyword Args:
        beta (float), tail (bool): as in `ms_ce.linear_top_k_distillation_loss`.
        temperature (float), temperature_squared (bool), reduction (str), softcap (float), logit_scale (float): as
            there.
        class_blocks (sequence of int), num_classes (int): as in `VocabParallelLinearCrossEntropyLoss`.
        sequence_parallel (bool): whether student_hidden is this rank's block of rows along its first axis. Default
            False.
        row_group (str), gradients_mean (bool), chunk_bytes (int): as there.
        gradient_in_forward (bool), backend (str): as there.

    Inputs:
        - **student_hidden** - (…, student_features), float16, bfloat16 or float32, the same on every rank,
          or with sequence_parallel a block of the first axis.
        - **student_weight** - (C_local, student_features), this rank's block.
        - **teacher_log_probs** - (…, k) of all rows, any float dtype, the same on every rank: of a row's k likeliest
          classes among all. A constant.
        - **teacher_indices** - (…, k), int32 or int64, the same on every rank: these classes, counted over all blocks.
        - **student_bias** - optional, (C_local,).
        - **row_weight** - optional, a factor for each row, of all rows, the same on every rank.
        - **total_weight** - optional, the mean's divisor: one for all rows, those of the other ranks of `row_group`
          too.

    Outputs:
        Scalar, or with 'none' of the leading shape, in student_hidden's dtype; float32 for a mean over `row_group`.

    Raises:
        TypeError, ValueError: for arguments and inputs that do not fit; a class outside [0, num_classes) raises in
            PyNative and makes the loss nan in a compiled graph.
        NotImplementedError: for a second derivative.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import get_group_size, init
        >>> init()  # each rank of msrun runs this
        >>> loss = ms_ce.parallel.VocabParallelLinearTopKDistillationLoss()
        >>> hidden, block = mindspore.ops.ones((1, 4)), mindspore.ops.zeros((12 // get_group_size(), 4))
        >>> log_probs = mindspore.ops.log(mindspore.Tensor([[0.5, 0.25]]))
        >>> print(f"{float(loss(hidden, block, log_probs, mindspore.Tensor([[11, 0]]))):.3f}")
        0.870

    Source: as `ms_ce.linear_distillation_loss`; blocks of classes: Shoeybi et al. 2019 (Megatron-LM).
    """

    def __init__(
        self,
        group: str | None = None,
        *,
        beta: float = 0.0,
        tail: bool = True,
        temperature: float = 1.0,
        temperature_squared: bool = True,
        reduction: str = "mean",
        softcap: float | None = None,
        logit_scale: float = 1.0,
        class_blocks: Sequence[int] | None = None,
        num_classes: int | None = None,
        sequence_parallel: bool = False,
        row_group: str | None = None,
        gradients_mean: bool = False,
        chunk_bytes: int | None = None,
        gradient_in_forward: bool | str = "auto",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            _OP,
            (ChunkedTopK, ChunkedTopKSum),
            (_checks.check_flag(_OP, "tail", tail),),
            group=group,
            beta=beta,
            temperature=temperature,
            temperature_squared=temperature_squared,
            reduction=reduction,
            softcap=softcap,
            logit_scale=logit_scale,
            class_blocks=class_blocks,
            num_classes=num_classes,
            sequence_parallel=sequence_parallel,
            row_group=row_group,
            gradients_mean=gradients_mean,
            chunk_bytes=chunk_bytes,
            gradient_in_forward=gradient_in_forward,
            backend=backend,
        )

    def construct(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_log_probs: Tensor,
        teacher_indices: Tensor,
        student_bias: Tensor | None = None,
        row_weight: Tensor | None = None,
        total_weight: float | Tensor | None = None,
    ) -> Tensor:
        student_hidden = self.in_precision(student_hidden)
        student = (student_hidden, student_weight, student_bias)
        teacher = (teacher_log_probs, teacher_indices)
        checked_model(_OP, "student", *student)
        classes = self.location.block_of(student_weight.shape[0])[2]
        check_top_k(_OP, student, teacher, row_weight, classes, self.parts)
        self.check_hidden(student_hidden)
        return self.divergence(student, as_top_k(constant_top_k(teacher)), row_weight, total_weight)
