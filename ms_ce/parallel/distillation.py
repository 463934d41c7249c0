"""Distillation where each rank of a group holds a block of both models' vocabulary (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, ops

from ms_ce import _checks, _divisor, _linear
from ms_ce.backend import choose
from ms_ce.distillation import (
    check_models,
    check_parts,
    checked_beta,
    constant_model,
    constant_rows,
    known_lead,
    planned,
)
from ms_ce.ops import mean
from ms_ce.ops.graph import compiling
from ms_ce.ops.linear.divergence import ChunkedDivergence, ChunkedDivergenceSum
from ms_ce.ops.linear.losses import made_in_graph
from ms_ce.ops.linear.sweep import as_rows
from ms_ce.ops.options import Gradients
from ms_ce.parallel.linear_blocks import LinearOverBlocks, check_dtype
from ms_ce.parallel.mean import RowReduction

_OP = "VocabParallelLinearDistillationLoss"


class VocabParallelLinearDistillationLoss(LinearOverBlocks):
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
        values = (temperature, softcap, logit_scale)
        more = (chunk_bytes, False, (), gradient_in_forward)
        plan = planned(_OP, choose(_OP, backend), values, reduction, *more)
        super().__init__(plan, group, class_blocks, num_classes, sequence_parallel)
        self.beta, self.reduction = checked_beta(_OP, beta), reduction
        squared = _checks.check_flag(_OP, "temperature_squared", temperature_squared)
        self.factor = float(temperature) ** 2 if squared else 1.0
        wanted = made_in_graph((False, *self.unfrozen()))[1:]
        self.rows = self.sweep(ChunkedDivergence, Gradients(False, *wanted), self.beta)
        self.sum = self.sweep(ChunkedDivergenceSum, Gradients(True, *wanted), self.beta)
        self.reduced = RowReduction(reduction, row_group, gradients_mean)

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
        teacher = (teacher_hidden, teacher_weight, teacher_bias)
        student, parts = (student_hidden, student_weight, student_bias), self.parts
        check_models(_OP, student, teacher, row_weight, parts)
        check_parts(_OP, student_hidden.ndim, parts)
        check_dtype(_OP, "student_hidden", student_hidden.dtype)
        from_outside = None
        if total_weight is not None:
            from_outside = _divisor.divisor_of(_OP, self.reduction, total_weight)
        dtype = student_hidden.dtype
        hidden, of_divisor = as_rows(student_hidden), constant_rows(row_weight)
        if self.factor != 1.0:
            rows = known_lead(_checks.known_shape(student_hidden), parts)
            row_weight = _divisor.shared_out(
                1.0 / self.factor, row_weight, rows, student_hidden, -1
            )
        losses = self.losses(
            (hidden, student_weight, student_bias),
            constant_model((as_rows(teacher_hidden), teacher_weight, teacher_bias)),
            constant_rows(row_weight),
        )
        if self.reduction == "none":
            lead = student_hidden.shape[:-1]
            lead = lead if parts == 1 else (lead[0] * parts, *lead[1:])
            return ops.cast(ops.reshape(losses, lead), dtype)
        loss_sum = losses if losses.ndim == 0 else ops.ReduceSum()(losses)
        if from_outside is not None:
            return self.reduced.over(loss_sum, from_outside, dtype)
        divisor = None
        if self.reduction == "mean":
            given = (None, of_divisor, None, loss_sum.dtype)
            divisor = mean.total_weight(hidden, hidden.shape[0] * parts, *given)
        return self.reduced(loss_sum, divisor, dtype)

    def losses(self, student, teacher, row_weight):
        """Those of rows, or their sum where the gradients are made with it."""
        gradients = _linear.gradients(
            self.plan.gradient_in_forward, True, self.training, (), *student
        )
        if compiling():
            gradients = made_in_graph(gradients)
        given, summed = (*student, *teacher, row_weight), gradients.in_forward
        summed = summed and self.reduction != "none"
        if not compiling():
            kind = ChunkedDivergenceSum if summed else ChunkedDivergence
            return self.sweep(kind, Gradients(summed, *gradients[1:]), self.beta)(*given)[0]
        return self.sum(*given)[0] if summed else self.rows(*given)[0]
