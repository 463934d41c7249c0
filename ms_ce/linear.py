"""The loss of a language model without its logits: cross entropy of input·Wᵀ + b, a chunk of rows at a time."""

from __future__ import annotations

import math

from mindspore import Parameter, nn, ops
from mindspore import dtype as mstype
from mindspore.common.api import _pynative_executor
from mindspore.common.initializer import Uniform, initializer
from mindspore.ops import constexpr

from ms_ce import _checks, _linear_checks
from ms_ce.backend import choose, chosen
from ms_ce.functional import LossStats, cross_entropy_on, cross_entropy_with_stats
from ms_ce.ops import linear_cpu
from ms_ce.ops.graph import compiling


@constexpr
def _is_index(dtype) -> bool:
    return dtype in _checks.LABELS


@constexpr
def _exact(dtype):
    """The dtype to compute in."""
    return mstype.float64 if dtype == mstype.float64 else mstype.float32


@constexpr
def _may_scale_later(dtype) -> bool:
    """Whether gradients for an upstream 1 can be multiplied by the true one afterwards.

    Not in float16, whose gradients would be rounded before the loss scale that is meant to save them; and float64
    lacks the operator that keeps such gradients from being vectorised.
    """
    return dtype in (mstype.float32, mstype.bfloat16)


@constexpr
def _recording() -> bool:
    """Whether PyNative records for a gradient at this moment."""
    return _pynative_executor.grad_flag() and _pynative_executor.enable_grad()


def _gradient_wanted(gradient_in_forward, training, dtype):
    """Whether the forward pass makes the gradients too."""
    if not _may_scale_later(dtype):
        return False
    if gradient_in_forward != "auto":
        return gradient_in_forward
    if compiling():
        return training
    return _recording()


def _logits(input, linear_weight, target, linear_bias, weight, shift):
    """(logits, target, weight) of the plain form in float32 at least: for what the chunks do not cover, which is
    other backends and torch's K-dimensional weight."""
    exact = _exact(input.dtype)
    indices = _is_index(target.dtype)
    # Cast first: MindSpore's CPU slices no bfloat16.
    input = input.astype(exact)
    if not indices:
        target = target.astype(exact)
    if shift:
        input = input[..., :-1, :]
        target = target[..., 1:] if indices else target[..., 1:, :]
    features = input.shape[-1]
    if weight is not None:
        weight = weight.astype(exact)
    matrix = linear_weight.astype(exact).reshape((-1, features))
    logits = ops.matmul(input.reshape((-1, features)), matrix.T)
    if linear_bias is not None:
        logits = logits + linear_bias.astype(exact).reshape((-1,))
    if linear_weight.ndim > 2:
        return logits.reshape((-1, *linear_weight.shape[:-1])), target, weight
    target = target.reshape((-1,)) if indices else target.reshape((-1, linear_weight.shape[0]))
    return logits, target, weight


def _leading(input, shift):
    """Shape of the loss of each row."""
    if shift:
        return (*input.shape[:-2], input.shape[-2] - 1)
    return input.shape[:-1]


def _after_first(rows):
    """Rows stand at their target's position, and under shift no sequence's first one has a loss."""
    # MindSpore's CPU slices of bfloat16 have no gradient.
    return rows.astype(_exact(rows.dtype))[..., 1:].astype(rows.dtype)


