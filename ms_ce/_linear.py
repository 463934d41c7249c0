"""The linear loss below its public functions: everything is chosen, the tensors are checked, one form computes it."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops import constexpr
from mindspore.ops import operations as P

from ms_ce import _checks, _linear_checks
from ms_ce.backend import chosen
from ms_ce.functional import cross_entropy_on, cross_entropy_with_stats
from ms_ce.ops import linear_chunked, linear_cpu, linear_sweep
from ms_ce.ops.graph import (
    compiling,
    is_class_index,
    may_need_gradient,
    recording,
    without_gradient,
)
from ms_ce.ops.options import Gradients, Plan

exact_dtype = linear_sweep.exact_dtype
# vmap puts the results of ops.matmul on a wrong axis where its first argument is not mapped on axis 0.
_product = P.MatMul(transpose_b=True)


@constexpr
def _may_scale_later(backend, dtype) -> bool:
    """Whether gradients for an upstream 1 can be multiplied by the true one afterwards.

    The kernel of backend 'cpu' keeps them in the inputs' dtype: not in float16, where they would be rounded before the
    loss scale that is meant to save them.
    """
    return backend != "cpu" or dtype != mstype.float16


@constexpr
def _chosen(in_forward, frozen, input, linear_weight, linear_bias):
    wanted = (
        input and "input" not in frozen,
        linear_weight and "linear_weight" not in frozen,
        linear_bias and "linear_bias" not in frozen,
    )
    return Gradients(in_forward and any(wanted), *wanted)


def gradients(plan, backend, training, frozen, input, linear_weight, linear_bias) -> Gradients:
    """Which gradients to make and where; `frozen` names what is known not to need one."""
    in_forward = plan.gradient_in_forward
    if not _may_scale_later(backend, input.dtype):
        in_forward = False
    elif in_forward == "auto":
        in_forward = training if compiling() else recording()
    return _chosen(
        in_forward,
        frozen,
        may_need_gradient(input),
        may_need_gradient(linear_weight),
        linear_bias is None or may_need_gradient(linear_bias),
    )


def constants(frozen, input, linear_weight, linear_bias):
    """(input, linear_weight, linear_bias), those named in `frozen` without a gradient."""
    if "input" in frozen:
        input = ops.stop_gradient(input)
    if "linear_weight" in frozen:
        linear_weight = ops.stop_gradient(linear_weight)
    if "linear_bias" in frozen and linear_bias is not None:
        linear_bias = ops.stop_gradient(linear_bias)
    return input, linear_weight, linear_bias


def _constant_data(backend, matrix, target, weight):
    """Target and class weight without a gradient. The kernel's operators return none for them, and a Cell that stops
    one could not be differentiated in a function that holds the tensor of its caller."""
    if backend == "cpu" and matrix:
        return target, weight
    return without_gradient(target), None if weight is None else without_gradient(weight)


def _in_one_dtype(input, linear_weight, target, linear_bias, weight):
    """Everything in float32 where hidden states of 16 bits meet parameters of float32: the parameters are not rounded
    and get gradients of their own dtype."""
    bias_dtype = None if linear_bias is None else linear_bias.dtype
    if not _linear_checks.is_mixed(input.dtype, linear_weight.dtype, bias_dtype):
        return input, linear_weight, target, linear_bias, weight
    input, linear_weight = input.astype(mstype.float32), linear_weight.astype(mstype.float32)
    if not is_class_index(target.dtype):
        target = target.astype(mstype.float32)
    if linear_bias is not None:
        linear_bias = linear_bias.astype(mstype.float32)
    if weight is not None:
        weight = weight.astype(mstype.float32)
    return input, linear_weight, target, linear_bias, weight


def _logits(shift, input, linear_weight, target, linear_bias, weight):
    """(logits, target, weight) of the plain form, in float32 at least."""
    exact = exact_dtype(input.dtype)
    indices = is_class_index(target.dtype)
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
    logits = _product(input.reshape((-1, features)), matrix)
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
    return rows.astype(exact_dtype(rows.dtype))[..., 1:].astype(rows.dtype)


@constexpr
def _known_rows(shape):
    if shape is None:
        return None
    count = 1
    for size in shape[:-1]:
        count *= size
    return count


@constexpr
def _several_chunks(dtype, shape, weight_shape, chunk_bytes):
    """Whether one chunk does not hold everything; where it does the plain form serves."""
    rows = _known_rows(shape)
    return (
        rows is None or linear_sweep.rows_of_chunk(dtype, rows, *weight_shape, chunk_bytes) < rows
    )


def _in_chunks(input, linear_weight, chunk_bytes):
    shape = _checks.known_shape(input)
    return _several_chunks(input.dtype, shape, linear_weight.shape, chunk_bytes)


def _as_rows(input, target, shift, ignore_index):
    """(hidden (N, H), target (N,) or (N, C)) of the chunked form.

    Under shift, hidden states are left where they are: each sequence's last one gets a target that is ignored. With
    probabilities there is none, and both are copied.
    """
    features, input = input.shape[-1], linear_sweep.readable(input)
    if is_class_index(target.dtype):
        if shift:
            target = target.astype(mstype.int64)
            last = ops.full_like(target[..., :1], ignore_index)
            target = ops.concat((target[..., 1:], last), -1)
        return input.reshape((-1, features)), target.reshape((-1,))
    target = linear_sweep.readable(target)
    if shift:
        input, target = input[..., :-1, :], target[..., 1:, :]
    return input.reshape((-1, features)), target.reshape((-1, target.shape[-1]))


def _before_last(rows, input, shift, indices):
    """Losses (N,) of `_as_rows` in the leading shape of the result."""
    if not shift or not indices:
        return rows.reshape(_leading(input, shift))
    return rows.reshape(input.shape[:-1])[..., :-1]


def _chunked(plan, backend, gradients, input, linear_weight, target, linear_bias, weight):
    options, shift = plan.options, plan.shift
    indices = is_class_index(target.dtype)
    if indices and backend == "composed" and not compiling():
        linear_chunked.check_targets(target, linear_weight.shape[0], options.ignore_index, shift)
    hidden, labels = _as_rows(input, target, shift, options.ignore_index)
    tensors = (hidden, linear_weight, labels, linear_bias, weight)
    loss = linear_chunked.linear_cross_entropy(plan, backend, gradients, *tensors)
    if options.reduction == "none":
        loss = _before_last(loss, input, shift, indices)
    return loss.astype(input.dtype)


def _prepared(plan, backend, input, linear_weight, target, linear_bias, weight):
    """The tensors of a call, checked; constants without a gradient, and all in one dtype."""
    _linear_checks.check_tensors(
        plan.op,
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        plan.options.ignore_index,
        plan.shift,
    )
    target, weight = _constant_data(backend, linear_weight.ndim == 2, target, weight)
    return _in_one_dtype(input, linear_weight, target, linear_bias, weight)


def linear_cross_entropy_on(
    plan, training, frozen, input, linear_weight, target, linear_bias, weight
):
    """`linear_cross_entropy` as a plan says; `frozen` names what needs no gradient, constants and more."""
    input, linear_weight, linear_bias = constants(plan.frozen, input, linear_weight, linear_bias)
    backend = chosen(plan.op, plan.backend)
    wanted = gradients(plan, backend, training, frozen, input, linear_weight, linear_bias)
    return linear_loss(plan, backend, wanted, input, linear_weight, target, linear_bias, weight)


def linear_loss(plan, backend, gradients, input, linear_weight, target, linear_bias, weight):
    """The loss, with everything chosen."""
    options, dtype = plan.options, input.dtype
    tensors = _prepared(plan, backend, input, linear_weight, target, linear_bias, weight)
    if backend == "cpu" and linear_weight.ndim == 2:
        loss = linear_cpu.linear_cross_entropy(plan, gradients, *tensors)[0]
        if plan.shift and options.reduction == "none":
            loss = _after_first(loss)
        return loss.astype(dtype)
    if linear_weight.ndim == 2 and _in_chunks(tensors[0], tensors[1], plan.chunk_bytes):
        return _chunked(plan, backend, gradients, *tensors).astype(dtype)
    logits, labels, factors = _logits(plan.shift, *tensors)
    plain = Plan(plan.op, backend, options)
    loss = cross_entropy_on(plain, False, logits, labels, factors)
    if options.reduction == "none" and linear_weight.ndim == 2:
        loss = loss.reshape(_leading(input, plan.shift))
    return loss.astype(dtype)


def _stats_on_cpu(plan, gradients, *tensors):
    shift, options = plan.shift, plan.options
    stats = linear_cpu.linear_cross_entropy_with_stats(plan, gradients, *tensors)
    loss, total_weight, lse, z_part, correct, entropy = stats
    if shift:
        lse = _after_first(lse)
    if shift and options.reduction == "none":
        loss, z_part, entropy = _after_first(loss), _after_first(z_part), _after_first(entropy)
    return loss, total_weight, lse, z_part, correct, entropy


def _plain_stats(plan, backend, input, linear_weight, target, linear_bias, weight):
    options, shift = plan.options, plan.shift
    logits, labels, factors = _logits(shift, input, linear_weight, target, linear_bias, weight)
    loss, total_weight, lse, z_part, correct, entropy = cross_entropy_with_stats(
        logits,
        labels,
        factors,
        options.ignore_index,
        options.reduction,
        options.label_smoothing,
        backend=backend,
        z_loss=options.z_loss,
        softcap=options.softcap if options.softcap else None,
        logit_scale=options.logit_scale,
    )
    shape = _leading(input, shift)
    lse, entropy = without_gradient(lse).reshape(shape), without_gradient(entropy)
    if options.reduction == "none":
        loss, z_part, entropy = loss.reshape(shape), z_part.reshape(shape), entropy.reshape(shape)
    return loss, total_weight, lse, z_part, correct, entropy


def _chunked_stats(plan, backend, gradients, input, linear_weight, target, linear_bias, weight):
    options, shift = plan.options, plan.shift
    indices = is_class_index(target.dtype)
    if indices and backend == "composed" and not compiling():
        linear_chunked.check_targets(target, linear_weight.shape[0], options.ignore_index, shift)
    hidden, labels = _as_rows(input, target, shift, options.ignore_index)
    tensors = (hidden, linear_weight, labels, linear_bias, weight)
    stats = linear_chunked.linear_cross_entropy_with_stats(plan, backend, gradients, *tensors)
    loss, total_weight, lse, z_part, correct, entropy = stats
    lse = _before_last(lse, input, shift, indices)
    if options.reduction == "none":
        loss = _before_last(loss, input, shift, indices)
        z_part = _before_last(z_part, input, shift, indices)
        entropy = _before_last(entropy, input, shift, indices)
    return loss, total_weight, lse, z_part, correct, entropy


def linear_cross_entropy_with_stats_on(plan, input, linear_weight, target, linear_bias, weight):
    """(loss, total_weight, lse, z_loss, num_correct, entropy) as a plan says."""
    input, linear_weight, linear_bias = constants(plan.frozen, input, linear_weight, linear_bias)
    backend = chosen(plan.op, plan.backend)
    wanted = gradients(plan, backend, False, plan.frozen, input, linear_weight, linear_bias)
    dtype, exact = input.dtype, exact_dtype(input.dtype)
    tensors = _prepared(plan, backend, input, linear_weight, target, linear_bias, weight)
    _linear_checks.check_matrix(plan.op, linear_weight.ndim)
    if backend == "cpu":
        stats = _stats_on_cpu(plan, wanted, *tensors)
    elif _in_chunks(tensors[0], tensors[1], plan.chunk_bytes):
        stats = _chunked_stats(plan, backend, wanted, *tensors)
    else:
        stats = _plain_stats(plan, backend, *tensors)
    loss, total_weight, lse, z_part, correct, entropy = stats
    loss, z_part, entropy = loss.astype(dtype), z_part.astype(dtype), entropy.astype(dtype)
    return loss, total_weight.astype(exact), lse.astype(exact), z_part, correct, entropy
