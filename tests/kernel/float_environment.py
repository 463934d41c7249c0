"""The floating-point environment of the calling thread, set and read through libm: no compiler is needed."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_X86 = {"flushed": 0x8040, "down": 0x2000, "up": 0x4000, "to zero": 0x6000}
_ARM = {"flushed": 1 << 24, "down": 2 << 22, "up": 1 << 22, "to zero": 3 << 22}
_IS_X86 = platform.machine() in ("x86_64", "AMD64")
# What the control register holds besides its default.
ENVIRONMENTS = _X86 if _IS_X86 else _ARM
# Of MXCSR, the mask of every exception: cleared, the next inexact result ends the process.
UNMASKED = 0x1F80 if _IS_X86 else 0

# glibc's fenv_t: 28 bytes for x87 and MXCSR; or FPCR and FPSR.
_WORDS, _CONTROL = (8, 7) if _IS_X86 else (2, 0)
_libm = ctypes.CDLL("libm.so.6")


def _read() -> ctypes.Array:
    words = (ctypes.c_uint32 * _WORDS)()
    assert _libm.fegetenv(words) == 0
    return words


def registers() -> tuple[int, ...]:
    """MXCSR, or FPCR and FPSR: control and sticky flags."""
    words = _read()
    return (words[_CONTROL],) if _IS_X86 else tuple(words)


@contextmanager
def changed(bits: int) -> Iterator[None]:
    """The calling thread with these bits of its control register the other way round."""
    before = _read()
    words = _read()
    words[_CONTROL] ^= bits
    assert _libm.fesetenv(words) == 0
    try:
        yield
    finally:
        assert _libm.fesetenv(before) == 0