def linear_cross_entropy_on(
    op,
    backend,
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    options,
    chunk_bytes,
    shift,
    gradient_in_forward,
):
    """`linear_cross_entropy` with everything already chosen, as a Cell holds it."""
    _linear_checks.check_tensors(
        op, input, linear_weight, target, linear_bias, weight, options.ignore_index, shift
    )
    if backend != "cpu" or linear_weight.ndim > 2:
        logits, labels, factors = _logits(input, linear_weight, target, linear_bias, weight, shift)
        loss = cross_entropy_on(op, backend, logits, labels, factors, options)
        if options.reduction == "none" and linear_weight.ndim == 2:
            loss = loss.reshape(_leading(input, shift))
        return loss.astype(input.dtype)
    target = ops.stop_gradient(target)
    if weight is not None:
        weight = ops.stop_gradient(weight)
    loss = linear_cpu.linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        options,
        chunk_bytes,
        shift,
        gradient_in_forward,
    )[0]
    if shift and options.reduction == "none":
        loss = _after_first(loss)
    return loss


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    *,
    z_loss=0.0,
    softcap=None,
    logit_scale=1.0,
    shift=False,
    chunk_bytes=None,
    gradient_in_forward="auto",
    backend="auto",
):
    r"""`cross_entropy(input @ linear_weight.T + linear_bias, target, …)` without the logits.

    A chunk of rows at a time is multiplied, turned into its loss and, where gradients are wanted, into the
    gradients of input, weight and bias, so that no more than `chunk_bytes` of logits exist at once. Rows whose
    target is `ignore_index` are left out before the product. Formula and options: `cross_entropy`.

    Gradients are those of input, linear_weight and linear_bias, once; target and weight are constants. Through
    backend 'composed', which does hold the logits, all arguments are differentiated, and twice.

    Args:
        input (Tensor): hidden states (…, in_features) of any leading shape; float16, bfloat16, float32 or float64.
        linear_weight (Tensor): (num_classes, in_features), input's dtype. torch's (num_classes, d1…dK,
            in_features) with input (N, in_features) is computed through the logits.
        target (Tensor): class indices int32, int64 or uint8 of input's leading shape, or probabilities of that
            shape and a last axis of num_classes, in input's dtype or float32.
        linear_bias (Tensor): (num_classes,), input's dtype. Default: none.
        weight (Tensor): a factor for each class, shape (num_classes,), input's dtype or float32. Default: 1 each.
        ignore_index (int): class index that does not count; None, as in torch, is -100. Default -100.
        reduction (str): 'none', 'mean' or 'sum'. Default 'mean'.
        label_smoothing (float): ε in [0, 1]. Default 0.

    Keyword Args:
        z_loss (float), softcap (float), logit_scale (float): as in `cross_entropy`.
        shift (bool): predict the next token: input of position s answers for target of position s + 1, along the
            last leading axis, without a copy. 'none' then gives one loss less for each sequence. Default False.
        chunk_bytes (int): what a chunk's logits may take, in float32 (float64 for float64). Default: a
            twenty-fifth of all logits, at least 8 MiB and at most 128 MiB.
        gradient_in_forward (bool): make the gradients in the forward pass, which saves one of four matrix
            products where they are wanted and wastes two where they are not. 'auto' sees whether PyNative records
            a gradient; inside a compiled graph that cannot be seen and 'auto' is False for this function (a
            `LinearCrossEntropyLoss` goes by its `training`). True allows one gradient of each loss: a second one
            of another size raises, and so do jacrev and vmap of the gradient. Without effect for 'none', for
            float16, whose gradients would be rounded before the loss scale, and for float64. Default 'auto'.
        backend (str): 'auto', or a name of `available_backends()`.

    Returns:
        Tensor of input's dtype: a scalar, or with 'none' of input's leading shape.

    Raises:
        TypeError, ValueError: as `cross_entropy`.
        NotImplementedError: for a second derivative on backend 'cpu'.

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
    if ignore_index is None:
        ignore_index = -100
    options = _checks.checked_options(
        op, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    chunk_bytes = _linear_checks.check_plan(op, chunk_bytes, shift, gradient_in_forward)
    return linear_cross_entropy_on(
        op,
        chosen(op, backend),
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        options,
        chunk_bytes,
        shift,
        _gradient_wanted(gradient_in_forward, False, input.dtype),
    )


def _stats_on_cpu(input, linear_weight, target, linear_bias, weight, options, chunk_bytes, shift):
    """(loss, total_weight, lse, z_loss, num_correct, entropy)."""
    target = ops.stop_gradient(target)
    if weight is not None:
        weight = ops.stop_gradient(weight)
    stats = linear_cpu.linear_cross_entropy_with_stats(
        input, linear_weight, target, linear_bias, weight, options, chunk_bytes, shift
    )
    loss, total_weight, lse, z_part, correct, entropy = stats
    if shift:
        lse = _after_first(lse)
    if shift and options.reduction == "none":
        loss, z_part, entropy = _after_first(loss), _after_first(z_part), _after_first(entropy)
    return loss, total_weight, lse, z_part, correct, entropy


def linear_cross_entropy_with_stats(
    input,
    linear_weight,
    target,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    *,
    z_loss=0.0,
    softcap=None,
    logit_scale=1.0,
    shift=False,
    chunk_bytes=None,
    backend="auto",
):
    """`linear_cross_entropy` with everything a trainer logs, from the same pass over the chunks.

    Arguments and errors are those of `linear_cross_entropy`, with a linear_weight of 2 dimensions.

    Returns:
        LossStats, as `cross_entropy_with_stats`; lse has input's leading shape.

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
    if ignore_index is None:
        ignore_index = -100
    options = _checks.checked_options(
        op, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale
    )
    chunk_bytes = _linear_checks.check_plan(op, chunk_bytes, shift, False)
    _linear_checks.check_tensors(
        op, input, linear_weight, target, linear_bias, weight, options.ignore_index, shift
    )
    _linear_checks.check_matrix(op, linear_weight.ndim)
    exact = _exact(input.dtype)
    backend = chosen(op, backend)
    if backend == "cpu":
        loss, total_weight, lse, z_part, correct, entropy = _stats_on_cpu(
            input, linear_weight, target, linear_bias, weight, options, chunk_bytes, shift
        )
    else:
        logits, labels, factors = _logits(input, linear_weight, target, linear_bias, weight, shift)
        loss, total_weight, lse, z_part, correct, entropy = cross_entropy_with_stats(
            logits,
            labels,
            factors,
            ignore_index,
            reduction,
            label_smoothing,
            backend=backend,
            z_loss=z_loss,
            softcap=softcap,
            logit_scale=logit_scale,
        )
        shape, dtype = _leading(input, shift), input.dtype
        lse, entropy = ops.stop_gradient(lse).reshape(shape), ops.stop_gradient(entropy)
        if reduction == "none":
            loss, z_part, entropy = (
                loss.reshape(shape),
                z_part.reshape(shape),
                entropy.reshape(shape),
            )
        loss, z_part, entropy = loss.astype(dtype), z_part.astype(dtype), entropy.astype(dtype)
    total_weight, lse = total_weight.astype(exact), lse.astype(exact)
    if compiling():  # a named tuple loses gradients there
        return loss, total_weight, lse, z_part, correct, entropy
    return LossStats(loss, total_weight, lse, z_part, correct, entropy)


