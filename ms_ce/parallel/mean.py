"""The mean of a loss over ranks that hold different rows: Σ loss / Σ weight, never a mean of means."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

from ms_ce._cell import LossCell
from ms_ce.ops.graph import select
from ms_ce.ops.mean import by_zero, per_weight
from ms_ce.ops.precision import UncastCell
from ms_ce.parallel.exchange import AllSum, Group, world


class GlobalMean(LossCell):
    r"""Mean over the rows of all ranks, from each rank's sum of losses and sum of weights.

        loss = Σ_ranks loss_sum / Σ_ranks total_weight

    in one collective of two numbers forward and none backward. The gradients are those of a rank's own part: 1 / Σ
    total_weight for its loss_sum and -loss / Σ total_weight for its total_weight, times the number of ranks where
    gradients are averaged afterwards, so that summed or averaged gradients are those of the mean
    over all rows. Where Σ total_weight is 0 the loss is what the division gives, nan where no row counts, and the
    gradient 0, as for one device.

    Args:
        group (str): name of the communication group of the ranks whose rows differ. Default: all ranks.
        gradients_mean (bool): whether gradients are averaged over the group afterwards (`gradients_mean` of
            set_auto_parallel_context, `mean` of nn.DistributedGradReducer), rather than summed. Default False.

    Inputs:
        - **loss_sum** - scalar, the sum of this rank's losses.
        - **total_weight** - scalar, the sum of the weights of this rank's rows.
        - **step_weight** - scalar, optional: the divisor, when one step accumulates several calls. It is the sum of
          the weights of all their rows on all ranks, `global_weight` of the step, a constant; total_weight is then not
          used.

    Outputs:
        float32 scalar, the same on all ranks; with step_weight this call's share of the step's mean.

    Raises:
        TypeError: group is not a name.
        ValueError: the group does not exist.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import init
        >>> init()  # each rank of msrun runs this
        >>> mean = ms_ce.parallel.GlobalMean(gradients_mean=True)
        >>> logits, target = mindspore.ops.zeros((3, 12)), mindspore.Tensor([0, 11, -100])  # this rank's rows
        >>> stats = ms_ce.cross_entropy_with_stats(logits, target, reduction="sum")
        >>> print(f"{float(mean(stats[0], stats[1])):.3f}")  # log 12
        2.485
    """

    def __init__(self, group: str | None = None, gradients_mean: bool = False) -> None:
        super().__init__()
        chosen = Group("GlobalMean", world() if group is None else group)
        self.all_sum = AllSum(chosen)
        self.divide = Divide(chosen.size if gradients_mean else 1)
        self.zeros_like = ops.ZerosLike()

    def construct(
        self, loss_sum: Tensor, total_weight: Tensor | None, step_weight: Tensor | None = None
    ) -> Tensor:
        loss_sum = ops.cast(loss_sum, ms.float32)
        if step_weight is not None:
            whole = self.all_sum(loss_sum)
            constant = self.zeros_like(loss_sum)
            return self.divide(loss_sum, constant, whole, ops.cast(step_weight, ms.float32))
        total_weight = ops.cast(total_weight, ms.float32)
        whole = self.all_sum(ops.stack((loss_sum, total_weight)))
        return self.divide(loss_sum, total_weight, whole[0], whole[1])


class Divide(UncastCell):
    """The mean whole / weight, whose derivative flows to this rank's part of both."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor
        self.zeros_like = ops.ZerosLike()

    def construct(self, part, part_weight, whole, weight):
        return select(weight == 0, by_zero(whole, weight), whole / weight)

    def bprop(self, part, part_weight, whole, weight, out, dout):
        zeros, upstream = self.zeros_like, dout * self.factor
        of_weight = -per_weight(upstream * out, weight)
        return per_weight(upstream, weight), of_weight, zeros(whole), zeros(weight)


class RowReduction(UncastCell):
    """The sum or the mean over the rows of this rank, or over those of all ranks of a group.

    Inputs: the sum of this rank's losses; the sum of its rows' weights, which a sum does not need; the dtype of a loss
    that is this rank's alone (over all ranks it is float32).
    """

    def __init__(self, reduction: str, row_group: str | None, gradients_mean: bool):
        super().__init__()
        self.is_mean = reduction == "mean"
        self.over_ranks = None if row_group is None else GlobalMean(row_group, gradients_mean)
        self.divide, self.ones_like = Divide(1), ops.OnesLike()

    def construct(self, loss_sum, total_weight, dtype):
        if self.over_ranks is not None:
            if self.is_mean:
                return self.over_ranks(loss_sum, total_weight)
            return self.over_ranks(loss_sum, None, self.ones_like(loss_sum))
        if self.is_mean:
            loss_sum = self.divide(loss_sum, total_weight, loss_sum, total_weight)
        return ops.cast(loss_sum, dtype)

    def over(self, loss_sum, divisor, dtype):
        """The sum over a divisor from outside, which is that of all ranks."""
        divisor = ops.stop_gradient(self.ones_like(loss_sum)) * divisor
        if self.over_ranks is not None:
            return self.over_ranks(loss_sum, None, divisor)
        return ops.cast(self.divide(loss_sum, divisor, loss_sum, divisor), dtype)


def global_mean(
    loss_sum: Tensor,
    total_weight: Tensor | None,
    group: str | None = None,
    *,
    gradients_mean: bool = False,
    step_weight: Tensor | None = None,
) -> Tensor:
    """`GlobalMean(group, gradients_mean)(loss_sum, total_weight, step_weight)`, for code outside of Cells.

    Args:
        loss_sum (Tensor), total_weight (Tensor), group (str): as there.

    Keyword Args:
        gradients_mean (bool), step_weight (Tensor): as there.

    Returns:
        Tensor, float32 scalar, the same on all ranks.

    Raises:
        TypeError, ValueError: as `GlobalMean`.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import init
        >>> init()  # each rank of msrun runs this
        >>> print(ms_ce.parallel.global_mean(mindspore.Tensor(6.0), mindspore.Tensor(4.0)))
        1.5
    """
    return GlobalMean(group, gradients_mean)(loss_sum, total_weight, step_weight)


def global_weight(total_weight: Tensor | None, group: str | None = None) -> Tensor:
    """Σ total_weight over the ranks of a group, a float32 scalar without a gradient.

    Args:
        total_weight (Tensor): scalar, the sum of the weights of this rank's rows, over all micro-batches of a step.
        group (str): name of the communication group. Default: all ranks.

    Returns:
        Tensor, float32 scalar, the same on all ranks.

    Raises:
        TypeError, ValueError: as `GlobalMean`.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import init
        >>> init()  # each rank of msrun runs this
        >>> loss_sums = mindspore.Tensor(4.0), mindspore.Tensor(2.0)  # of two micro-batches of this rank
        >>> weights = mindspore.Tensor(3.0), mindspore.Tensor(1.0)
        >>> step_weight = ms_ce.parallel.global_weight(sum(weights))
        >>> shares = [ms_ce.parallel.global_mean(one, None, step_weight=step_weight) for one in loss_sums]
        >>> print(sum(shares))
        1.5
    """
    chosen = Group("global_weight", world() if group is None else group)
    return AllSum(chosen)(ops.cast(total_weight, ms.float32))
