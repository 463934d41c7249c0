"""What distillation losses share where each rank of a group holds a block of the student's classes (SPMD)."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, ops

from ms_ce import _checks, _divisor, _linear
from ms_ce.backend import choose
from ms_ce.distillation import check_parts, checked_beta, constant_rows, known_lead, planned
from ms_ce.ops import mean
from ms_ce.ops.graph import compiling
from ms_ce.ops.linear.losses import made_in_graph
from ms_ce.ops.linear.sweep import as_rows
from ms_ce.ops.options import Gradients
from ms_ce.parallel.linear_blocks import LinearOverBlocks, check_dtype
from ms_ce.parallel.mean import RowReduction


class DistillationOverBlocks(LinearOverBlocks):
    """A Cell of a divergence, whose rows and whose sum with gradients `kinds` walk over the chunks for.

    `more`: what the two take beside beta.
    """

    def __init__(
        self,
        op: str,
        kinds: tuple[type, type],
        more: tuple[bool, ...],
        *,
        group: str | None,
        beta: float,
        temperature: float,
        temperature_squared: bool,
        reduction: str,
        softcap: float | None,
        logit_scale: float,
        class_blocks: Sequence[int] | None,
        num_classes: int | None,
        sequence_parallel: bool,
        row_group: str | None,
        gradients_mean: bool,
        chunk_bytes: int | None,
        gradient_in_forward: bool | str,
        backend: str,
    ) -> None:
        values = (temperature, softcap, logit_scale)
        chunked = (chunk_bytes, False, (), gradient_in_forward)
        plan = planned(op, choose(op, backend), values, reduction, *chunked)
        super().__init__(plan, group, class_blocks, num_classes, sequence_parallel)
        self.reduction, self.kinds = reduction, kinds
        self.more = (checked_beta(op, beta), *more)
        squared = _checks.check_flag(op, "temperature_squared", temperature_squared)
        self.factor = float(temperature) ** 2 if squared else 1.0
        wanted = made_in_graph((False, *self.unfrozen()))[1:]
        self.rows = self.sweep(kinds[0], Gradients(False, *wanted), *self.more)
        self.sum = self.sweep(kinds[1], Gradients(True, *wanted), *self.more)
        self.reduced = RowReduction(reduction, row_group, gradients_mean)

    def check_hidden(self, student_hidden):
        """What both models' checks do not ask for: a first axis to be split, and a dtype that ranks can sum."""
        check_parts(self.plan.op, student_hidden.ndim, self.parts)
        check_dtype(self.plan.op, "student_hidden", student_hidden.dtype)

    def divergence(
        self,
        student: tuple,
        teacher: tuple,
        row_weight: Tensor | None,
        total_weight: float | Tensor | None,
    ) -> Tensor:
        """The loss, from (hidden, weight, bias) and the teacher's tensors as a sweep takes them."""
        from_outside = None
        if total_weight is not None:
            from_outside = _divisor.divisor_of(self.plan.op, self.reduction, total_weight)
        student_hidden, parts = student[0], self.parts
        dtype = student_hidden.dtype
        hidden, of_divisor = as_rows(student_hidden), constant_rows(row_weight)
        if self.factor != 1.0:
            rows = known_lead(student_hidden, parts)
            row_weight = _divisor.shared_out(
                1.0 / self.factor, row_weight, rows, student_hidden, -1
            )
        losses = self.losses((hidden, student[1], student[2]), teacher, constant_rows(row_weight))
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
            kind = self.kinds[1] if summed else self.kinds[0]
            return self.sweep(kind, Gradients(summed, *gradients[1:]), *self.more)(*given)[0]
        return self.sum(*given)[0] if summed else self.rows(*given)[0]