class LinearCrossEntropyLoss(nn.Cell):
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
        gradient_in_forward (bool): as there; 'auto' goes by `training` inside a compiled graph, so call
            `set_train()` on the network to train it with three matrix products a step and not four.
        dtype (mindspore.dtype): of the parameters that the Cell makes. Default float32.

    Inputs:
        - **input** (Tensor): hidden states (…, in_features).
        - **target** (Tensor): class indices (…), or probabilities (…, num_classes).

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
        in_features,
        num_classes,
        bias=False,
        weight=None,
        ignore_index=-100,
        reduction="mean",
        label_smoothing=0.0,
        *,
        z_loss=0.0,
        softcap=None,
        logit_scale=1.0,
        shift=False,
        chunk_bytes=None,
        gradient_in_forward="auto",
        backend="auto",
        dtype=mstype.float32,
    ):
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
        self.op = op
        self.weight = weight
        self.options = _checks.make_options(
            op,
            -100 if ignore_index is None else ignore_index,
            reduction,
            label_smoothing,
            z_loss,
            softcap,
            logit_scale,
        )
        self.chunk_bytes = _linear_checks.check_plan(op, chunk_bytes, shift, gradient_in_forward)
        self.shift, self.gradient_in_forward = shift, gradient_in_forward
        self.backend = choose(op, backend)

    def construct(self, input, target):
        return linear_cross_entropy_on(
            self.op,
            self.backend,
            input,
            self.linear_weight,
            target,
            self.linear_bias,
            self.weight,
            self.options,
            self.chunk_bytes,
            self.shift,
            _gradient_wanted(self.gradient_in_forward, self.training, input.dtype),
        )

    def extend_repr(self):
        classes, features = self.linear_weight.shape
        return (
            f"in_features={features}, num_classes={classes}, bias={self.linear_bias is not None}, "
            f"shift={self.shift}, {self.options}, backend={self.backend!r}"
        )
