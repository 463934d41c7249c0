"""Cross-entropy losses for MindSpore: exact, fused, the same in PyNative and graph mode, alone or sharded."""

import importlib
from types import ModuleType

from ms_ce import _versions as _versions  # first: it warns of what MindSpore is imported with
from ms_ce import ops, primitives
from ms_ce._cell import keep_whole
from ms_ce._version import __version__
from ms_ce.backend import available_backends
from ms_ce.deployment import relocate_mindir
from ms_ce.distillation import linear_distillation_loss
from ms_ce.functional import cross_entropy, nll_loss
from ms_ce.linear import (
    LinearCrossEntropyLoss,
    linear_cross_entropy,
    linear_cross_entropy_with_stats,
)
from ms_ce.multi_token import linear_multi_token_loss
from ms_ce.nn import CrossEntropyLoss, NLLLoss
from ms_ce.sweep import LossStats, cross_entropy_value_and_grad, cross_entropy_with_stats
from ms_ce.tokens import linear_token_log_probs, token_log_probs
from ms_ce.top_k_distillation import linear_top_k_distillation_loss

ops.NLLLoss = primitives.NLLLoss  # type: ignore[misc]

__all__ = [
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LossStats",
    "NLLLoss",
    "__version__",
    "available_backends",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "cross_entropy_with_stats",
    "linear_cross_entropy",
    "linear_cross_entropy_with_stats",
    "linear_distillation_loss",
    "linear_multi_token_loss",
    "linear_token_log_probs",
    "linear_top_k_distillation_loss",
    "nll_loss",
    "ops",
    "patch",
    "relocate_mindir",
    "token_log_probs",
]
keep_whole(globals().get(name) for name in __all__)


def __getattr__(name: str) -> ModuleType:
    """`ms_ce.patch` is imported where it is asked for."""
    if name == "patch":
        return importlib.import_module("ms_ce.patch")
    raise AttributeError(f"module 'ms_ce' has no attribute {name!r}")
