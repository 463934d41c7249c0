"""Checks of the linear loss's arguments, in the manner of `_checks`."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from mindspore import Parameter
from mindspore import dtype as mstype

from ms_ce import _checks
from ms_ce.backend import resolved
from ms_ce.ops.graph import OfKnown, known_shape
from ms_ce.ops.options import Plan, make_options, named, positive, softcap_of
from ms_ce.ops.precision import constexpr, of_known

_HALVES = (mstype.float16, mstype.bfloat16)
FREEZABLE = ("input", "linear_weight", "linear_bias")


def check_frozen(op: str, frozen) -> tuple[str, ...]:
    if isinstance(frozen, str) or not isinstance(frozen, (tuple, list)):
        raise TypeError(f"{op}: frozen must be a tuple of names out of {FREEZABLE}, got {frozen!r}")
    for name in frozen:
        if name not in FREEZABLE:
            raise ValueError(f"{op}: frozen must hold names out of {FREEZABLE}, got {name!r}")
    return tuple(frozen)


def make_plan(
    op: str,
    backend: str,
    values: tuple,
    chunk_bytes,
    shift,
    frozen,
    gradient_in_forward=False,
) -> Plan:
    """What a call or a Cell asks for; `values` are the options in the order of the table."""
    options = make_options(op, *values)
    if chunk_bytes is not None and (
        isinstance(chunk_bytes, bool) or not isinstance(chunk_bytes, Integral)
    ):
        raise TypeError(f"{op}: chunk_bytes must be an int or None, got {chunk_bytes!r}")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(
            f"{op}: chunk_bytes must be at least 1, got {chunk_bytes}; use None for the default"
        )
    if not isinstance(shift, bool):
        raise TypeError(f"{op}: shift must be True or False, got {shift!r}")
    _checks.check_gradient_in_forward(op, gradient_in_forward)
    chunk_bytes = 0 if chunk_bytes is None else int(chunk_bytes)
    frozen = check_frozen(op, frozen)
    return Plan(op, backend, options, gradient_in_forward, chunk_bytes, shift, frozen)


def tempered(
    op: str,
    temperature: float,
    ignore_index: int | None,
    softcap: float | None,
    logit_scale: float,
) -> tuple[Any, ...]:
    """The options' values in the order of the table: softmax of the capped logits over the temperature."""
    temperature = positive(op, "temperature", temperature)
    cap: float | None = softcap_of(op, "softcap", softcap)
    scale = make_options(op, logit_scale=logit_scale).logit_scale
    cap = cap / temperature if cap else None
    return ignore_index, "none", 0.0, 0.0, cap, scale / temperature


planned = constexpr(make_plan)


def is_mixed(dtype, linear_weight, linear_bias) -> bool:
    """Whether hidden states of a `dtype` of 16 bits meet parameters of float32, as in mixed precision."""
    parameters = (linear_weight, linear_weight if linear_bias is None else linear_bias)
    return dtype in _HALVES and any(each.dtype == mstype.float32 for each in parameters)


@constexpr
def check_dtypes(op: str, hidden, linear_weight, linear_bias) -> None:
    for name, dtype in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        accepted = [hidden, mstype.float32] if hidden in _HALVES else [hidden]
        if dtype is not None and dtype not in accepted:
            also = " or float32" if len(accepted) > 1 else ""
            raise TypeError(
                f"{op}: {name} must have input's dtype {str(hidden).lower()}{also}, got {str(dtype).lower()}; "
                "cast one to the other"
            )


def check_ranks(op: str, hidden, linear_weight, linear_bias, target_dtype, target, weight, shift):
    """Numbers of dimensions, which are known even under dynamic shape."""
    _checks.refuse_unknown_rank(
        op,
        input=hidden,
        linear_weight=linear_weight,
        target=target,
        linear_bias=linear_bias,
        weight=weight,
    )
    if linear_weight < 2:
        raise ValueError(
            f"{op}: linear_weight must have shape (num_classes, in_features), got {linear_weight} dimensions"
        )
    if linear_weight > _checks.MAX_RANK:
        raise ValueError(
            f"{op}: linear_weight must have shape (num_classes, d1…dK, in_features) with K up to "
            f"{_checks.MAX_RANK - 2}, got {linear_weight} dimensions"
        )
    several = linear_weight - 2  # torch's d1…dK
    least = 2 if shift or several else 1
    if hidden < least or (several and hidden != 2):
        form = (
            "(N, in_features)"
            if several
            else "(…, sequence, in_features)"
            if shift
            else "(…, in_features)"
        )
        raise ValueError(f"{op}: input must have shape {form}, got {hidden} dimensions")
    if several and shift:
        raise ValueError(
            f"{op}: shift must be False with a linear_weight of more than 2 dimensions"
        )
    indices = target_dtype in _checks.LABELS
    expected = hidden - 1 + several + (0 if indices else 1)
    if target != expected:
        kind = "class indices" if indices else "class probabilities"
        raise ValueError(
            f"{op}: target of {kind} must have {expected} dimensions beside input of {hidden}, got {target}"
            + (_checks.as_class_indices(target_dtype) if target == expected - 1 else "")
        )
    if linear_bias and linear_bias != linear_weight - 1:  # 0 without one
        raise ValueError(
            f"{op}: linear_bias must have {linear_weight - 1} dimensions beside linear_weight of "
            f"{linear_weight}, got {linear_bias}"
        )
    if weight != 1:
        raise ValueError(f"{op}: weight must have shape (num_classes,), got {weight} dimensions")


