"""What a test may leave changed for those after it: MindSpore's context, and the environment."""

from __future__ import annotations

import os
import sys
from typing import Any

_CONTEXT = (
    "mode",
    "device_target",
    "jit_syntax_level",
    "pynative_synchronize",
    "deterministic",
    "save_graphs",
)
_PARALLEL = ("parallel_mode", "device_num", "global_rank", "gradients_mean", "full_batch")
_OF_PYTEST = "PYTEST_CURRENT_TEST"  # changes between the phases of a test
_AMP = "mixed precision"


def settings() -> dict[tuple[str, str], Any]:
    """The settings as they are; MindSpore's where something has imported it."""
    found: dict[tuple[str, str], Any] = {
        ("environment", name): value for name, value in os.environ.items() if name != _OF_PYTEST
    }
    if "mindspore" not in sys.modules:
        return found
    import mindspore as ms

    found |= {("context", name): ms.get_context(name) for name in _CONTEXT}
    found |= {("parallel", name): ms.get_auto_parallel_context(name) for name in _PARALLEL}
    found["context", _AMP] = _amp_level()
    return found


def _amp_level() -> Any:
    from mindspore._c_expression.amp import get_curr_amp_strategy

    strategy = get_curr_amp_strategy()
    return None if strategy is None else strategy.get_amp_level()


def _forget_recording() -> None:
    """After an exception inside a gradient PyNative goes on recording, which no test can help."""
    if "mindspore" in sys.modules:
        from mindspore.common.api import _pynative_executor

        if _pynative_executor.grad_flag():
            _pynative_executor.clear_res()


def restore(before: dict[tuple[str, str], Any]) -> list[str]:
    """Sets back what differs from `before`; the result names it."""
    _forget_recording()
    after = settings()
    names = [key for key in after.keys() | before.keys() if after.get(key) != before.get(key)]
    # What was not known before the test imported MindSpore is its default.
    leaked = sorted(key for key in names if key in before or key[0] == "environment")
    for kind, name in leaked:
        _set(kind, name, before.get((kind, name)))
    return [f"{kind} {name}: {after.get((kind, name))}" for kind, name in leaked]


def _set(kind: str, name: str, value: Any) -> None:
    if kind == "environment":
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
        return
    import mindspore as ms
    from mindspore._c_expression.amp import pop_amp_strategy

    if kind == "parallel":
        ms.reset_auto_parallel_context()
    elif name == _AMP:
        while _amp_level() not in (value, None):
            pop_amp_strategy()
    else:
        ms.set_context(**{name: value})
