"""The backends by name."""

from __future__ import annotations

from ms_ce.ops import ascend, composed, cpu
from ms_ce.ops.protocol import Kernels

KERNELS: dict[str, Kernels] = {"cpu": cpu, "ascend": ascend, "composed": composed}