@constexpr
def check_matrix(op: str, linear_weight: int) -> None:
    if linear_weight != 2:
        raise ValueError(
            f"{op}: linear_weight must have shape (num_classes, in_features), got {linear_weight} dimensions"
        )


def check_shapes(op: str, hidden, linear_weight, linear_bias, target, weight) -> None:
    """Dimensions, as far as they are known."""
    if hidden is None or linear_weight is None:
        return
    if hidden[-1] != linear_weight[-1] or hidden[-1] == 0 or linear_weight[0] == 0:
        raise ValueError(
            f"{op}: linear_weight must have shape (num_classes, {hidden[-1]}) to match input {hidden}, "
            f"got {linear_weight}"
        )
    classes, several = linear_weight[0], linear_weight[1:-1]
    rows = hidden[:-1]
    if target is not None:
        with_classes = (*rows, classes) if not several else (*rows, classes, *several)
        expected = (*rows, *several) if len(target) < len(with_classes) else with_classes
        if target != expected:
            raise ValueError(
                f"{op}: target must have shape {expected} to match input {hidden} and linear_weight "
                f"{linear_weight}, got {target}"
            )
    if linear_bias is not None and linear_bias != linear_weight[:-1]:
        raise ValueError(
            f"{op}: linear_bias must have shape {linear_weight[:-1]} to match linear_weight, got {linear_bias}"
        )
    if weight is not None and weight != (classes,):
        raise ValueError(f"{op}: weight must have shape ({classes},), got {weight}")


@constexpr
def check_block(op: str, features: int, linear_weight, linear_bias) -> None:
    """A block of the weight's rows, and of the bias."""
    if features != linear_weight[1]:
        raise ValueError(
            f"{op}: linear_weight must have shape (C_local, {features}) to match input, got {linear_weight}"
        )
    if linear_bias is not None and tuple(linear_bias) != (linear_weight[0],):
        raise ValueError(
            f"{op}: linear_bias must have shape ({linear_weight[0]},) to match linear_weight, got {linear_bias}"
        )


@OfKnown
def rows_shape(input, linear_weight):
    """The shape of class indices, as far as it is known."""
    hidden, table = known_shape(input), known_shape(linear_weight)
    return None if hidden is None or table is None else (*hidden[:-1], *table[1:-1])


@of_known
def checked(plan, matrix, input, linear_weight, target, linear_bias, weight, row_weight):
    """The plan with the name of the backend that serves, after all checks; `matrix` is whether linear_weight must be
    one."""
    plan = resolved(plan)
    op = plan.op
    input = _checks.check_tensor(op, "input", input)
    linear_weight = _checks.check_tensor(op, "linear_weight", linear_weight)
    target = _checks.check_tensor(op, "target", target)
    bias_dtype, bias_rank, bias_shape = None, 0, None
    if linear_bias is not None:
        linear_bias = _checks.check_tensor(op, "linear_bias", linear_bias)
        bias_dtype, bias_rank = linear_bias.dtype, linear_bias.ndim
        bias_shape = known_shape(linear_bias)
    weight_dtype, weight_rank, weight_shape = None, 1, None
    if weight is not None:
        weight = _checks.check_tensor(op, "weight", weight)
        weight_dtype, weight_rank = weight.dtype, weight.ndim
        weight_shape = known_shape(weight)
    _checks.check_dtypes(op, "input", input.dtype, target.dtype, weight_dtype, True)
    check_dtypes(op, input.dtype, linear_weight.dtype, bias_dtype)
    check_ranks(
        op,
        input.ndim,
        linear_weight.ndim,
        bias_rank,
        target.dtype,
        target.ndim,
        weight_rank,
        plan.shift,
    )
    check_shapes(
        op,
        known_shape(input),
        known_shape(linear_weight),
        bias_shape,
        known_shape(target),
        weight_shape,
    )
    _checks.check_ignore_index(op, target.dtype, plan.options.ignore_index)
    if row_weight is not None:
        rank = input.ndim - 1 + linear_weight.ndim - 2
        _checks.check_row_weight(op, row_weight, rank, rows_shape(input, linear_weight))
    if matrix:
        check_matrix(op, linear_weight.ndim)
    return plan


@of_known
def checked_tokens(plan, input, linear_weight, target, linear_bias):
    """The same of a loss of class indices alone."""
    _checks.check_class_indices(named(plan).op, target)
    return checked(plan, True, input, linear_weight, target, linear_bias, None, None)


def check_layer(op: str, in_features, num_classes, bias) -> tuple[int, int]:
    """Shape of the Cell's weight."""
    sizes = [("in_features", in_features)]
    if not isinstance(num_classes, Parameter):
        sizes.append(("num_classes", num_classes))
    for name, size in sizes:
        if isinstance(size, bool) or not isinstance(size, Integral):
            kind = " or a Parameter" if name == "num_classes" else ""
            raise TypeError(
                f"{op}: {name} must be an int{kind}, got {size!r} of type {type(size).__name__}"
            )
        if size < 1:
            raise ValueError(f"{op}: {name} must be at least 1, got {size}")
    if not isinstance(bias, bool):
        raise TypeError(f"{op}: bias must be True or False, got {bias!r}")
    if not isinstance(num_classes, Parameter):
        return int(num_classes), int(in_features)
    if num_classes.ndim != 2 or num_classes.shape[1] != in_features:
        raise ValueError(
            f"{op}: the Parameter num_classes must have shape (num_classes, {in_features}), got "
            f"{num_classes.shape}"
        )
    return num_classes.shape
