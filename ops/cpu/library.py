"""Finds libms_ce, the compiled kernel of the `cpu` backend, and asks it about itself."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ms_ce._version import __version__

# Waiting ends after this while in which no operation runs: others of MindSpore's come first, or one of them has failed.
_IDLE_MILLISECONDS = 1000
PATH = Path(__file__).resolve().parents[1] / "libms_ce.so"


_ELF64 = b"\x7fELF\x02\x01"
_AGAIN = "install ms_ce again (in a checkout: pip install --editable .)"


def _is_cut() -> bool:
    """Whether the file ends before what its headers tell the system to map: the process would die of using it."""
    with PATH.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or not header.startswith(_ELF64):
            return False  # the system says so itself
        (table,), (size, count) = (
            struct.unpack_from("<Q", header, 32),
            struct.unpack_from("<HH", header, 54),
        )
        file.seek(table)
        entries = file.read(size * count)
    if len(entries) < size * count:
        return True
    segments = (struct.unpack_from("<QQQQ", entries, i * size + 8) for i in range(count))
    return max(offset + length for offset, _, _, length in segments) > PATH.stat().st_size


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library itself; OSError where it cannot be loaded or is none of this ms_ce, and what to do."""
    if _is_cut():
        raise OSError(f"{PATH} is cut off: {_AGAIN}")
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        raise OSError(f"{error}: {_AGAIN}") from None
    names = ("MsCeDescribe", "MsCeIsa", "MsCeIsaList", "MsCeVersion")
    if not all(hasattr(library, name) for name in names):
        raise OSError(f"{PATH} is no library of ms_ce: {_AGAIN}")
    for name in names:
        getattr(library, name).restype = ctypes.c_char_p
    version = library.MsCeVersion().decode()
    if version != __version__:
        raise OSError(f"{PATH} is of ms_ce {version}, and this is {__version__}: {_AGAIN}")
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
        warnings.warn(
            f"ms_ce: {error}; without it the CPU has the slower backend 'composed'", stacklevel=2
        )
        return f"libms_ce.so does not load: {error}"
    if not instruction_sets():
        return "this processor runs none of the kernel's instruction sets, of which x86-64-v2 is the oldest"
    return None


@functools.lru_cache(maxsize=1)
def description() -> dict[str, Any]:
    """What the kernel says of itself: operations with their arguments, types, and slots of the options."""
    return json.loads(load().MsCeDescribe())


def of_other_sources(lacking: str) -> OSError:
    """What is wrong with a library of this version that does not do what this ms_ce asks of it."""
    return OSError(
        f"ms_ce: {PATH} was built from other sources of {__version__}, {lacking}: {_AGAIN}"
    )


def operation(name: str) -> dict[str, Any]:
    """An operation with its arguments."""
    for each in description()["operations"]:
        if each["name"] == name:
            return each
    raise of_other_sources(f"which lack the operation {name}")


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Ends when an operation that was called inside has run; sleeping, and without the interpreter's lock."""
    library = load()
    finished = library.MsCeFinished()
    yield
    library.MsCeWait(finished, _IDLE_MILLISECONDS)


def instruction_set() -> str:
    """The instruction set that the kernel runs with, for example 'x86-64-v4'."""
    name = load().MsCeIsa()
    if name is None:
        asked, known = os.environ.get("MS_CE_ISA"), ", ".join(instruction_sets())
        raise ValueError(f"ms_ce: MS_CE_ISA must be one of {known}, got {asked!r}")
    return name.decode()


def instruction_sets() -> list[str]:
    """Every instruction set of the kernel that this processor can run."""
    return [name for name in load().MsCeIsaList().decode().split(",") if name]
