"""The linear loss of hidden states, in float32."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops

import ms_ce


def linear_loss(input, linear_weight, target, linear_bias, reduction, ignore_index, **options):
    """`ms_ce.linear_cross_entropy` with reduction 'mean' or 'sum' and class indices, in float32.

    A loss has its input's dtype. Of 16 bits each row's loss is rounded by itself, before the sum, which would have kept
    no more than two or three digits.
    """
    short = input.dtype in (mstype.float16, mstype.bfloat16)
    loss = ms_ce.linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias,
        ignore_index=ignore_index,
        reduction="none" if short else reduction,
        **options,
    )
    if not short:
        return loss
    total = ops.sum(ops.cast(loss, mstype.float32))
    if reduction == "sum":
        return total
    answering = target[..., 1:] if options.get("shift") else target
    return total / ops.sum(ops.cast(answering != ignore_index, mstype.float32))
