"""In PyNative a loss of the `composed` backend is one autograd function, whose gradients are written out here.

Piece by piece MindSpore would ask every primitive for the gradients of all its inputs. What is differentiated again is
differentiated piece by piece all the same: the pieces have derivatives of every order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mindspore import Tensor, ops
from mindspore import dtype as mstype

from ms_ce.ops import eager
from ms_ce.ops.eager import wanted
from ms_ce.ops.graph import is_class_index, select
from ms_ce.ops.mean import per_weight
from ms_ce.ops.options import Options
from ms_ce.ops.pieces import (
    by_class,
    class_sum,
    class_totals,
    included,
    number,
    ones_like,
    pick,
    place,
    rest,
    weight_of,
    weight_totals,
)
from ms_ce.ops.row_weights import without_rows

_gradients = ops.GradOperation(get_all=True, sens_param=True)


def call(formula: Callable, gradients: Callable, inputs: Sequence[Any], options: Options) -> Any:
    """The tensors formula(*inputs, options), whose gradients are gradients(*inputs, outputs, upstreams, options)."""

    def run(*given):
        return formula(*given, options)

    def bprop(*given_and_results):
        *given, outputs, upstreams = given_and_results
        if eager.recording():
            return _piece_by_piece(run, given, upstreams)
        return gradients(*given, outputs, upstreams, options)

    return eager.call(run, eager.Derivative(bprop), inputs)


def _piece_by_piece(run: Callable, given: Sequence[Any], upstreams: Any) -> list[Tensor | None]:
    """Gradients that can be differentiated."""
    asked = [i for i in range(len(given)) if wanted(i)]
    arriving = [i for i, each in enumerate(upstreams.given) if each is not None]

    def chosen(*values):
        inputs = list(given)
        for i, value in zip(asked, values, strict=True):
            inputs[i] = value
        outputs = run(*inputs)
        return tuple(outputs[i] for i in arriving)

    sens = tuple(upstreams.given[i] for i in arriving)
    made = _gradients(chosen)(*(given[i] for i in asked), sens)
    result: list[Tensor | None] = [None] * len(given)
    for i, gradient in zip(asked, made, strict=True):
        result[i] = gradient
    return result


def _at_rows(upstream, total_weight, rows, options):
    """What arrives at each of the rows when `upstream` arrives at their loss."""
    if options.reduction == "mean":
        upstream = per_weight(upstream, total_weight)
    return upstream * ones_like(rows)


def _counted(target, options):
    """(class index, 0 in rows that do not count; which rows count). One out of range has raised."""
    wide = target.astype(mstype.int64)
    keep = wide != options.ignore_index
    return select(keep, wide, 0).astype(mstype.int32), keep


def _through_divisor(of_losses, weight, row_weight, index, keep, outputs, upstreams, options):
    """The weight's gradient through outputs[1] = Σ row_weight·weight[target], by which outputs[of_losses] divide."""
    arriving = upstreams[1]
    if options.reduction == "mean":
        for i in of_losses:
            arriving = arriving - per_weight(upstreams[i] * outputs[i], outputs[1])
    counted = keep.astype(weight.dtype)
    if row_weight is not None:
        counted = counted * row_weight
    return arriving * weight_totals(counted, index, weight)


def cross_entropy(x, target, weight, row_weight, outputs, upstreams, options):
    """Of logits, targets and weights; outputs are (loss, total_weight, lse, log p, 0 or nan for each row), and with
    statistics the z-loss and what has no gradient."""
    total_weight, lse, log_prob, spoiled = outputs[1:5]
    at_loss = _at_rows(upstreams[0], total_weight, lse, options)
    at_square, of_losses = at_loss, [0]
    if len(outputs) > 5:
        at_square = at_loss + _at_rows(upstreams[5], total_weight, lse, options)
        of_losses.append(5)
    if row_weight is not None:
        at_loss, at_square = at_loss * row_weight, at_square * row_weight
        x, target = without_rows(x, target, row_weight, options.ignore_index)
    at_lse = spoiled + upstreams[2]
    if options.z_loss != 0.0:
        at_lse = at_lse + 2.0 * number(options.z_loss, x.dtype) * lse * at_square
    if not is_class_index(target.dtype):
        return *_of_probabilities(x, target, weight, log_prob, at_loss, at_lse, options), None
    index, keep = _counted(target, options)
    at_loss, at_lse = select(keep, at_loss, 0.0), select(keep, at_lse, 0.0)
    gradient, grad_weight = _of_class_indices(
        x, index, keep, weight, log_prob, at_loss, at_lse, options
    )
    if grad_weight is not None:
        grad_weight = grad_weight + _through_divisor(
            of_losses, weight, row_weight, index, keep, outputs, upstreams, options
        )
    return gradient, None, grad_weight, None


