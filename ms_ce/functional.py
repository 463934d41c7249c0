"""The losses as functions: check, choose a backend, compute. Layers and primitives call the same four steps."""

from __future__ import annotations

import math
from typing import Any

from mindspore import Tensor

from ms_ce import _arguments, _checks, _divisor
from ms_ce._arguments import IGNORE_INDEX, LABEL_SMOOTHING, NOT_GIVEN, REDUCTION
from ms_ce.backend import resolved, serving
from ms_ce.ops import eager
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import Known, OfKnown, known_shape, may_need_gradient
from ms_ce.ops.options import Options, Plan
from ms_ce.ops.precision import of_known

# Logits from which on their gradient may be made in the forward pass unasked, in a graph and in PyNative.
_LARGE, _LARGE_EAGER = 1 << 20, 1 << 16


@OfKnown
def rows_shape(logits: Tensor) -> tuple[int, ...] | None:
    """The shape of the rows of logits, as far as it is known."""
    shape = known_shape(logits)
    return None if shape is None else shape[:1] * (len(shape) > 1) + shape[2:]


@of_known
def check_inputs(
    op: str,
    logits_name: str,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    row_weight: Tensor | None,
    options: Options,
    probabilities: bool,
) -> None:
    """Everything that can be known of the tensors before the kernel runs."""
    logits = _checks.check_tensor(op, logits_name, logits)
    target = _checks.check_tensor(op, "target", target)
    weight_dtype, weight_rank, weight_shape = None, 1, None
    if weight is not None:
        weight = _checks.check_tensor(op, "weight", weight)
        weight_dtype, weight_rank = weight.dtype, weight.ndim
        weight_shape = known_shape(weight)
    _checks.check_dtypes(op, logits_name, logits.dtype, target.dtype, weight_dtype, probabilities)
    _checks.check_ranks(op, logits_name, logits.ndim, target.dtype, target.ndim, weight_rank)
    shapes = (known_shape(logits), known_shape(target), weight_shape)
    _checks.check_shapes(op, logits_name, *shapes)
    _checks.check_ignore_index(op, target.dtype, Options(*options).ignore_index)
    if row_weight is not None:
        _checks.check_row_weight(op, row_weight, logits.ndim - 1, rows_shape(logits))


def over_total_weight(
    plan: Plan,
    total_weight: float | Tensor,
    row_weight: Tensor | None,
    input: Tensor,
    target: Tensor,
) -> tuple[float | Tensor, Tensor, Plan]:
    """(the divisor, the rows' weights over it, the plan of the sum that is left) of logits."""
    return _divisor.from_outside(plan, total_weight, row_weight, rows_shape(input), target)


def constant(row_weight: Tensor | None) -> Tensor | None:
    """A row's weight has no gradient."""
    return None if row_weight is None else without_gradient(row_weight)


@OfKnown
def _in_forward(choice: bool | str, training: bool, input: Tensor | Known) -> bool:
    """Whether the gradient is made in the forward pass."""
    shape = known_shape(input)
    size = 0 if shape is None else math.prod(shape)
    if isinstance(input, Known):  # in a graph that is being compiled
        # Where PyNative records, it will call the backward pass as a graph of its own, to which no upstream is known.
        large = size >= _LARGE
        return choice is True or (choice == "auto" and training and large and not eager.recording())
    if choice is False or not eager.AVAILABLE or not eager.recording():
        return False
    return may_need_gradient(input) and (choice is True or size >= _LARGE_EAGER)


@of_known
def _begun(
    plan: Plan,
    probabilities: bool,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    row_weight: Tensor | None,
) -> Plan:
    """The plan with the name of the backend that serves, after all checks."""
    plan = resolved(plan)
    tensors = (input, target, weight, row_weight)
    check_inputs(plan.op, "input", *tensors, plan.options, probabilities)
    return plan


def cross_entropy_on(
    plan: Plan,
    training: bool,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
) -> Tensor:
    """`cross_entropy` as a plan says, which a Cell holds."""
    plan = _begun(plan, True, input, target, weight, row_weight)
    kernels = serving(plan.op, plan.backend)
    divisor = None
    if total_weight is not None:
        divisor, row_weight, plan = over_total_weight(plan, total_weight, row_weight, input, target)
    in_forward = _in_forward(plan.gradient_in_forward, training, input)
    tensors = (input, target, weight, constant(row_weight))
    loss = kernels.cross_entropy(*tensors, plan.options, in_forward)[0]
    return loss if divisor is None else _divisor.quotient(loss, divisor)


