"""Distillation without logits: divergences between a student's and a teacher's distributions, from hidden states."""

from __future__ import annotations

import math
from typing import Any

from mindspore import Tensor
from mindspore.ops import constexpr

from ms_ce import _checks, _divisor, _linear, _linear_checks
from ms_ce.backend import distillation_form, resolved
from ms_ce.functional import constant
from ms_ce.ops import mean, precision
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.derivative import without_gradient
from ms_ce.ops.graph import OfKnown, known_shape
from ms_ce.ops.options import Plan
from ms_ce.ops.precision import of_known


@constexpr
def planned(op: str, backend: str, values: tuple[Any, ...], reduction: str, *more: Any) -> Plan:
    """`values` are temperature, softcap and logit_scale; `more` chunk_bytes, shift, frozen and gradient_in_forward."""
    temperature, softcap, logit_scale = values
    tempered = _linear_checks.tempered(op, temperature, None, softcap, logit_scale)
    return _linear_checks.make_plan(op, backend, (tempered[0], reduction, *tempered[2:]), *more)


@constexpr
def checked_beta(op: str, beta: float) -> float:
    if isinstance(beta, bool) or not isinstance(beta, (int, float)):
        raise TypeError(f"{op}: beta must be a float, got {beta!r} of type {type(beta).__name__}")
    if not 0.0 <= beta <= 1.0:
        raise ValueError(
            f"{op}: beta must be in [0, 1], 0 for forward and 1 for reverse KL, got {beta}"
        )
    return float(beta)


def _check_model(op: str, model: str, dtypes, ranks, shapes) -> None:
    """Of hidden states, weight and bias; None for the bias that is not there, and for shapes that are not known."""
    parts = ("hidden", "weight", "bias")
    for part, dtype in zip(parts, dtypes, strict=True):
        if dtype is not None and dtype not in _checks.FLOATS:
            raise TypeError(
                f"{op}: {model}_{part} must have dtype float16, bfloat16, float32 or float64, got "
                f"{str(dtype).lower()}"
            )
    given = [
        (part, rank)
        for part, dtype, rank in zip(parts, dtypes, ranks, strict=True)
        if dtype is not None
    ]
    _checks.refuse_unknown_rank(op, **{f"{model}_{part}": rank for part, rank in given})
    for part, rank, least in zip(parts, ranks, (1, 2, 1), strict=True):
        form = ("(…, in_features)", "(num_classes, in_features)", "(num_classes,)")[least - 1]
        form = "(…, in_features)" if part == "hidden" else form
        form = "(num_classes,)" if part == "bias" else form
        if rank is not None and (rank < least or (part != "hidden" and rank != least)):
            raise ValueError(f"{op}: {model}_{part} must have shape {form}, got {rank} dimensions")
    hidden, weight, bias = shapes
    if hidden is not None and weight is not None and hidden[-1] != weight[1]:
        raise ValueError(
            f"{op}: {model}_weight must have shape (num_classes, {hidden[-1]}) to match {model}_hidden {hidden}, "
            f"got {weight}"
        )
    if weight is not None and bias is not None and bias != weight[:1]:
        raise ValueError(
            f"{op}: {model}_bias must have shape {weight[:1]} to match {model}_weight {weight}, got {bias}"
        )


def _check_both(op: str, student_hidden, student_weight, teacher_hidden, teacher_weight) -> None:
    """Shapes, as far as they are known."""
    if None in (student_hidden, student_weight, teacher_hidden, teacher_weight):
        return
    if teacher_hidden[:-1] != student_hidden[:-1]:
        raise ValueError(
            f"{op}: teacher_hidden must have shape {(*student_hidden[:-1], teacher_hidden[-1])} to match "
            f"student_hidden {student_hidden}, got {teacher_hidden}"
        )
    if teacher_weight[0] != student_weight[0]:
        raise ValueError(
            f"{op}: teacher_weight must have {student_weight[0]} rows, the classes of student_weight "
            f"{student_weight}, got {teacher_weight}; both models need one vocabulary"
        )


