"""Finds libms_ce, the compiled kernel of the `cpu` backend, and asks it about itself."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Waiting ends after this while in which no operation runs: others of MindSpore's come first, or one of them has failed.
_IDLE_MILLISECONDS = 1000
PATH = Path(__file__).resolve().parents[1] / "libms_ce.so"


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library itself; OSError where it is missing or was built for another machine."""
    library = ctypes.CDLL(str(PATH))
    for name in ("MsCeDescribe", "MsCeIsa", "MsCeIsaList", "MsCeVersion"):
        getattr(library, name).restype = ctypes.c_char_p
    library.MsCeFinished.restype = ctypes.c_int64
    library.MsCeWait.argtypes = (ctypes.c_int64, ctypes.c_int64)
    return library


@functools.lru_cache(maxsize=1)
def excluded() -> str | None:
    """Why MindSpore would refuse to make operators of the library, or None."""
    folder = os.environ.get("MS_CUSTOM_AOT_WHITE_LIST")
    if folder is None or PATH.is_relative_to(os.path.realpath(folder)):
        return None
    return f"MS_CUSTOM_AOT_WHITE_LIST={folder} leaves out {PATH.parent}, where libms_ce.so is"


@functools.lru_cache(maxsize=1)
def problem() -> str | None:
    """Why the kernel cannot be used, or None."""
    if excluded() is not None:
        return excluded()
    if platform.system() != "Linux":
        return "MindSpore runs custom operators on Linux only"
    if not PATH.exists():
        return (
            "this ms_ce was built without a C++ compiler; "
            "install a wheel for your processor, or g++ or clang and ms_ce again from its sources"
        )
    try:
        load()
    except OSError as error:
        return f"libms_ce.so does not load: {error}"
    return None


@functools.lru_cache(maxsize=1)
def description() -> dict[str, Any]:
    """What the kernel says of itself: operations with their arguments, types, and slots of the options."""
    return json.loads(load().MsCeDescribe())


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Ends when an operation that was called inside has run; sleeping, and without the interpreter's lock."""
    library = load()
    finished = library.MsCeFinished()
    yield
    library.MsCeWait(finished, _IDLE_MILLISECONDS)


def instruction_set() -> str:
    """The instruction set that the kernel runs with, for example 'x86-64-v4'."""
    return load().MsCeIsa().decode()


def instruction_sets() -> list[str]:
    """Every instruction set of the kernel that this processor can run."""
    return load().MsCeIsaList().decode().split(",")