def nll_loss_on(
    plan: Plan,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, total_weight) as a plan says."""
    plan = _begun(plan, False, input, target, weight, row_weight)
    kernels = serving(plan.op, plan.backend)
    if total_weight is None:
        return kernels.nll_loss(input, target, weight, constant(row_weight), plan.options)
    divisor, row_weight, plan = over_total_weight(plan, total_weight, row_weight, input, target)
    loss = kernels.nll_loss(input, target, weight, row_weight, plan.options)[0]
    return _divisor.quotient(loss, divisor), total_weight


def cross_entropy(
    input: Tensor | None = None,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    *positional: Any,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    size_average: bool | None = NOT_GIVEN,
    ignore_index: int | None = IGNORE_INDEX,
    reduce: bool | None = NOT_GIVEN,
    reduction: str = REDUCTION,
    label_smoothing: float = LABEL_SMOOTHING,
    backend: str = "auto",
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
    gradient_in_forward: bool | str = "auto",
) -> Tensor:
    r"""Cross entropy between unnormalised logits and class indices or class probabilities.

    With x the logits, lse = log Σ_c exp(x_c), class weight w, label smoothing ε and q the target's probabilities
    (1 at a class index, 0 elsewhere), the loss of a row is

        l = Σ_c w_c · ((1-ε)·q_c + ε/C) · (lse - x_c) + z_loss·lse²

    and 0 where the class index is `ignore_index`. 'mean' divides the sum by Σ w[target] over the rows that count
    for class indices, by the number of rows for probabilities. With r a row's `row_weight`, its loss is r·l, and
    'mean' divides by Σ r·w[target] or Σ r. With `total_weight`, 'mean' divides by that instead.

    Args:
        input (Tensor): logits of shape (C), (N, C) or (N, C, d1…dK), K up to 5; float16, bfloat16, float32 or
            float64. Computed in float32 (float64 for float64) and rounded once at the end.
        target (Tensor): class indices int32, int64 or uint8 of input's shape without the class axis, in [0, C) or
            `ignore_index`; or probabilities of input's shape, in input's dtype or float32.
        weight (Tensor): a factor for each class, shape (C), input's dtype or float32. Default: 1 each.
        positional: ignore_index, reduction, label_smoothing in MindSpore's order, where the first is an int; or
            size_average, ignore_index, reduce, reduction, label_smoothing in torch's, where it is a bool or None.

    Keyword Args:
        logits (Tensor), labels (Tensor): other names of input and target.
        size_average (bool): deprecated, as in torch; False with `reduce` not False means 'sum'.
        ignore_index (int): class index that does not count. Default -100, also for None.
        reduce (bool): deprecated, as in torch; False means 'none'. Either of the two overrides `reduction`.
        reduction (str): 'none', 'mean' or 'sum'. Default 'mean'.
        label_smoothing (float): ε in [0, 1]. Default 0.
        backend (str): 'auto', or a name of `available_backends()`.
        z_loss (float): factor of lse², which keeps logits near 0 (PaLM uses 1e-4). Default 0.
        softcap (float): replaces x by softcap·tanh(x/softcap) (Gemma 2). Default None.
        logit_scale (float): multiplies the logits first. Default 1.
        row_weight (Tensor): a factor for each row, of the unreduced loss's shape, any float dtype; a constant without a
            gradient. A row of weight 0 counts as ignored, whatever its logits and target. Default: 1 each.
        total_weight (number, Tensor): the mean's divisor from outside, such as the number of tokens of all batches
            whose gradients are accumulated (`num_items_in_batch`): the batches' shares then add up to the mean over all
            of them. A Tensor of shape (), which a graph follows without being compiled again; a constant. It divides
            as it is: a negative one changes the sign, 0 gives nan or inf with gradient 0. Default: that above.
        gradient_in_forward (bool): make the gradient of input in the forward pass, while a row of logits is in the
            cache. It saves reading them again where the upstream gradient is 1, as of a loss that is minimised as it
            is. For any other (a loss scale, a weighted sum of losses) the gradient is made by the backward pass, and
            what the forward pass made is not used. 'auto' does it in PyNative where a gradient is recorded, from 2^16
            logits on; in a compiled graph never for this function, and in a `CrossEntropyLoss` by its `training`, from
            2^20 logits on. Without effect for 'none', and on other backends than 'cpu'. Default 'auto'.

    Returns:
        Tensor of input's dtype: a scalar, or with 'none' of input's shape without the class axis.

    Raises:
        TypeError: for an argument of the wrong type or dtype, or one that is given twice.
        ValueError: for a shape, range or option that does not fit; a class index outside [0, C) raises when the
            result is read (RuntimeError from the compiled kernel, ValueError from `composed`).

    Example:
        >>> import mindspore, ms_ce
        >>> logits = mindspore.Tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> target = mindspore.Tensor([0, 0])
        >>> print(f"{float(ms_ce.cross_entropy(logits, target)):.4f}")
        1.1269

    Source: torch.nn.functional.cross_entropy; label smoothing: Szegedy et al. 2015; z-loss: Chowdhery et al. 2022.
    """
    op = "cross_entropy"
    input = _arguments.either(op, "input", input, "logits", logits)
    target = _arguments.either(op, "target", target, "labels", labels)
    values = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
    plan = _arguments.planned(
        op, backend, positional, (size_average, reduce), values, gradient_in_forward
    )
    return cross_entropy_on(plan, False, input, target, weight, row_weight, total_weight)


def nll_loss(
    input: Tensor | None = None,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    *positional: Any,
    inputs: Tensor | None = None,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    size_average: bool | None = NOT_GIVEN,
    ignore_index: int | None = IGNORE_INDEX,
    reduce: bool | None = NOT_GIVEN,
    reduction: str = REDUCTION,
    label_smoothing: float = LABEL_SMOOTHING,
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Negative log likelihood: -w[y]·input[y] for each row, with y the row's class index.

    Args:
        input (Tensor): log-probabilities of shape (C), (N, C) or (N, C, d1…dK), K up to 5; float16, bfloat16,
            float32 or float64.
        target (Tensor): class indices int32, int64 or uint8 of input's shape without the class axis, in [0, C) or
            `ignore_index`.
        weight (Tensor): a factor for each class, shape (C), input's dtype or float32. Default: 1 each.
        positional: ignore_index, reduction in MindSpore's order, where the first is an int; or size_average,
            ignore_index, reduce, reduction in torch's, where it is a bool or None.

    Keyword Args:
        inputs or logits (Tensor), labels (Tensor): other names of input and target.
        size_average (bool), reduce (bool): deprecated, as in torch.
        ignore_index (int): class index that does not count. Default -100, also for None.
        reduction (str): 'none', 'mean' (divides by Σ w[target] over the rows that count) or 'sum'. Default 'mean'.
        label_smoothing (float): for the line of mindspore.ops.nll_loss, and must be 0: `cross_entropy` smooths, and
            takes log-probabilities as the logits that they are.
        row_weight (Tensor), total_weight (number, Tensor): as in `cross_entropy`.
        backend (str): 'auto', or a name of `available_backends()`.

    Returns:
        Tensor of input's dtype: a scalar, or with 'none' of target's shape.

    Raises:
        TypeError, ValueError: as `cross_entropy`.

    Example:
        >>> import mindspore, ms_ce
        >>> log_prob = mindspore.Tensor([[-0.5, -1.0], [-2.0, -0.25]])
        >>> print(ms_ce.nll_loss(log_prob, mindspore.Tensor([0, 1])))
        0.375

    Source: torch.nn.functional.nll_loss.
    """
    op = "nll_loss"
    input = _arguments.either(op, "input", input, "inputs", inputs)
    input = _arguments.either(op, "input", input, "logits", logits)
    target = _arguments.either(op, "target", target, "labels", labels)
    values = (ignore_index, reduction, label_smoothing)
    plan = _arguments.planned_nll(op, backend, positional, (size_average, reduce), values)
    return nll_loss_on(plan, input, target, weight, row_weight, total_weight)[0]
