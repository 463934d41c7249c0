"""A device target named "Ascend" whose start-up does nothing, registered in a process on a machine without one.

The process is changed for good: use one of its own. Verified with the MindSpore version below only.
"""

import ctypes
from pathlib import Path

import mindspore

SUPPORTED_MINDSPORE = "2.10.0"
# The library is built with the pre-C++11 std::string, hence "Ss" in the mangled name and a string made by hand.
REGISTER_INIT_FUNCTION = "_ZN9mindspore9MsContext16RegisterInitFuncERKSsPFvPS0_E"
STRING_CONSTRUCTOR = "_ZNSsC1EPKcRKSaIcE"
PIN = f"=={SUPPORTED_MINDSPORE}"  # for the mark `mindspore`
WHY_PINNED = "the pretended Ascend calls into the library of this build"
_kept_alive: list[object] = []


def pretend_ascend() -> None:
    """Register the target and choose it."""
    if mindspore.__version__ != SUPPORTED_MINDSPORE:
        raise RuntimeError(
            f"the pretended target is verified with mindspore {SUPPORTED_MINDSPORE}, got {mindspore.__version__}"
        )
    core = ctypes.CDLL(str(Path(mindspore.__file__).parent / "lib" / "libmindspore_core.so"))
    make_string = getattr(ctypes.CDLL("libstdc++.so.6"), STRING_CONSTRUCTOR)
    make_string.argtypes, make_string.restype = (
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        None,
    )
    target, allocator = ctypes.c_void_p(), ctypes.c_char()
    make_string(ctypes.byref(target), b"Ascend", ctypes.byref(allocator))
    register = getattr(core, REGISTER_INIT_FUNCTION)
    register.argtypes, register.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    harmless = ctypes.CDLL(None).getpid
    register(ctypes.byref(target), ctypes.cast(harmless, ctypes.c_void_p))
    _kept_alive.append(target)
    mindspore.set_context(device_target="Ascend")
