"""Calls libms_ce through ctypes, as MindSpore would: numpy arrays in, numpy arrays out, no MindSpore."""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PATH = Path(os.environ.get("MS_CE_LIBRARY", ROOT / "ops" / "libms_ce.so"))


class Brain(np.ndarray):
    """bfloat16 as its bit patterns: numpy has no such dtype."""


def to_bfloat16(values: np.ndarray) -> Brain:
    """Rounds to nearest, ties to even; nan keeps a mantissa bit."""
    bits = np.atleast_1d(np.array(values, np.float32, order="C")).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)
    return rounded.astype(np.uint16).reshape(np.shape(values)).view(Brain)


def cast(values, dtype: str) -> np.ndarray:
    """`values` as `dtype`, which may be "bfloat16"."""
    if dtype == "bfloat16":
        return to_bfloat16(np.asarray(values, np.float64).astype(np.float32))
    with np.errstate(over="ignore"):
        return np.array(values, dtype, order="C")


def to_float64(array: np.ndarray) -> np.ndarray:
    """The exact values of a floating array, bfloat16 included."""
    if isinstance(array, Brain):
        bits = np.atleast_1d(np.asarray(array)).view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64).reshape(array.shape)
    return np.asarray(array, np.float64)


def dtype_name(array: np.ndarray) -> str:
    return "bfloat16" if isinstance(array, Brain) else array.dtype.name


def empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An output filled with what no kernel writes, so that an element left out shows."""
    if dtype in ("int32", "int64"):
        return np.full(shape, np.iinfo(dtype).min, dtype)
    return cast(np.full(shape, np.nan), dtype)


def options(**settings: Any) -> np.ndarray:
    """The options tensor, by the library's own description of it; what is not named keeps the losses' default."""
    return _packed(Library().description["options"], {**_DEFAULTS, **settings})


def plan(chunk_bytes: int = 0, shift: bool = False, bias_frozen: bool = False) -> np.ndarray:
    """The tensor that the linear loss takes beside its options."""
    slots = Library().description["plan"]
    return _packed(slots, {"chunk_bytes": chunk_bytes, "shift": shift, "bias_frozen": bias_frozen})


_DEFAULTS = {"ignore_index": -100, "reduction": "mean", "logit_scale": 1.0}


def _packed(slots: list[dict[str, str]], values: dict[str, Any]) -> np.ndarray:
    unknown = set(values) - {slot["name"] for slot in slots}
    assert not unknown, f"the library knows no {unknown}"
    out = np.zeros(len(slots), np.int64)
    for index, slot in enumerate(slots):
        value = values.get(slot["name"]) or 0
        if slot["type"] == "float64":
            out[index : index + 1].view(np.float64)[0] = value
        elif slot["type"] == "reduction":
            out[index] = Library().description["reductions"].index(value)
        else:
            out[index] = value
    return out


@functools.lru_cache(maxsize=4)
def _load(path: Path) -> ctypes.CDLL:
    handle = ctypes.CDLL(str(path))
    texts = ("MsCeTry", "MsCeDescribe", "MsCeVersion", "MsCeIsa", "MsCeIsaList")
    for name in (*texts, "MsCeBfloat16Products"):
        getattr(handle, name).restype = ctypes.c_char_p
    handle.MsCeFinished.restype = ctypes.c_int64
    handle.MsCeWait.argtypes = (ctypes.c_int64, ctypes.c_int64)
    return handle


@functools.lru_cache(maxsize=4)
def _description(path: Path) -> dict[str, Any]:
    return json.loads(_load(path).MsCeDescribe())


# For row_weight where has_row_weight says that none is given: nothing may read it.
NO_ROW_WEIGHT = np.full((), np.nan)


def text(sentence: str) -> np.ndarray:
    """As an operation takes it."""
    return np.array([ord(character) for character in sentence], np.int64)


def fixed_dtypes() -> dict[str, str]:
    """Of the types that have one dtype, whatever the others of a call are."""
    types = Library().description["types"].items()
    return {letter: names[0] for letter, names in types if len(names) == 1 and names != ["F"]}


class Library:
    """The operations of one libms_ce.so."""

    # A context manager for nothing but the operation: what it does to its thread, Python does not see.
    around: Callable[[], AbstractContextManager] = nullcontext

    def __init__(self, path: Path = PATH):
        self.handle = _load(path)
        self.description = _description(path)
        self.operations = {each["name"]: each for each in self.description["operations"]}

    def isas(self) -> list[str]:
        return self.handle.MsCeIsaList().decode().split(",")

    def set_isa(self, name: str) -> None:
        if self.handle.MsCeSetIsa(name.encode()) != 0:
            raise ValueError(f"instruction set must be one of {self.isas()}, got {name}")

    def set_threads(self, threads: int) -> int:
        return self.handle.MsCeSetThreads(threads)

    def call(self, name: str, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        """Runs one operation; RuntimeError carries the text that the kernel threw."""
        arrays = [*inputs, *outputs]
        count = len(arrays)
        shapes = [(ctypes.c_int64 * max(a.ndim, 1))(*a.shape) for a in arrays]
        arguments = (
            name.encode(),
            count,
            (ctypes.c_void_p * count)(*[a.ctypes.data for a in arrays]),
            (ctypes.c_int * count)(*[a.ndim for a in arrays]),
            (ctypes.POINTER(ctypes.c_int64) * count)(
                *[ctypes.cast(s, ctypes.POINTER(ctypes.c_int64)) for s in shapes]
            ),
            (ctypes.c_char_p * count)(*[dtype_name(a).encode() for a in arrays]),
        )
        with self.around():
            message = self.handle.MsCeTry(*arguments)
        if message is not None:
            raise RuntimeError(message.decode())