def _of_class_indices(x, index, keep, weight, log_prob, at_loss, at_lse, options):
    """(gradient of x, gradient of the weight but for the divisor)."""
    factor = at_loss * rest(options.label_smoothing, x.dtype)
    share = at_loss * (number(options.label_smoothing, x.dtype) / x.shape[1])
    at_target, mass, smooth = factor, x.shape[1], 1.0
    if weight is not None:
        at_target, mass = factor * weight_of(weight, index), weight.sum()
        smooth = by_class(ones_like(log_prob), weight)
    gradient = grad_weight = None
    if wanted(0):
        slope = at_lse + at_target
        if options.label_smoothing != 0.0:
            slope = slope + share * mass
        gradient = ops.exp(log_prob) * slope.expand_dims(1) - place(at_target, index, x)
        if options.label_smoothing != 0.0:
            gradient = gradient - share.expand_dims(1) * smooth
            if weight is not None:  # one that is nan belongs to rows that count
                gradient = select(keep.expand_dims(1), gradient, 0.0)
        gradient = _of_raw_logits(gradient, x, keep, options)
    if weight is not None and wanted(2):
        chosen = included(pick(log_prob, index), weight_of(weight, index))
        grad_weight = -weight_totals(factor * chosen, index, weight)
        if options.label_smoothing != 0.0:
            spread = share.expand_dims(1) * included(log_prob, smooth)
            grad_weight = grad_weight - class_totals(spread)
    return gradient, grad_weight


def _of_probabilities(x, target, weight, log_prob, at_loss, at_lse, options):
    """(gradient of x, of the target, of the weight)."""
    kept, classes = rest(options.label_smoothing, x.dtype), x.shape[1]
    smoothed = target
    if options.label_smoothing != 0.0:
        smoothed = target * kept + number(options.label_smoothing, x.dtype) / classes
    factor = smoothed if weight is None else by_class(smoothed, weight)
    gradient = grad_target = grad_weight = None
    if wanted(0):
        slope = at_lse + at_loss * class_sum(factor)
        gradient = ops.exp(log_prob) * slope.expand_dims(1) - at_loss.expand_dims(1) * factor
        gradient = _of_raw_logits(gradient, x, None, options)
    if wanted(1) or (weight is not None and wanted(2)):
        distance = -at_loss.expand_dims(1) * included(log_prob, factor)
        grad_target = distance * kept
        if weight is not None:
            grad_target = by_class(grad_target, weight)
            grad_weight = class_totals(distance * smoothed)
    return gradient, grad_target, grad_weight


def _of_raw_logits(gradient, x, keep, options):
    """Through softcap and logit_scale."""
    if options.softcap != 0.0:
        capped = ops.tanh(x * (number(options.logit_scale, x.dtype) / options.softcap))
        gradient = gradient * (1.0 - ops.square(capped))
        if keep is not None:
            gradient = select(keep.expand_dims(1), gradient, 0.0)
    if options.logit_scale != 1.0:
        gradient = gradient * number(options.logit_scale, x.dtype)
    return gradient


def nll(log_prob, target, weight, row_weight, outputs, upstreams, options):
    """Of log-probabilities and weights; outputs are (loss, total_weight)."""
    at_loss = _at_rows(upstreams[0], outputs[1], target, options).astype(log_prob.dtype)
    if row_weight is not None:
        at_loss = at_loss * row_weight
        log_prob, target = without_rows(log_prob, target, row_weight, options.ignore_index)
    index, keep = _counted(target, options)
    at_loss = select(keep, at_loss, 0.0)
    gradient = grad_weight = None
    if wanted(0):
        factor = at_loss if weight is None else at_loss * weight_of(weight, index)
        gradient = place(-factor, index, log_prob)
    if weight is not None and wanted(2):
        chosen = select(keep, included(pick(log_prob, index), weight_of(weight, index)), 0.0)
        grad_weight = -weight_totals(at_loss * chosen, index, weight)
        more = (weight, row_weight, index, keep, outputs, upstreams, options)
        grad_weight = grad_weight + _through_divisor([0], *more)
    return gradient, None, grad_weight, None
