"""Backends, each in a file of its own with the same functions, and the primitive NLLLoss.

The primitive is made of the layers above this one: ms_ce/__init__.py sets it here, for an import would point upwards.
"""

from typing import TYPE_CHECKING

if __name__ != "ms_ce.ops":
    raise ImportError("this folder is imported as ms_ce.ops, not as ops; install ms_ce first")

if TYPE_CHECKING:
    from ms_ce.primitives import NLLLoss

__all__ = ["NLLLoss"]
