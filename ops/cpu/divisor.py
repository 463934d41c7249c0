"""What the second derivatives of the `cpu` backend ask of packed options and of a mean's divisor."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import operations as P

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.operators import option_index, reduction
from ms_ce.ops.mean import per_weight

_gather = P.Gather()


def option(options, name):
    """options[name]; the brackets refused a Python int once, in a thread of PyNative's backward pass."""
    return _gather(options, Tensor(option_index(name), mstype.int32), 0)


def is_mean(options):
    return option(options, "reduction") == reduction("mean")


def through_divisor(direction_weight, total_weight, weight, options):
    """(Σ direction[target] / Σ weight[target], the second derivative by the weight) of a mean over class indices, 0
    without one. The second is not offered: nan, not 0."""
    mean = is_mean(options)
    ratio = ops.where(mean, per_weight(direction_weight, total_weight), 0.0)
    return ratio, ops.where(mean, np.nan, zeros_like(weight)).astype(weight.dtype)
