"""The loss of a language model without its logits: cross entropy of input·Wᵀ + b, a chunk of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mindspore import Parameter, Tensor
from mindspore import dtype as mstype
from mindspore.common.initializer import Uniform, initializer

from ms_ce import _arguments, _checks, _linear, _linear_checks
from ms_ce._cell import LossCell
from ms_ce.backend import requested
from ms_ce.ops.graph import Frozen, compiling
from ms_ce.sweep import LossStats


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
    shift: bool = False,
    chunk_bytes: int | None = None,
    gradient_in_forward: bool | str = "auto",
    frozen: Sequence[str] = (),
    backend: str = "auto",
) -> Tensor:
    r"""`cross_entropy(input @ linear_weight.T + linear_bias, target, …)` without the logits.

    A chunk of rows at a time is multiplied, turned into its loss and, where gradients are wanted, into the
    gradients of input, weight and bias, so that no more than `chunk_bytes` of logits exist at once. Rows whose
    target is `ignore_index` are left out before the product. Formula and options: `cross_entropy`.

    Gradients are those of input, linear_weight and linear_bias, and of probability targets and weight, which make the
    logits once more each. With backend 'composed' and a chunk_bytes that holds all logits, they can be differentiated
    again. What is frozen costs neither its product nor its memory: in PyNative whatever needs no gradient, in a
    compiled graph what `frozen` names. PyNative cannot see that of an argument of the function that is differentiated:
    pass probabilities that nobody trains through `ops.stop_gradient`.

    Args:
        input (Tensor): hidden states (…, in_features) of any leading shape; float16, bfloat16, float32 or float64.
        linear_weight (Tensor): (num_classes, in_features), input's dtype, or float32 beside an input of 16 bits, which
            is then computed in float32. torch's (num_classes, d1…dK, in_features) with input (N, in_features) is
            computed through the logits.
        target (Tensor): class indices int32, int64 or uint8 of input's leading shape, or probabilities of that
            shape and a last axis of num_classes, in input's dtype or float32.
        linear_bias (Tensor): (num_classes,), input's dtype or as linear_weight's. Default: none.
        weight (Tensor): a factor for each class, shape (num_classes,), input's dtype or float32. Default: 1 each.
        ignore_index (int): class index that does not count. Default -100, also for None.
        reduction (str): 'none', 'mean' or 'sum'. Default 'mean'.
        label_smoothing (float): ε in [0, 1]. Default 0.

    Keyword Args:
        z_loss (float), softcap (float), logit_scale (float): as in `cross_entropy`.
        row_weight (Tensor): a factor for each row, as there, of the class indices' shape, under `shift` too: that of
            position s stands at its target's, s + 1.
        total_weight (number, Tensor): the mean's divisor from outside, as there.
        shift (bool): predict the next token: input of position s answers for target of position s + 1, along the
            last leading axis, without a copy. 'none' then gives one loss less for each sequence. Default False.
        chunk_bytes (int): what a chunk's logits may take, in float32 (float64 for float64). Default:
            with two copies of its hidden states and 1.5 MiB a twentieth of all logits, at least 4 and at most 128 MiB.
        gradient_in_forward (bool): make the gradients in the forward pass, which saves one of four matrix
            products where they are wanted and wastes two where they are not. 'auto' sees whether PyNative records
            a gradient; inside a compiled graph that cannot be seen and 'auto' is False for this function (a
            `LinearCrossEntropyLoss` goes by its `training`). For an upstream gradient other than 1 they are
            multiplied by it, in a compiled graph into memory of their own. Without effect for 'none', and on
            backend 'cpu' for float16, whose gradients would be rounded before the loss scale. Default 'auto'.
        frozen (tuple of str): names out of 'input', 'linear_weight' and 'linear_bias' that are constants, as by
            `ops.stop_gradient`. Default: none.
        backend (str): 'auto', or a name of `available_backends()`.

    Returns:
        Tensor of input's dtype: a scalar, or with 'none' of input's leading shape.

    Raises:
        TypeError, ValueError: as `cross_entropy`.
        NotImplementedError: for a second derivative on backend 'cpu', or in several chunks.

    Example:
        >>> import mindspore, ms_ce
        >>> hidden = mindspore.Tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> linear_weight = mindspore.Tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> loss = ms_ce.linear_cross_entropy(hidden, linear_weight, mindspore.Tensor([0, 0]))
        >>> print(f"{float(loss):.4f}")
        1.1269

    Source: torch.nn.functional.linear_cross_entropy; Hsu et al. 2024 (Liger Kernel); Wijmans et al. 2024 (Cut
    Cross-Entropy).
    """
    op = "linear_cross_entropy"
    values = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
    plan = _linear_checks.planned(
        op, backend, values, chunk_bytes, shift, frozen, gradient_in_forward
    )
    tensors = (input, linear_weight, target, linear_bias, weight, row_weight, total_weight)
    return _linear.linear_cross_entropy_on(plan, False, False, plan.frozen, *tensors)[0]


def linear_cross_entropy_with_stats(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
    shift: bool = False,
    chunk_bytes: int | None = None,
    frozen: Sequence[str] = (),
    backend: str = "auto",
) -> LossStats:
    """`linear_cross_entropy` with everything a trainer logs, from the same pass over the chunks.

    Arguments and errors are those of `linear_cross_entropy`, with a linear_weight of 2 dimensions.

    Returns:
        LossStats, as `cross_entropy_with_stats`; lse and predicted have input's leading shape, under `shift` one less
        for each sequence.

    Example:
        >>> import mindspore, ms_ce
        >>> hidden = mindspore.Tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> linear_weight = mindspore.Tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> target = mindspore.Tensor([0, 0])
        >>> stats = ms_ce.linear_cross_entropy_with_stats(hidden, linear_weight, target)
        >>> print(stats.num_correct, stats.total_weight)
        1 2.0
    """
    op = "linear_cross_entropy_with_stats"
    values = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
    plan = _linear_checks.planned(op, backend, values, chunk_bytes, shift, frozen)
    tensors = (input, linear_weight, target, linear_bias, weight, row_weight, total_weight)
    stats = _linear.linear_cross_entropy_on(plan, True, False, plan.frozen, *tensors)
    return stats if compiling() else LossStats(*stats)  # a named tuple loses gradients there


class LinearCrossEntropyLoss(LossCell):
    """The last linear layer of a classifier or language model and its loss in one Cell, without the logits.

    Formula, shapes, dtypes and errors: `ms_ce.linear_cross_entropy`.

    Args:
        in_features (int): size of the hidden states.
        num_classes (int, Parameter): number of classes; or the Parameter (num_classes, in_features) to use, for
            instance an embedding's table (tied weights), which this Cell then does not own.
        bias (bool): whether to add a bias of its own. Default False.
        weight (Tensor): a factor for each class, shape (num_classes,). Default: 1 each.
        ignore_index (int), reduction (str), label_smoothing (float): as in `linear_cross_entropy`.

    Keyword Args:
        z_loss, softcap, logit_scale, shift, chunk_bytes, backend: as in `linear_cross_entropy`.
        frozen (tuple of str): as there. Parameters with `requires_grad=False` need not be named; a compiled graph
            goes by what they were when it was compiled.
        gradient_in_forward (bool): as there; 'auto' goes by `training` inside a compiled graph, so call
            `set_train()` on the network to train it with three matrix products a step and not four.
        dtype (mindspore.dtype): of the parameters that the Cell makes. Default float32.

    Inputs:
        - **input** (Tensor): hidden states (…, in_features).
        - **target** (Tensor): class indices (…), or probabilities (…, num_classes).
        - **row_weight** (Tensor): optional, a factor for each row, as in `linear_cross_entropy`.
        - **total_weight** (number, Tensor): optional, the mean's divisor, as there.

    Example:
        >>> import mindspore, ms_ce
        >>> loss = ms_ce.LinearCrossEntropyLoss(16, 1000)
        >>> hidden = mindspore.ops.zeros((2, 8, 16))
        >>> target = mindspore.ops.ones((2, 8), mindspore.int32)
        >>> print(f"{float(loss(hidden, target)):.4f}")
        6.9078

    Source: torch.nn.LinearCrossEntropyLoss.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = False,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        shift: bool = False,
        chunk_bytes: int | None = None,
        gradient_in_forward: bool | str = "auto",
        frozen: Sequence[str] = (),
        backend: str = "auto",
        dtype: Any = mstype.float32,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        shape = _linear_checks.check_layer(op, in_features, num_classes, bias)
        bound = 1.0 / math.sqrt(in_features)
        if isinstance(num_classes, Parameter):
            # Past Cell's own bookkeeping, which would give the owner's parameter this Cell's name.
            object.__setattr__(self, "linear_weight", num_classes)
            dtype = num_classes.dtype
        else:
            table = initializer(Uniform(bound), shape, dtype)
            self.linear_weight = Parameter(table, name="linear_weight")
        self.linear_bias = None
        if bias:
            self.linear_bias = Parameter(
                initializer(Uniform(bound), shape[:1], dtype), name="linear_bias"
            )
        self.weight = _checks.check_class_weight(op, weight)
        self.plan = _linear_checks.make_plan(
            op,
            requested(op, backend),
            (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale),
            chunk_bytes,
            shift,
            frozen,
            gradient_in_forward,
        )
        parameters = {"linear_weight": self.linear_weight, "linear_bias": self.linear_bias}
        self.frozen = Frozen(
            **{name: each for name, each in parameters.items() if each is not None}
        )

    def construct(self, *tensors: float | Tensor | None, **names: float | Tensor | None) -> Tensor:
        given = _arguments.inputs_of(self.plan.op, tensors, names)
        input, target, row_weight, total_weight = given
        input, frozen = self.in_precision(input), self.frozen(self.plan.frozen)
        given = (input, self.linear_weight, target, self.linear_bias, self.weight, row_weight)
        way = (self.plan, False, self.training, frozen)
        return _linear.linear_cross_entropy_on(*way, *given, total_weight)[0]

    def extend_repr(self) -> str:
        classes, features = self.linear_weight.shape
        return (
            f"in_features={features}, num_classes={classes}, bias={self.linear_bias is not None}, "
            f"shift={self.plan.shift}, {self.plan.options}, backend={self.plan.backend!r}"
        )
