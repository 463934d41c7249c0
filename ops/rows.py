"""One engine of row losses: from logits of which a place holds a block of classes, by the statistics of whole rows.

A backend reduces its block of a row to three numbers (`Kernels.partial`): lse, Σ w·q'·x and Σ w·q'. A place completes
them where other devices hold other classes, and the loss of the row is Σ w·q' · lse - Σ w·q'·x + z·lse².
"""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import get_context, ops
from mindspore.ops import constexpr

from ms_ce._versions import zeros_like
from ms_ce.ops.eager import DifferentiableCell, wanted
from ms_ce.ops.graph import is_class_index
from ms_ce.ops.options import ClassBlock, Options
from ms_ce.ops.pieces import number
from ms_ce.ops.precision import UncastCell
from ms_ce.ops.protocol import Kernels
from ms_ce.ops.row_weights import without_rows


def on_cpu() -> bool:
    return get_context("device_target") == "CPU"


def statistics_dtype():
    """Statistics are kept in float64 where there is one."""
    return mstype.float64 if on_cpu() else mstype.float32


class OneDevice(UncastCell):
    """Where the classes lie: all of them here. `ms_ce.parallel.place` has the other kind."""

    def block_of(self, columns):
        """(offset, classes held, classes in all) of a device whose tensor has this many classes."""
        return 0, columns, columns

    def columns(self, held):
        """Classes of the device that holds most: all devices cut rows into the same chunks."""
        return held

    def whole(self, statistics):
        """(rows, 3) of this device's classes to those of all classes; a fourth column holds entropies."""
        return statistics

    def joined(self, rows):
        """(rows, width) of this device's classes to those of all: sums, and an lse in the last column."""
        return rows

    def rows(self, given):
        """How many rows there are in all, from how many this device was given."""
        return given

    def gathered(self, hidden):
        """All rows, from those that this device was given."""
        return hidden

    def collected(self, grad_hidden):
        """The gradient of what this device was given, from its classes' part of that of all rows."""
        return grad_hidden


