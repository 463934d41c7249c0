"""The ways in which a user switches MindSpore's mixed precision on."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, amp, nn

import ms_ce
from ms_ce import parallel

LOSSES = (
    ms_ce.LinearCrossEntropyLoss,
    ms_ce.CrossEntropyLoss,
    parallel.CrossEntropyLoss,
    parallel.GlobalMean,
    parallel.VocabParallelCrossEntropyLoss,
    parallel.VocabParallelLinearCrossEntropyLoss,
)
LEVELS = {
    "O1": lambda net: amp.auto_mixed_precision(net, "O1"),
    "O2": lambda net: amp.auto_mixed_precision(net, "O2"),
    "O3": lambda net: amp.auto_mixed_precision(net, "O3"),
    "auto": lambda net: amp.auto_mixed_precision(net, "auto"),
    "to_float": lambda net: net.to_float(ms.float16),
    "white list": lambda net: amp.custom_mixed_precision(
        net,
        white_list=[*amp.get_white_list(), *LOSSES],
    ),
    "black list": lambda net: amp.custom_mixed_precision(
        net,
        black_list=[*amp.get_black_list(), *LOSSES],
    ),
}


def precision_outside() -> ms.dtype:
    """What a layer that asks for nothing computes in."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    return nn.Dense(4, 3)(Tensor(np.ones((2, 4), np.float32))).dtype
