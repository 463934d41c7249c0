"""Backends, each in a file of its own with the same functions, and the primitive NLLLoss."""

if __name__ != "ms_ce.ops":
    raise ImportError("this folder is imported as ms_ce.ops, not as ops; install ms_ce first")

from ms_ce.ops.primitives import NLLLoss

__all__ = ["NLLLoss"]
