"""Several losses of one table in one call, as multi-token prediction has them: one sweep, one gradient of the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from ms_ce import _checks, _divisor, _linear, _linear_checks
from ms_ce.backend import linear_form, resolved
from ms_ce.ops import precision
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import OfKnown, is_class_index, known_shape, select
from ms_ce.ops.linear.sweep import readable
from ms_ce.ops.mean import counted, per_weight
from ms_ce.ops.options import named
from ms_ce.ops.precision import of_known
from ms_ce.ops.several import by_loss, nan_where


@of_known
def _check_alike(op: str, name: str, *values) -> None:
    """The elements of a sequence have one shape, as far as it is known, and one dtype."""
    tensors = [_checks.check_tensor(op, name + "[…]", value) for value in values]
    shapes, dtypes = [known_shape(each) for each in tensors], [each.dtype for each in tensors]
    if not shapes:
        raise ValueError(f"{op}: {name} must hold a tensor for each loss, got none")
    for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        if None not in (shape, shapes[0]) and shape != shapes[0]:
            raise ValueError(
                f"{op}: {name}[{number}] must have shape {shapes[0]} as {name}[0], got {shape}; pad it, and give the "
                "padding the target ignore_index or the row_weight 0"
            )
        if dtype != dtypes[0]:
            raise TypeError(
                f"{op}: {name}[{number}] must have dtype {str(dtypes[0]).lower()} as {name}[0], got "
                f"{str(dtype).lower()}"
            )


def _stacked(op: str, name: str, values: Any) -> Any:
    """What was given for each loss, behind each other on a first axis."""
    if not isinstance(values, (tuple, list)):
        return values
    _check_alike(op, name, *values)
    # MindSpore's CPU stacks no bfloat16.
    return ops.stack([readable(value) for value in values]).astype(values[0].dtype)


def _number_of_losses(op: str, rank: int, shape, told: int | None, shift: bool) -> int:
    """By input's rank and shape, and where a graph does not know that by what else was `told`."""
    least = 3 if shift else 2
    if rank is not None and rank < least:
        form = "(losses, …, sequence, in_features)" if shift else "(losses, …, in_features)"
        raise ValueError(
            f"{op}: input must have shape {form}, or be a tuple of one tensor a loss, got {rank} dimensions"
        )
    count = told if shape is None else shape[0]
    if not count:
        raise ValueError(
            f"{op}: input's first axis must be the losses, at least one, and a graph that is compiled for any number "
            f"of rows be told theirs by a tuple of factors; got input of shape {shape}"
        )
    return count


@of_known
def _checked(plan, told, input, linear_weight, target, linear_bias, weight, row_weight) -> int:
    """The number of losses, after all checks of the tensors."""
    plan = named(plan)
    input = _checks.check_tensor(plan.op, "input", input)
    count = _number_of_losses(plan.op, input.ndim, known_shape(input), told, plan.shift)
    matrix = _checks.check_tensor(plan.op, "linear_weight", linear_weight)
    _linear_checks.check_matrix(plan.op, matrix.ndim)
    tensors = (input, linear_weight, target, linear_bias, weight)
    _linear_checks.checked(plan, True, *tensors, row_weight)
    return count


@OfKnown
def _lead(hidden):
    shape = known_shape(hidden)
    return None if shape is None else shape[:-1]


@constexpr
def _numbers(op: str, name: str, values, count: int):
    """(a tensor of one value a loss, whether one is 0), from a number or a sequence of numbers."""
    given = values if isinstance(values, (tuple, list)) else (values,) * count
    if len(given) != count:
        raise ValueError(
            f"{op}: {name} must have {count} values, one a loss, got {len(given)}: {values!r}"
        )
    for value in given:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"{op}: {name} must hold numbers, or be a mindspore.Tensor of shape ({count},), got {value!r} of type "
                f"{type(value).__name__}"
            )
        if not math.isfinite(value):
            raise ValueError(f"{op}: {name} must be finite, got {value}")
    return Tensor([float(value) for value in given], _divisor.wide_dtype()), 0 in given


@constexpr
def _check_values(op: str, name: str, dtype, shape, expected) -> None:
    if dtype not in (*_checks.LABELS, *_checks.FLOATS):
        raise TypeError(f"{op}: {name} must hold numbers, got dtype {str(dtype).lower()}")
    if shape is None or shape not in expected:
        several = " or ".join(str(each) for each in expected)
        raise ValueError(f"{op}: {name} must have shape {several}, one value a loss, got {shape}")


def _one_each(op: str, name: str, values: Any, count: int) -> Any:
    """(values (count,), whether one may be 0) of what is a number for all losses, a sequence or a tensor."""
    if not isinstance(values, Tensor):
        return _numbers(op, name, values, count)
    expected = ((count,),) if name == "factors" else ((), (count,))
    _check_values(op, name, values.dtype, known_shape(values), expected)
    dtype = _divisor.wide_dtype()
    return ops.ones((count,), dtype) * without_gradient(values).astype(dtype), True


def _length(values: Any) -> int | None:
    return len(values) if isinstance(values, (tuple, list)) else None


def _answering(rows: Tensor, shift: bool) -> Tensor:
    """Of numbers of rows, those that have a hidden state."""
    return rows[..., 1:] if shift else rows


def _own_divisors(plan, count: int, target, weight, row_weight):
    """Σ row_weight·weight[target] of each loss, differentiable in weight."""
    row_weight = _answering(row_weight, plan.shift)
    if not is_class_index(target.dtype):
        return by_loss(row_weight, count)
    target = _answering(target.astype(mstype.int64), plan.shift)
    ignored = plan.options.ignore_index
    return by_loss(counted(target, weight, row_weight, ignored, row_weight.dtype), count)


