"""The losses as Cells: arguments are checked once, when the Cell is made."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from ms_ce import _arguments, _checks, functional
from ms_ce._arguments import IGNORE_INDEX, LABEL_SMOOTHING, NOT_GIVEN, REDUCTION
from ms_ce._cell import LossCell
from ms_ce.backend import requested


class CrossEntropyLoss(LossCell):
    """Cross entropy between unnormalised logits and class indices or class probabilities, as a Cell.

    Formula, shapes, dtypes and errors: `ms_ce.cross_entropy`. Called by the line of mindspore.nn, mindspore.mint or
    torch.nn, with all arguments by position or keyword.

    Args:
        weight (Tensor): a factor for each class, shape (C). Default: 1 each.
        positional: ignore_index, reduction, label_smoothing in MindSpore's order, where the first is an int; or
            size_average, ignore_index, reduce, reduction, label_smoothing in torch's, where it is a bool or None.

    Keyword Args:
        size_average (bool): deprecated, as in torch; False with `reduce` not False means 'sum'.
        ignore_index (int): class index that does not count. Default -100, also for None.
        reduce (bool): deprecated, as in torch; False means 'none'. Either of the two overrides `reduction`.
        reduction (str): 'none', 'mean' or 'sum'. Default 'mean'.
        label_smoothing (float): ε in [0, 1]. Default 0.
        backend (str): 'auto', or a name of `available_backends()`.
        z_loss (float), softcap (float), logit_scale (float): as in `cross_entropy`.
        gradient_in_forward (bool): as there; 'auto' is True inside a compiled graph where this Cell is `training`
            and has 2^20 logits or more: call `set_train()` on the network to read them once a step and not twice.
            The graph has to hold the gradient too: `jit` the training step, not the loss alone.

    Inputs:
        - **input** (Tensor): logits (C), (N, C) or (N, C, d1…dK). As a keyword also logits.
        - **target** (Tensor): class indices without the class axis, or probabilities of input's shape. As a keyword
          also labels.
        - **row_weight** (Tensor): optional, a factor for each row, as in `cross_entropy`.
        - **total_weight** (number, Tensor): optional, the mean's divisor, as there.

    Example:
        >>> import mindspore, ms_ce
        >>> loss = ms_ce.CrossEntropyLoss(label_smoothing=0.1)
        >>> logits = mindspore.Tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> print(f"{float(loss(logits, mindspore.Tensor([0, 1]))):.4f}")
        0.2269
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *positional: Any,
        size_average: bool | None = NOT_GIVEN,
        ignore_index: int | None = IGNORE_INDEX,
        reduce: bool | None = NOT_GIVEN,
        reduction: str = REDUCTION,
        label_smoothing: float = LABEL_SMOOTHING,
        backend: str = "auto",
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        gradient_in_forward: bool | str = "auto",
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.weight = _checks.check_class_weight(op, weight)
        self.plan = _arguments.make_plan(
            op,
            requested(op, backend),
            positional,
            (size_average, reduce),
            (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale),
            gradient_in_forward,
        )

    def construct(self, *tensors: float | Tensor | None, **names: float | Tensor | None) -> Tensor:
        given = _arguments.inputs_of(self.plan.op, tensors, names)
        input, target, row_weight, total_weight = given
        given = (self.in_precision(input), target, self.weight, row_weight, total_weight)
        return functional.cross_entropy_on(self.plan, self.training, *given)

    def extend_repr(self) -> str:
        return f"{self.plan.options}, backend={self.plan.backend!r}"


class NLLLoss(LossCell):
    """Negative log likelihood of log-probabilities, as a Cell.

    Formula, shapes, dtypes and errors: `ms_ce.nll_loss`. Called by the line of mindspore.nn, mindspore.mint or
    torch.nn. The primitive that also returns the total weight is `ms_ce.ops.NLLLoss`.

    Args:
        weight (Tensor): a factor for each class, shape (C). Default: 1 each.
        positional: ignore_index, reduction in MindSpore's order, where the first is an int; or size_average,
            ignore_index, reduce, reduction in torch's, where it is a bool or None.

    Keyword Args:
        size_average (bool), reduce (bool): deprecated, as in torch.
        ignore_index (int): class index that does not count. Default -100, also for None.
        reduction (str): 'none', 'mean' or 'sum'. Default 'mean'.
        backend (str): 'auto', or a name of `available_backends()`.

    Inputs:
        - **input** (Tensor): log-probabilities (C), (N, C) or (N, C, d1…dK). As a keyword also logits.
        - **target** (Tensor): class indices without the class axis. As a keyword also labels.
        - **row_weight** (Tensor): optional, a factor for each row.
        - **total_weight** (number, Tensor): optional, the mean's divisor.

    Example:
        >>> import mindspore, ms_ce
        >>> loss = ms_ce.NLLLoss(reduction="sum")
        >>> log_prob = mindspore.Tensor([[-0.5, -1.0], [-2.0, -0.25]])
        >>> print(loss(log_prob, mindspore.Tensor([0, 1])))
        0.75
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *positional: Any,
        size_average: bool | None = NOT_GIVEN,
        ignore_index: int | None = IGNORE_INDEX,
        reduce: bool | None = NOT_GIVEN,
        reduction: str = REDUCTION,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.weight = _checks.check_class_weight(op, weight)
        values = (ignore_index, reduction, LABEL_SMOOTHING)
        self.plan = _arguments.make_nll_plan(
            op, requested(op, backend), positional, (size_average, reduce), values
        )

    def construct(self, *tensors: float | Tensor | None, **names: float | Tensor | None) -> Tensor:
        given = _arguments.inputs_of(self.plan.op, tensors, names)
        input, target, row_weight, total_weight = given
        given = (self.in_precision(input), target, self.weight, row_weight, total_weight)
        return functional.nll_loss_on(self.plan, *given)[0]

    def extend_repr(self) -> str:
        return f"{self.plan.options}, backend={self.plan.backend!r}"