@of_known
def checked_model(op: str, model: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Everything that can be known of hidden states, weight and bias of 'student' or 'teacher'."""
    hidden = _checks.check_tensor(op, model + "_hidden", hidden)
    weight = _checks.check_tensor(op, model + "_weight", weight)
    of_bias = (None, None, None)
    if bias is not None:
        bias = _checks.check_tensor(op, model + "_bias", bias)
        of_bias = (bias.dtype, bias.ndim, known_shape(bias))
    dtypes = (hidden.dtype, weight.dtype, of_bias[0])
    shapes = (known_shape(hidden), known_shape(weight), of_bias[2])
    _check_model(op, model, dtypes, (hidden.ndim, weight.ndim, of_bias[1]), shapes)


@of_known
def check_models(
    op: str,
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    row_weight: Tensor | None,
    parts: int = 1,
) -> None:
    """Everything that can be known of hidden states, weight and bias of both and of the rows' weights; hidden states
    are one of so many parts of them along the first axis."""
    checked_model(op, "student", student_hidden, student_weight, student_bias)
    checked_model(op, "teacher", teacher_hidden, teacher_weight, teacher_bias)
    given = (student_hidden, student_weight, teacher_hidden, teacher_weight)
    _check_both(op, *[known_shape(each) for each in given])
    if row_weight is not None:
        rank = student_hidden.ndim - 1
        _checks.check_row_weight(op, row_weight, rank, known_lead(student_hidden, parts))


@OfKnown
def known_lead(hidden: Tensor, parts: int = 1) -> tuple[int, ...] | None:
    """The shape of all rows, where it is known; hidden states are one of so many parts of them along the first axis."""
    shape = known_shape(hidden)
    if shape is None or parts == 1:
        return None if shape is None else shape[:-1]
    return (shape[0] * parts, *shape[1:-1])


@constexpr
def check_parts(op: str, rank: int, parts: int) -> None:
    if parts > 1 and rank < 2:
        raise ValueError(
            f"{op}: student_hidden must have a first axis, of which each rank holds a block, got {rank} dimensions"
        )


@OfKnown
def _known_rows(hidden: Tensor) -> float | None:
    """Their number, where it is known."""
    lead = known_lead(hidden)
    return None if lead is None else float(math.prod(lead))


def _divisor_of(op, total_weight, hidden, row_weight):
    """The mean's: a float where it is known, and not 0, else a scalar tensor."""
    if total_weight is not None:
        return _divisor.divisor_of(op, "mean", total_weight)
    rows = _known_rows(hidden)
    if row_weight is None and rows:
        return rows
    row_weight = constant(row_weight)
    return mean.total_weight(hidden, 0, None, row_weight, None, exact_dtype(hidden.dtype))


def linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    *,
    beta: float = 0.0,
    temperature: float = 1.0,
    temperature_squared: bool = True,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    total_weight: float | Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_bytes: int | None = None,
    gradient_in_forward: bool | str = "auto",
    backend: str = "auto",
) -> Tensor:
    r"""The divergence between a teacher's and a student's next-token distributions, without the logits of either.

    With p = softmax(teacher logits / temperature), q = softmax(student logits / temperature), and
    m = beta·p + (1 - beta)·q, the loss of a row is temperature² times

        beta = 0          KL(p‖q) = Σ_c p_c·log(p_c / q_c)            forward KL: q covers p
        0 < beta < 1      beta·KL(p‖m) + (1 - beta)·KL(q‖m)           generalised Jensen-Shannon divergence
        beta = 1          KL(q‖p) = Σ_c q_c·log(q_c / p_c)            reverse KL: q seeks a mode of p

    This is the beta of GKD (Agarwal et al. 2024), TRL and Liger: it weighs the teacher, ½ is the symmetric divergence,
    and the two ends are the KL divergences that the middle tends to once it is divided by beta or 1 - beta. A class
    without probability adds nothing where the formula multiplies by that probability.

    A chunk of rows at a time has the logits of both models. Gradients are those of student_hidden, student_weight and
    student_bias, once; everything of the teacher is a constant. Rows of weight 0 are left out before the products.

    Args:
        student_hidden (Tensor): (…, student_features), float16, bfloat16, float32 or float64, as everything below.
            Computed in float32, in float64 for float64.
        student_weight (Tensor): (num_classes, student_features).
        teacher_hidden (Tensor): (…, teacher_features), of the same leading shape.
        teacher_weight (Tensor): (num_classes, teacher_features).
        student_bias, teacher_bias (Tensor): (num_classes,). Default: none.

    Keyword Args:
        beta (float): in [0, 1], as above. Default 0.
        temperature (float): divides the logits of both, above 0. Default 1.
        temperature_squared (bool): whether losses are multiplied by temperature², so that gradients keep their size as
            it grows (Hinton et al. 2015). Default True.
        reduction (str): 'none', 'mean' (divides by the number of rows, or Σ row_weight) or 'sum'. Default 'mean'.
        row_weight (Tensor): a factor for each row, of student_hidden's leading shape, any float dtype, a constant. A
            row of weight 0 is left out, whatever it holds: a mask of the tokens that count. Default: 1 each.
        total_weight (number, Tensor): the mean's divisor from outside, as in `cross_entropy`.
        softcap (float), logit_scale (float): of both models, as in `cross_entropy`; the temperature divides what they
            return.
        chunk_bytes (int): what the logits of a chunk may take, of each model. Default: on `cpu` as in
            `linear_cross_entropy`; elsewhere such that all arrays of a chunk take a twenty-fourth of both models'
            logits, and at least 1 MiB each, and arrays of the table's size come on top (docs/tokens.md).
        gradient_in_forward (bool): as in `linear_cross_entropy`. It saves making the logits of both models again.
        backend (str): 'auto', or a name of `available_backends()`.

    Returns:
        Tensor of student_hidden's dtype: a scalar, or with 'none' of its leading shape.

    Raises:
        TypeError, ValueError: as `linear_cross_entropy`.
        NotImplementedError: for a second derivative.

    Example:
        >>> import mindspore, ms_ce
        >>> student, teacher = mindspore.Tensor([[1.0, 0.0]]), mindspore.Tensor([[2.0, 0.0]])
        >>> table = mindspore.Tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> for beta in (0.0, 0.5, 1.0):
        ...     loss = ms_ce.linear_distillation_loss(student, table, teacher, table, beta=beta)
        ...     print(f"{float(loss):.4f}")
        0.0671
        0.0183
        0.0826

    Source: Hinton et al. 2015; Agarwal et al. 2024 (GKD); Hsu et al. 2024 (Liger Kernel).
    """
    op = "linear_distillation_loss"
    values, more = (
        (temperature, softcap, logit_scale),
        (chunk_bytes, False, (), gradient_in_forward),
    )
    plan = resolved(planned(op, backend, values, reduction, *more))
    beta = checked_beta(op, beta)
    temperature_squared = _checks.check_flag(op, "temperature_squared", temperature_squared)
    student = (student_hidden, student_weight, student_bias)
    teacher = (teacher_hidden, teacher_weight, teacher_bias)
    check_models(op, *student, *teacher, row_weight)
    factor = temperature * temperature if temperature_squared else 1.0
    row_weight, divisor = shares(op, reduction, factor, student_hidden, row_weight, total_weight)
    plan = summed(plan)
    student_hidden = precision.begin(student_hidden)
    form = distillation_form(plan.backend)
    student = (student_hidden, student_weight, student_bias)
    later = form.may_scale_later(student_hidden.dtype)
    wanted = _linear.gradients(plan.gradient_in_forward, later, False, (), *student)
    teacher, row_weight = constant_model(teacher), constant(row_weight)
    loss = form.distillation(plan, wanted, beta, student, teacher, row_weight)
    loss = finished(loss, student_hidden.dtype, divisor)
    precision.end()
    return loss


