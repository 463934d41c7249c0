"""The drop-in under a name in mindformers' registry of losses."""

from __future__ import annotations

import sys

from ms_ce.parallel.loss import CrossEntropyLoss

MINDFORMERS_NAME = "MsCeCrossEntropyLoss"


def register_with_mindformers() -> str:
    """Registers `ms_ce.parallel.CrossEntropyLoss` in mindformers, and returns its name there.

    `mindformers.core.build_loss` then builds it for `type: MsCeCrossEntropyLoss`. Nothing in mindformers 1.9 to 2.1
    calls that: to replace the loss of its models, call `ms_ce.patch.mindformers()`.

    `import ms_ce.parallel` does this by itself when mindformers was imported before.

    Returns:
        str, the name.

    Raises:
        ImportError: mindformers is not installed.

    Example:
        >>> import ms_ce.parallel
        >>> ms_ce.parallel.register_with_mindformers()
        'MsCeCrossEntropyLoss'
        >>> from mindformers.core import build_loss
        >>> loss = build_loss({"type": "MsCeCrossEntropyLoss"})
        >>> isinstance(loss, ms_ce.parallel.CrossEntropyLoss)
        True
    """
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    # mindformers looks names up among its older or its newer models, as its use_legacy says.
    for legacy in (True, False):
        MindFormerRegister.register_cls(
            CrossEntropyLoss, MindFormerModuleType.LOSS, alias=MINDFORMERS_NAME, legacy=legacy
        )
    return MINDFORMERS_NAME


def register_where_imported() -> None:
    """Importing mindformers takes many seconds, so that it is left to those who use it."""
    if "mindformers" in sys.modules:
        register_with_mindformers()
