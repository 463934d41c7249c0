"""Calls of C operations with tensors that lie anywhere, between guards."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from tests.fuzz.draw import DTYPES
from tests.kernel.library import Brain, Library, dtype_name, to_float64

_GUARD = 64  # bytes on each side of a tensor, which no operation may write
_MARKS = b"\xa5" * (1 << 12)
_NAMES = {name: name.encode() for name in ("int32", "int64", "uint8", *DTYPES)}


class Placed:
    """A tensor `odd` elements behind a cache line, with guards around it, and what a call is told of it."""

    def __init__(self, shape: tuple[int, ...], dtype: str, odd: int):
        kept = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
        self.size = kept.itemsize * int(np.prod(shape, dtype=np.int64))
        self.memory = np.full(self.size + 2 * _GUARD + 64 + odd * kept.itemsize, 0xA5, np.uint8)
        start = self.memory.ctypes.data
        self.begin = -start % 64 + _GUARD + odd * kept.itemsize
        self.bytes = self.memory[self.begin : self.begin + self.size]
        array = self.bytes.view(kept).reshape(shape)
        self.array = array.view(Brain) if dtype == "bfloat16" else array
        self.pointer, self.rank, self.dtype = start + self.begin, len(shape), _NAMES[dtype]
        self._shape = (ctypes.c_int64 * max(self.rank, 1))(*shape)
        self.shape = ctypes.addressof(self._shape)

    @classmethod
    def of(cls, array: np.ndarray, odd: int) -> Placed:
        placed = cls(array.shape, dtype_name(array), odd)
        placed.array[...] = array
        placed.before = placed.memory.tobytes()
        return placed

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: str, odd: int) -> Placed:
        """An output, filled with what no kernel writes: a nan of every dtype."""
        placed = cls(shape, dtype, odd)
        placed.bytes[:] = 0xFF
        return placed

    def guarded(self) -> bool:
        """Whether nothing was written beside it."""
        before, after = self.memory[: self.begin], self.memory[self.begin + self.size :]
        return all(part.tobytes() == _MARKS[: len(part)] for part in (before, after))

    def unchanged(self) -> bool:
        return self.memory.tobytes() == self.before


class Made(NamedTuple):
    """A result of an operation, `of` being the name of what it is a value of."""

    array: np.ndarray
    extent: str
    of: str


def bits_of(array: np.ndarray) -> bytes:
    """Of numbers. A nan is one, whatever its sign and payload, of which IEEE 754 promises nothing where two meet; but
    not what stood in an output before."""
    bits = np.ascontiguousarray(array).view(f"uint{8 * array.itemsize}").reshape(-1)
    nan = np.isnan(to_float64(array)).reshape(-1) & (bits != np.iinfo(bits.dtype).max)
    return np.where(nan, 0, bits).tobytes() + nan.tobytes()


class Kernel:
    """The operations, and how often they were called."""

    def __init__(self, library: Library):
        self.library, self.calls = library, 0

    def run(
        self, operation: dict, given: dict[str, Placed], shapes: dict, dtypes: dict, odd: int
    ) -> dict[str, Placed]:
        """The outputs by name; shapes are by an output's extent, dtypes by its type."""
        name = operation["name"]
        outputs = {
            each["name"]: Placed.empty(shapes[each["extent"]], dtypes[each["type"]], odd)
            for each in operation["outputs"]
        }
        tensors = [*(given[each["name"]] for each in operation["inputs"]), *outputs.values()]
        count = len(tensors)
        pointers = ctypes.c_void_p * count
        arguments = (
            name.encode(),
            count,
            pointers(*[tensor.pointer for tensor in tensors]),
            (ctypes.c_int * count)(*[tensor.rank for tensor in tensors]),
            pointers(*[tensor.shape for tensor in tensors]),
            (ctypes.c_char_p * count)(*[tensor.dtype for tensor in tensors]),
        )
        with self.library.around():
            message = self.library.handle.MsCeTry(*arguments)
        self.calls += 1
        if message is not None:
            raise RuntimeError(f"{name}: {message.decode()}")
        for output, placed in outputs.items():
            assert placed.guarded(), f"{name} wrote beside {output}"
        return outputs


class Session:
    """The calls of one drawn loss, whose inputs lie in one place for all of them."""

    def __init__(self, kernel: Kernel, drawn):
        self.kernel, self.odd, self.given = kernel, drawn.odd, drawn.given()
        self.shapes, self.dtypes = drawn.shapes(), drawn.dtypes()
        self.placed: dict[str, Placed] = {}
        self.found: dict[str, Made] = {}

    def call(self, name: str, own: bool = False, **more: np.ndarray) -> dict[str, np.ndarray]:
        """`own`: gradients are for an upstream of 1. `more` are other inputs than the loss's own."""
        operation = self.kernel.library.operations[name]
        given = {n: Placed.of(array, self.odd) for n, array in more.items()}
        for each in operation["inputs"]:
            if each["name"] not in more:
                given[each["name"]] = self._input(each["name"])
        made = self.kernel.run(operation, given, self.shapes, self.dtypes, self.odd)
        extents = {each["name"]: each["extent"] for each in operation["outputs"]}
        for output, placed in made.items():
            of = f"own {output}" if own and output.startswith("grad_") else output
            self.found[f"{name} {output}"] = Made(placed.array, extents[output], of)
        return {output: placed.array for output, placed in made.items()}

    def _input(self, name: str) -> Placed:
        if name not in self.placed:
            self.placed[name] = Placed.of(self.given[name], self.odd)
        return self.placed[name]

    def keep(self, **arrays: np.ndarray) -> None:
        """Inputs of the calls that follow."""
        self.given.update(arrays)

    def finished(self) -> dict[str, Made]:
        """Every result by "operation output"; no operation has written into an input."""
        for name, placed in self.placed.items():
            assert placed.unchanged(), f"an operation changed its input {name}"
        return self.found
