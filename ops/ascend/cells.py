"""The losses of the `ascend` backend as Cells over its operators, with their derivatives.

They take rows (N, C) and are built once for each set of options; `ascend` brings logits into that form.
"""

from __future__ import annotations

import functools

from mindspore import dtype as mstype
from mindspore import nn, ops

from ms_ce.ops.ascend.operators import custom
from ms_ce.ops.eager import DifferentiableCell, wanted
from ms_ce.ops.graph import select
from ms_ce.ops.mean import per_weight
from ms_ce.ops.options import Options

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


class Backward(DifferentiableCell):
    """A gradient operator; its own derivative is refused, not taken as zero."""

    def __init__(self, name: str):
        super().__init__()
        self.operator = custom(name, False)

    def construct(self, *arguments):
        return self.operator(*arguments)

    def bprop(self, *arguments):
        raise NotImplementedError(
            "ms_ce: the ascend backend has first derivatives only; use backend='composed'"
        )


class ClassLoss(DifferentiableCell):
    """Class targets: (logits (N, C), target (N), weight) to (loss, total_weight, lse, error)."""

    def __init__(self, options: Options, has_weight: bool):
        super().__init__()
        self.reduction = REDUCTIONS[options.reduction]
        self.ignore_index, self.smoothing, self.z = (
            options.ignore_index,
            options.label_smoothing,
            options.z_loss,
        )
        self.has_weight = has_weight
        self.forward = custom("MsCeForward", options.reduction == "none")
        self.backward = Backward("MsCeBackward")
        self.lookup = custom("MsCeNllForward", True)
        self.zeros_like = ops.ZerosLike()

    def construct(self, logits, target, weight):
        return self.forward(
            logits,
            target,
            weight,
            self.reduction,
            self.ignore_index,
            self.smoothing,
            self.z,
            self.has_weight,
        )

    def bprop(self, logits, target, weight, out, dout):
        grad, grad_weight = logits, self.zeros_like(weight)
        if wanted(0):
            grad = self.backward(
                dout[0],
                logits,
                target,
                weight,
                out[2],
                out[1],
                self.reduction,
                self.ignore_index,
                self.smoothing,
                self.z,
                self.has_weight,
                0,
                0,
            )
        if self.has_weight and wanted(2):
            grad_weight = self.of_weight(logits, target, out, dout[0])
        return grad, self.zeros_like(target), grad_weight

    def of_weight(self, logits, target, out, upstream):
        """Σ_n g·((1-ε)·1{c=y}·(lse - x_y) + (ε/C)·(lse - x_c)), less the mean's dependence on Σ w[y]."""
        classes = logits.shape[1]
        keep = ops.cast(ops.not_equal(target, self.ignore_index), mstype.float32)
        index = ops.cast(target * ops.cast(keep, target.dtype), mstype.int32)
        share = upstream * keep
        if self.reduction == 1:
            share = per_weight(share, out[1])
        picked = self.lookup(logits, target, share, 0, self.ignore_index, False)[0]  # -x[y]
        at_class = (1.0 - self.smoothing) * share * (out[2] + picked)
        if self.reduction == 1:
            at_class = at_class - per_weight(upstream * keep * out[0], out[1])
        grad = ops.unsorted_segment_sum(at_class * keep, index, classes)
        if self.smoothing > 0.0:
            row = ops.cast(ops.expand_dims(share, 0), mstype.float32)
            linear = ops.matmul(row, ops.cast(logits, mstype.float32)).reshape(-1)
            grad = grad + (self.smoothing / classes) * ((share * out[2]).sum() - linear)
        return grad