def shares(
    op: str,
    reduction: str,
    factor: float,
    hidden: Tensor,
    row_weight: Tensor | None,
    total_weight: float | Tensor | None,
) -> tuple[Tensor | None, float | Tensor | None]:
    """(the rows' weights for a sum, a mean's divisor)."""
    divisor, rows = None, (known_lead(hidden), hidden, -1)
    if reduction == "mean":
        divisor = _divisor_of(op, total_weight, hidden, row_weight)
        row_weight = _divisor.shared_out(divisor / factor, row_weight, *rows)
    elif total_weight is not None:
        _checks.check_divides(op, reduction)
    elif factor != 1.0 or row_weight is not None:
        row_weight = _divisor.shared_out(1.0 / factor, row_weight, *rows)
    return row_weight, divisor


def summed(plan: Plan) -> Plan:
    """With 'sum' for a mean, of which the rows have their shares."""
    return plan if plan.options.reduction == "none" else _divisor.of_sum(plan)


def finished(loss: Tensor, dtype: Any, divisor: Any) -> Tensor:
    """In the dtype of the public result."""
    loss = loss.astype(dtype)
    return loss if divisor is None else _divisor.quotient(loss, divisor)


def constant_model(teacher: tuple) -> tuple:
    """A teacher's tensors without a gradient."""
    hidden, matrix, bias = teacher
    if bias is not None:
        bias = without_gradient(bias)
    return without_gradient(hidden), without_gradient(matrix), bias


def constant_rows(row_weight: Tensor | None) -> Tensor | None:
    return None if row_weight is None else without_gradient(row_weight).reshape((-1,))
