"""The losses of ms_ce over a device mesh."""

from ms_ce.parallel.config import ParallelConfig
from ms_ce.parallel.loss import CrossEntropyLoss

__all__ = ["CrossEntropyLoss", "ParallelConfig"]