class ProbabilityLoss(DifferentiableCell):
    """Probability targets: (logits (N, C), target (N, C), weight) to (loss, total_weight, lse, mass)."""

    def __init__(self, options: Options, has_weight: bool):
        super().__init__()
        self.reduction = REDUCTIONS[options.reduction]
        self.smoothing, self.z, self.has_weight = (
            options.label_smoothing,
            options.z_loss,
            has_weight,
        )
        self.forward = custom("MsCeProbForward", options.reduction == "none")
        self.backward = Backward("MsCeProbBackward")
        self.zeros_like = ops.ZerosLike()

    def construct(self, logits, target, weight):
        return self.forward(
            logits, target, weight, self.reduction, self.smoothing, self.z, self.has_weight
        )

    def bprop(self, logits, target, weight, out, dout):
        grad = logits
        if wanted(0):
            grad = self.backward(
                dout[0],
                logits,
                target,
                weight,
                out[2],
                out[3],
                out[1],
                self.reduction,
                self.smoothing,
                self.z,
                self.has_weight,
            )
        grad_target, grad_weight = target, self.zeros_like(weight)
        if wanted(1) or (self.has_weight and wanted(2)):
            grad_target, grad_weight = self.of_data(logits, target, weight, out, dout[0])
        return grad, grad_target, grad_weight

    def of_data(self, logits, target, weight, out, upstream):
        """Gradients of the probabilities and the weight: (1-ε)·w_c·g·(lse - x_c), and Σ_n q'_c·g·(lse - x_c)."""
        share = upstream
        if self.reduction == 1:
            share = per_weight(share, out[1])
        distance = ops.expand_dims(out[2], 1) - ops.cast(logits, mstype.float32)
        slope = ops.expand_dims(share * ops.ones_like(out[2]), 1) * distance
        grad_target = (1.0 - self.smoothing) * slope
        grad_weight = self.zeros_like(weight)
        if self.has_weight:
            grad_target = grad_target * weight
            smoothed = (1.0 - self.smoothing) * ops.cast(target, mstype.float32)
            grad_weight = (slope * (smoothed + self.smoothing / logits.shape[1])).sum(axis=0)
        return ops.cast(grad_target, target.dtype), grad_weight


class NllLoss(DifferentiableCell):
    """NLLLoss: (log_prob (N, C), target (N), weight) to (loss, total_weight, error)."""

    def __init__(self, options: Options, has_weight: bool):
        super().__init__()
        self.reduction, self.ignore_index = REDUCTIONS[options.reduction], options.ignore_index
        self.has_weight = has_weight
        self.forward = custom("MsCeNllForward", options.reduction == "none")
        self.backward = Backward("MsCeNllBackward")
        self.lookup = custom("MsCeNllForward", True)
        self.zeros_like = ops.ZerosLike()

    def construct(self, log_prob, target, weight):
        return self.forward(
            log_prob, target, weight, self.reduction, self.ignore_index, self.has_weight
        )

    def bprop(self, log_prob, target, weight, out, dout):
        choice = (self.reduction, self.ignore_index, self.has_weight)
        grad, grad_weight = log_prob, self.zeros_like(weight)
        if wanted(0):
            grad = self.backward(dout[0], log_prob, target, weight, out[1], *choice)
        if self.has_weight and wanted(2):
            grad_weight = self.of_weight(log_prob, target, out, dout[0])
        return grad, self.zeros_like(target), grad_weight

    def of_weight(self, log_prob, target, out, upstream):
        """-Σ_n g·x[y]·1{c=y}, less the mean's dependence on Σ w[y]."""
        keep = ops.cast(ops.not_equal(target, self.ignore_index), mstype.float32)
        index = ops.cast(target * ops.cast(keep, target.dtype), mstype.int32)
        share = upstream * keep
        rows = self.lookup(log_prob, target, share, 0, self.ignore_index, False)[0]  # -x[y]
        if self.reduction == 1:
            share, rows = per_weight(share, out[1]), rows - select(out[1] == 0, 0.0, out[0])
        return ops.unsorted_segment_sum(share * rows, index, log_prob.shape[1])


@functools.lru_cache(maxsize=256)
def cells(kind: str, options: Options, has_weight: bool) -> nn.Cell:
    """The loss of these options, built once. A graph hands them over as a plain tuple."""
    options = Options(*options)
    return {"class": ClassLoss, "probability": ProbabilityLoss, "nll": NllLoss}[kind](
        options, has_weight
    )