def linear_multi_token_loss(
    input: Tensor | Sequence[Tensor],
    linear_weight: Tensor,
    target: Tensor | Sequence[Tensor],
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    factors: Sequence[float] | Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    row_weight: Tensor | Sequence[Tensor] | None = None,
    total_weight: float | Sequence[float] | Tensor | None = None,
    shift: bool = False,
    chunk_bytes: int | None = None,
    gradient_in_forward: bool | str = "auto",
    frozen: Sequence[str] = (),
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""The cross entropies of D hidden states and their targets through one table, and their sum with factors.

    With L_d = `linear_cross_entropy(input[d], linear_weight, target[d], …)`, each mean over the rows and by the divisor
    of its own, the results are

        loss = Σ_d factors[d]·L_d,        losses = (L_0, …, L_{D-1})

    in one pass over the table and with one gradient of it, where D calls would make D of them and add them up. It is
    the objective of multi-token prediction: input[0] the hidden states of the model, the others those of the depths,
    target[d] the tokens d + 1 further on.

    Gradients are those of `loss`, as of `linear_cross_entropy`; `losses` are constants, for the log. For losses that
    are differentiated each by itself, take `linear_cross_entropy` of the same tensors with reduction 'none'.

    Args:
        input (Tensor, sequence of Tensor): hidden states (D, …, in_features), or D of (…, in_features), which are
            copied behind each other; float16, bfloat16, float32 or float64.
        linear_weight (Tensor): (num_classes, in_features), as in `linear_cross_entropy`.
        target (Tensor, sequence of Tensor): class indices (D, …), or probabilities (D, …, num_classes).
        linear_bias (Tensor): (num_classes,). Default: none.
        weight (Tensor): a factor for each class, as there.
        ignore_index (int), label_smoothing (float): as there.
        reduction (str): of each loss, 'mean' or 'sum'. Default 'mean'.

    Keyword Args:
        factors (sequence of float, Tensor): one a loss; a Tensor (D,), which a graph follows without being compiled
            again, is a constant. A loss of factor 0 is left out: it costs no product, and is nan in `losses`.
            Default: 1 each.
        row_weight (Tensor, sequence of Tensor): a factor for each row, of the class indices' shape, as there.
        total_weight (number, sequence of numbers, Tensor): the means' divisor from outside, one for all or one a loss.
        z_loss, softcap, logit_scale, shift, chunk_bytes, gradient_in_forward, frozen, backend: as there.

    Returns:
        (Tensor, Tensor): the scalar loss, of input's dtype; and the losses, (D,) in float32 (float64 for float64
        input). A mean whose divisor is 0, where every row is ignored, is nan, makes the loss nan and adds 0 to the
        gradients.

    Raises:
        TypeError, ValueError: as `linear_cross_entropy`; for tensors or factors of another number than D.
        NotImplementedError: for a second derivative on backend 'cpu', or in several chunks.

    Example:
        >>> import mindspore, ms_ce
        >>> hidden = mindspore.Tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])  # of two depths
        >>> table = mindspore.Tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> target = mindspore.Tensor([[0, 0], [0, -100]])
        >>> loss, losses = ms_ce.linear_multi_token_loss(hidden, table, target, factors=(1.0, 0.1))
        >>> print(f"{float(loss):.4f}", [f"{float(each):.4f}" for each in losses])
        1.1962 ['1.1269', '0.6931']

    Source: Gloeckle et al. 2024 (multi-token prediction); DeepSeek-AI 2024 (DeepSeek-V3), whose factors are 1 and λ/D.
    """
    op = "linear_multi_token_loss"
    values = (ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale)
    plan = _linear_checks.planned(
        op, backend, values, chunk_bytes, shift, frozen, gradient_in_forward
    )
    plan = resolved(plan)
    _checks.check_reduced(op, plan.options.reduction)
    told = _length(factors) if isinstance(input, Tensor) else _length(input)
    input, target = _stacked(op, "input", input), _stacked(op, "target", target)
    row_weight = _stacked(op, "row_weight", row_weight)
    tensors = (input, linear_weight, target, linear_bias, weight)
    return _losses(plan, told, factors, row_weight, total_weight, *tensors)


def _losses(
    plan, told, factors, row_weight, total_weight, input, linear_weight, target, linear_bias, weight
):
    """(loss, losses) as a plan says, of what lies behind each other; `told` is their number, or None."""
    op, tensors = plan.op, (input, linear_weight, target, linear_bias, weight)
    count = _checked(plan, told, *tensors, row_weight)
    precision.pause()
    factors, _ = _one_each(op, "factors", 1.0 if factors is None else factors, count)
    weights = _divisor.weights_of(row_weight, _lead(input), target, -1)
    divisors, may_be_0 = None, False
    if total_weight is not None:
        _checks.check_divides(op, plan.options.reduction)
        divisors, may_be_0 = _one_each(op, "total_weight", total_weight, count)
    elif plan.options.reduction == "mean":
        divisors, may_be_0 = _own_divisors(plan, count, target, weight, weights), True
    shares = factors if divisors is None else per_weight(factors, divisors)
    precision.end()
    dtype, wanted, tensors = _linear.begun(
        plan, plan.gradient_in_forward, False, plan.frozen, *tensors
    )
    form, plan = linear_form(plan.backend, 2), _divisor.of_sum(plan)
    loss, losses = form.several(plan, wanted, shares, *tensors, weights)
    if divisors is not None:
        divisors = without_gradient(divisors)
        losses = losses / select(divisors == 0, 1.0, divisors)
    if may_be_0:
        empty = ops.logical_and(divisors == 0, factors != 0)
        loss = nan_where(loss, empty.astype(factors.dtype).sum())
    loss, losses = loss.astype(dtype), losses.astype(exact_dtype(dtype))
    precision.end()
    return loss, losses
