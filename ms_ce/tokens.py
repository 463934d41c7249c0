"""Log-probabilities of chosen tokens and entropies, of which preference and policy losses are a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mindspore import Tensor
from mindspore.ops import constexpr

from ms_ce import _checks, _linear, _linear_checks
from ms_ce.backend import resolved, serving
from ms_ce.functional import check_inputs
from ms_ce.ops.chunks import exact_dtype
from ms_ce.ops.graph import known_shape
from ms_ce.ops.linear.sweep import readable
from ms_ce.ops.options import Options, Plan, make_options
from ms_ce.ops.precision import of_known


@constexpr
def _plan(op: str, backend: str, *values: Any) -> Plan:
    """`values` are temperature, ignore_index, softcap and logit_scale."""
    return Plan(op, backend, make_options(op, *_linear_checks.tempered(op, *values)))


@constexpr
def _linear_plan(op: str, backend: str, values: tuple[Any, ...], *more: Any) -> Plan:
    """`values` as `_plan` takes them; `more` are chunk_bytes, shift and frozen."""
    return _linear_checks.make_plan(op, backend, _linear_checks.tempered(op, *values), *more)


def _check_ranks(op: str, logits: int, target: int) -> None:
    _checks.refuse_unknown_rank(op, logits=logits, target=target)
    if target != logits - 1:
        raise ValueError(
            f"{op}: target must have {logits - 1} dimensions, those of logits without the last axis, the classes; "
            f"got {target} beside {logits}"
        )


@of_known
def _check(op: str, logits: Tensor, target: Tensor) -> None:
    logits = _checks.check_tensor(op, "logits", logits)
    _checks.check_class_indices(op, target)
    _check_ranks(op, logits.ndim, target.ndim)
    _check_shapes(op, known_shape(logits), known_shape(target))


def checked_rows(
    op: str, logits: Tensor, target: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """(logits (N, C), target (N,)) of any leading shape, after all checks."""
    _check(op, logits, target)
    rows, labels = logits, target.reshape((-1,))
    if logits.ndim != 2:
        rows = readable(logits).reshape((-1, logits.shape[-1]))
    check_inputs(op, "logits", rows, labels, None, None, options, False)
    return rows, labels


def token_log_probs(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    ignore_index: int | None = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The log-probability of each token of `target`, and the entropy of the distribution that it was drawn from.

    With x = logits / temperature and p = softmax(x) along the last axis,

        log_prob = log p[target],    entropy = -Σ_c p_c·log p_c

    both 0 where target is `ignore_index`. A logit of -inf adds 0 to the entropy and to its gradient. Both are
    differentiable with respect to logits; target is a constant.

    Args:
        logits (Tensor): (…, num_classes); float16, bfloat16, float32 or float64.
        target (Tensor): class indices (…), int32, int64 or uint8, in [0, num_classes) or `ignore_index`.

    Keyword Args:
        temperature (float): divides the logits, above 0. Default 1.
        entropy (bool): whether entropies are returned too. Default False.
        ignore_index (int): class index that does not count. Default -100, also for None.
        softcap (float), logit_scale (float): as in `cross_entropy`; the temperature divides what they return.
        backend (str): 'auto', or a name of `available_backends()`.

    Returns:
        Tensor of target's shape, float32 (float64 for float64 logits); with `entropy` a tuple of two.

    Raises:
        TypeError, ValueError: as `cross_entropy`.
        NotImplementedError: for a second derivative on backend 'cpu'.

    Example:
        >>> import mindspore, ms_ce
        >>> logits = mindspore.Tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> log_prob, entropy = ms_ce.token_log_probs(logits, mindspore.Tensor([0, 2]), entropy=True)
        >>> print([f"{float(value):.4f}" for value in (*log_prob, *entropy)])
        ['-0.2395', '-1.0986', '0.6656', '1.0986']

    Source: Schulman et al. 2017 (PPO), whose bonus the entropy is; Rafailov et al. 2023 (DPO).
    """
    op = "token_log_probs"
    plan = resolved(_plan(op, backend, temperature, ignore_index, softcap, logit_scale))
    entropy = _checks.check_flag(op, "entropy", entropy)
    rows, labels = checked_rows(op, logits, target, plan.options)
    shape, exact = target.shape, exact_dtype(logits.dtype)
    kernels = serving(op, plan.backend)
    log_prob, entropies = kernels.token_log_probs(rows, labels, plan.options, entropy)
    if logits.ndim != 2:
        log_prob, entropies = log_prob.reshape(shape), entropies.reshape(shape)
    if not entropy:
        return log_prob.astype(exact)
    return log_prob.astype(exact), entropies.astype(exact)


def _check_shapes(op: str, logits: tuple[int, ...] | None, target: tuple[int, ...] | None) -> None:
    if logits is not None and target is not None and target != logits[:-1]:
        raise ValueError(
            f"{op}: target must have shape {logits[:-1]} to match logits {logits}, got {target}"
        )


def linear_token_log_probs(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    ignore_index: int | None = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    shift: bool = False,
    chunk_bytes: int | None = None,
    frozen: Sequence[str] = (),
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""`token_log_probs(input @ linear_weight.T + linear_bias, target, …)` without the logits.

    A chunk of rows at a time: the forward pass makes its logits once, the backward pass again. Gradients are those of
    input, linear_weight and linear_bias, once. Rows whose target is `ignore_index` are left out before the product.

    Args:
        input (Tensor): hidden states (…, in_features); float16, bfloat16, float32 or float64.
        linear_weight (Tensor): (num_classes, in_features), input's dtype, or float32 beside an input of 16 bits.
        target (Tensor): class indices int32, int64 or uint8 of input's leading shape.
        linear_bias (Tensor): (num_classes,), as linear_weight. Default: none.

    Keyword Args:
        temperature (float), entropy (bool), ignore_index (int), softcap (float), logit_scale (float): as in
            `token_log_probs`.
        shift (bool), chunk_bytes (int), frozen (tuple of str), backend (str): as in `linear_cross_entropy`.

    Returns:
        Tensor of input's leading shape, less one position of each sequence under `shift`; float32 (float64 for float64
        input). With `entropy` a tuple of two.

    Raises:
        TypeError, ValueError: as `linear_cross_entropy`.
        NotImplementedError: for a second derivative on backend 'cpu', or in several chunks.

    Example:
        >>> import mindspore, ms_ce
        >>> hidden = mindspore.Tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> linear_weight = mindspore.Tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> log_prob = ms_ce.linear_token_log_probs(hidden, linear_weight, mindspore.Tensor([0, 0]))
        >>> print([f"{float(value):.4f}" for value in log_prob])
        ['-0.1269', '-2.1269']

    Source: as `token_log_probs`; chunks: as `linear_cross_entropy`.
    """
    op = "linear_token_log_probs"
    more = (chunk_bytes, shift, frozen)
    values = (temperature, ignore_index, softcap, logit_scale)
    plan = _linear_plan(op, backend, values, *more)
    entropy = _checks.check_flag(op, "entropy", entropy)
    tensors = (input, linear_weight, target, linear_bias)
    log_prob, entropies = _linear.token_log_probs_on(plan, entropy, *tensors)
    if not entropy:
        return log_prob
    return log_prob, entropies
