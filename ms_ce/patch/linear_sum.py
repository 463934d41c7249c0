"""Sums of the linear loss in float32."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops

import ms_ce


def linear_sum(input, linear_weight, target, linear_bias=None, row_weight=None, **options):
    """Σ of the losses of all rows, in float32.

    A loss has its input's dtype. Of 16 bits, a row's loss is rounded by itself, before the sum, which would have lost
    all but two or three of its digits.
    """
    short = input.dtype in (mstype.float16, mstype.bfloat16)
    loss = ms_ce.linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias,
        reduction="none" if short else "sum",
        row_weight=row_weight,
        **options,
    )
    return ops.sum(ops.cast(loss, mstype.float32)) if short else loss
