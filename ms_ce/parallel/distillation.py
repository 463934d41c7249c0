"""Distillation where each rank of a group holds a block of both models' vocabulary (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor

from ms_ce.distillation import check_models, constant_model
from ms_ce.ops.linear.divergence import ChunkedDivergence, ChunkedDivergenceSum
from ms_ce.ops.linear.sweep import as_rows
from ms_ce.parallel.distillation_blocks import DistillationOverBlocks

_OP = "VocabParallelLinearDistillationLoss"


class VocabParallelLinearDistillationLoss(DistillationOverBlocks):
    r"""`ms_ce.linear_distillation_loss` where each rank of a group holds a block of both weights.

    The same loss on every rank of the group, without any rank's logits. A chunk of rows at a time is multiplied by the
    rank's own blocks; the ranks exchange three numbers a row for the student's lse, for the teacher's and for the sums
    over classes, and backward one sum of student_hidden's gradient over the group. Works in PyNative mode, graph mode
    and ms.jit.

    Args:
        group (str): name of the communication group whose ranks, in order, hold consecutive blocks of classes.
            Default: all ranks.

    Keyword Args:
        beta (float), temperature (float), temperature_squared (bool): as in `ms_ce.linear_distillation_loss`.
        reduction (str), softcap (float), logit_scale (float): as there.
        class_blocks (sequence of int), num_classes (int): as in `VocabParallelLinearCrossEntropyLoss`.
        sequence_parallel (bool): whether student_hidden and teacher_hidden are this rank's block of rows along their
            first axis: gathered before, and student_hidden's gradient reduced and scattered after. Default False.
        row_group (str), gradients_mean (bool), chunk_bytes (int): as there.
        gradient_in_forward (bool), backend (str): as there.

    Inputs:
        - **student_hidden** - (…, student_features), float16, bfloat16 or float32, the same on every rank,
          or with sequence_parallel a block of the first axis.
        - **student_weight** - (C_local, student_features), this rank's block.
        - **teacher_hidden**, **teacher_weight** - likewise, of the same rows and classes; constants.
        - **student_bias**, **teacher_bias** - optional, (C_local,).
        - **row_weight** - optional, a factor for each row, of all blocks, the same on every rank.
        - **total_weight** - optional, the mean's divisor: one for all rows, those of the other ranks of `row_group`
          too.

    Outputs:
        Scalar, or with 'none' of the leading shape, in student_hidden's dtype; float32 for a mean over `row_group`.

    Raises:
        TypeError, ValueError: for arguments and inputs that do not fit.
        NotImplementedError: for a second derivative.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import get_group_size, init
        >>> init()  # each rank of msrun runs this
        >>> loss = ms_ce.parallel.VocabParallelLinearDistillationLoss(beta=0.5)
        >>> hidden = mindspore.ops.ones((2, 4))
        >>> block = mindspore.ops.zeros((12 // get_group_size(), 4))  # this rank's rows of a table of 12
        >>> print(f"{abs(float(loss(hidden, block, hidden, block))):.3f}")  # of equal models
        0.000

    Source: as `ms_ce.linear_distillation_loss`; blocks of classes: Shoeybi et al. 2019 (Megatron-LM).
    """

    def __init__(
        self,
        group: str | None = None,
        *,
        beta: float = 0.0,
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
            (ChunkedDivergence, ChunkedDivergenceSum),
            (),
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
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        row_weight: Tensor | None = None,
        total_weight: float | Tensor | None = None,
    ) -> Tensor:
        student_hidden = self.in_precision(student_hidden)
        student = (student_hidden, student_weight, student_bias)
        teacher = (teacher_hidden, teacher_weight, teacher_bias)
        check_models(_OP, *student, *teacher, row_weight, self.parts)
        self.check_hidden(student_hidden)
        teacher = constant_model((as_rows(teacher_hidden), teacher_weight, teacher_bias))
        return self.divergence(student, teacher, row_weight, total_weight)
