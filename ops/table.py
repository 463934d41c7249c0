"""The backends by name."""

from __future__ import annotations

import functools

from mindspore.ops import constexpr

from ms_ce.ops import ascend, composed
from ms_ce.ops.protocol import Kernels


def _cpu() -> Kernels:
    # Here, where a loss first asks for it, since its import makes the operators: half of the time of `import ms_ce`.
    from ms_ce.ops import cpu

    return cpu


KERNELS = {"cpu": _cpu, "ascend": lambda: ascend, "composed": lambda: composed}


@constexpr
@functools.cache
def kernels_of(backend: str) -> Kernels:
    """Those of a backend."""
    return KERNELS[backend]()
