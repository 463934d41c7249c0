"""NLLLoss with the signature of mindspore.ops.NLLLoss, on ms_ce's backends."""

from __future__ import annotations

from mindspore import Tensor

from ms_ce import functional
from ms_ce._cell import LossCell
from ms_ce.backend import requested
from ms_ce.ops.options import Plan, make_options


class NLLLoss(LossCell):
    """Negative log likelihood that also returns the total weight, called as mindspore.ops.NLLLoss.

    The loss of a row is -weight[y]·logits[y], 0 where y is `ignore_index`; total_weight is Σ weight[y] over the rows
    that count, and 'mean' divides by it.

    Args:
        reduction (str): 'none', 'mean' or 'sum'. Default 'mean'.
        ignore_index (int): class index that does not count. Default -100, also for None.

    Keyword Args:
        backend (str): 'auto', or a name of `available_backends()`.

    Inputs:
        - **logits** (Tensor): log-probabilities (N, C), also (C) and (N, C, d1…dK), of any float dtype.
        - **labels** (Tensor): class indices int32, int64 or uint8, logits' shape without the class axis.
        - **weight** (Tensor): (C), logits' dtype or float32; None for 1 each.

    Outputs:
        (loss, total_weight): loss in logits' dtype, a scalar or with 'none' of labels' shape; total_weight a scalar
        in weight's dtype.

    Raises:
        TypeError, ValueError: as `ms_ce.nll_loss`.

    Example:
        >>> import mindspore, ms_ce
        >>> logits = mindspore.Tensor([[0.5, 1.0], [2.0, 0.25]])
        >>> weight = mindspore.Tensor([0.5, 2.0])
        >>> loss, total_weight = ms_ce.ops.NLLLoss()(logits, mindspore.Tensor([0, 1]), weight)
        >>> print(f"{float(loss):.2f} {float(total_weight):.2f}")
        -0.30 2.50

    Source: mindspore.ops.NLLLoss.
    """

    def __init__(
        self, reduction: str = "mean", ignore_index: int | None = -100, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        op = "ops.NLLLoss"
        options = make_options(op, ignore_index=ignore_index, reduction=reduction)
        self.plan = Plan(op, requested(op, backend), options)

    def construct(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return functional.nll_loss_on(self.plan, self.in_precision(logits), labels, weight)