@constexpr
def _rows_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the rows of logits (N, C, …)."""
    return (shape[0], *shape[2:])


class Rows(UncastCell):
    """What whole logits and chunks of them share."""

    def __init__(self, kernels: Kernels, place: OneDevice, options: Options):
        super().__init__()
        self.partial, self.partial_backward = kernels.partial, kernels.partial_backward
        self.entropy, self.entropy_backward = (
            kernels.partial_entropy,
            kernels.partial_entropy_backward,
        )
        self.entropies = False
        self.location = place  # `place` is a method of Cell in MindSpore before 2.8
        self.options = options._replace(reduction="none")
        self.ignore_index, self.z_loss = options.ignore_index, options.z_loss
        self.wide = statistics_dtype()

    def statistics(self, logits, target, weight, block):
        """(rows, 3) over all classes: lse, Σ w·q'·x and Σ w·q'; with `entropies` these are a fourth column."""
        offset, total = block
        local = self.partial(logits, target, weight, self.options, ClassBlock(offset, total))
        local = local.astype(self.wide).reshape((-1, 3))
        if self.entropies:
            entropy = self.entropy(logits, local[:, 0], self.options).astype(self.wide)
            local = ops.concat((local, entropy.expand_dims(1)), 1)
        return self.location.whole(local)

    def squares(self, lse):
        """The z-losses."""
        return number(self.z_loss, self.wide) * lse * lse

    def of_squares(self, lse, upstream):
        """What arrives at lse by the z-losses."""
        return 2.0 * number(self.z_loss, self.wide) * lse * upstream

    def kept(self, target, row_weight):
        """Which rows count, (rows,), or None where all do."""
        if not is_class_index(target.dtype):
            return None if row_weight is None else ops.not_equal(row_weight.reshape((-1,)), 0)
        keep = ops.not_equal(target.reshape((-1,)).astype(mstype.int64), self.ignore_index)
        if row_weight is None:
            return keep
        return ops.logical_and(keep, ops.not_equal(row_weight.reshape((-1,)), 0))

    def counted(self, keep, *rows):
        """Rows of numbers with 0 for those that do not count, which have a statistic of their own on several devices
        and in a chunk with others."""
        if keep is None:
            return rows
        # Not masked_fill, which takes float64 through float32 on CPU.
        return tuple([ops.select(keep, row, zeros_like(row)) for row in rows])


class RowLoss(Rows, DifferentiableCell):
    """Row losses of logits.

    Inputs: logits (N, C_local, …), target, weight of all classes or None, row_weight like the rows or None.
    Outputs: row losses times row_weight, then lse and Σ w·q' of the whole rows, which the derivative needs; each of the
    rows' shape, in float64 on CPU and float32 elsewhere.
    """

    def __init__(self, kernels: Kernels, place: OneDevice, options: Options, weight_gradient: bool):
        super().__init__(kernels, place, options)
        self.target_grad = kernels.partial_target_grad
        self.weight_grad = kernels.partial_weight_grad
        self.weight_gradient = weight_gradient

    def own(self, logits, target, row_weight):
        """(logits, target, block) of this device without the columns of padding and the rows of weight 0."""
        offset, held, total = self.location.block_of(logits.shape[1])
        if held < logits.shape[1]:
            logits = logits[:, :held]
            if not is_class_index(target.dtype):
                target = target[:, :held]
        if row_weight is not None:
            logits, target = without_rows(logits, target, row_weight, self.ignore_index)
        return logits, target, (offset, total)

    def construct(self, logits, target, weight, row_weight):
        own, own_target, block = self.own(logits, target, row_weight)
        rows = self.statistics(own, own_target, weight, block)
        lse, dot, mass = rows[:, 0], rows[:, 1], rows[:, 2]
        losses = mass * lse - dot
        if self.z_loss:
            losses = losses + self.squares(lse)
        if row_weight is not None:
            losses = losses * row_weight.reshape((-1,)).astype(self.wide)
        losses = self.counted(self.kept(target, row_weight), losses)[0]
        shape = _rows_shape(logits.shape)
        return losses.reshape(shape), lse.reshape(shape), mass.reshape(shape)

    def bprop(self, logits, target, weight, row_weight, out, dout):
        own, own_target, (offset, total) = self.own(logits, target, row_weight)
        block, upstream = ClassBlock(offset, total), dout[0]
        if row_weight is not None:
            upstream = upstream * row_weight.astype(upstream.dtype)
        of_lse = self.of_squares(out[1], upstream) if self.z_loss else zeros_like(upstream)
        inputs = (own, own_target, weight, out[1])
        gradient, grad_target = logits, zeros_like(target)
        if wanted(0):
            gradient = self.partial_backward(upstream, of_lse, *inputs, out[2], self.options, block)
            gradient = with_padding(gradient, logits, 1)
        if wanted(1) and not is_class_index(target.dtype):
            grad_target = self.target_grad(upstream, *inputs, self.options, block)
            grad_target = with_padding(grad_target, target, 1)
        constant = None if row_weight is None else zeros_like(row_weight)
        if weight is None:
            return gradient, grad_target, None, constant
        grad_weight = zeros_like(weight)
        if self.weight_gradient and wanted(2):
            grad_weight = self.weight_grad(upstream, *inputs, self.options, block)
        return gradient, grad_target, grad_weight, constant


def with_padding(gradient, whole, axis):
    """With 0 for the classes of padding, of which the gradient of `whole` has none along `axis`."""
    padding = whole.shape[axis] - gradient.shape[axis]
    if padding <= 0:
        return gradient
    shape = (*gradient.shape[:axis], padding, *gradient.shape[axis + 1 :])
    return ops.concat((gradient, ops.zeros(shape, gradient.dtype)), axis)
