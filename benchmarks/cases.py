"""The problems that are timed, why each is in the list, and the bytes that each must move."""

from __future__ import annotations

import math
from dataclasses import dataclass

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
IGNORE_INDEX = -100
BEYOND_CACHES_BYTES = 64e6  # a read of this much is a read from memory, with a 32 MB cache


@dataclass(frozen=True)
class Case:
    """One problem. `shape` is the logits' shape, class axis 1; reduction is always mean."""

    name: str
    shape: tuple[int, ...]
    why: str
    dtype: str = "float32"
    target: str = "class"  # or "probability"
    label_smoothing: float = 0.0
    ignored: float = 0.0  # share of the rows whose target is IGNORE_INDEX
    minus_infinity: bool = False  # one logit of each row, never the target's, is -inf
    every_peer: bool = False  # all peers; else those of peers.CORE
    composed: bool = False  # ms_ce's composed backend too: in graph mode it holds 48 x the logits
    one_thread: bool = False  # ms_ce on one thread too
    memory: bool = False  # peak memory is measured as well
    quick: bool = False  # part of --quick

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.shape[1]

    @property
    def logits_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def reads(self) -> int:
        """Bytes of one pass over the inputs: logits of the rows that count, and the targets."""
        if self.target == "probability":
            return 2 * self.logits_bytes
        return round((1 - self.ignored) * self.logits_bytes) + 4 * self.rows

    def bytes_moved(self, computation: str) -> int:
        """The least that each computation moves; `FORMULAS` says it in words."""
        reads, writes = PASSES[computation]
        return reads * self.reads() + writes * self.logits_bytes


PASSES = {
    "forward": (1, 0),
    "forward_backward": (2, 1),
    "two_passes": (2, 1),
    "value_and_grad": (1, 1),
    "floor": (1, 1),
}
TIMES = ("not", "once", "twice")
FORMULAS = {
    name: f"logits and targets read {TIMES[reads]}, gradient written {TIMES[writes]}"
    for name, (reads, writes) in PASSES.items()
}

CASES = (
    Case(
        "64x1000",
        (64, 1000),
        "small: what a call costs before the memory matters",
        every_peer=True,
        composed=True,
        one_thread=True,
        quick=True,
    ),
    Case("1x32000", (1, 32000), "one row, as when decoding", one_thread=True),
    Case("8x32000", (8, 32000), "1 MB: in the second-level caches", one_thread=True),
    Case("64x32000", (64, 32000), "8 MB: in the third-level cache", one_thread=True),
    Case("512x32000", (512, 32000), "beyond the caches"),
    Case(
        "2048x32000",
        (2048, 32000),
        "the language model of the targets",
        every_peer=True,
        composed=True,
        memory=True,
        quick=True,
    ),
    Case("1x262144", (1, 262144), "one row of the largest vocabulary", one_thread=True),
    Case("1000000x2", (1000000, 2), "two classes: many rows in a vector"),
    Case(
        "1000000x10",
        (1000000, 10),
        "few classes, many rows",
        every_peer=True,
        composed=True,
        quick=True,
    ),
    Case("16384x1000", (16384, 1000), "ImageNet's classes"),
    Case(
        "512x128256",
        (512, 128256),
        "Llama 3's vocabulary: a row is half a megabyte",
        every_peer=True,
        quick=True,
    ),
    Case("256x262144", (256, 262144), "Gemma's vocabulary: a row is a megabyte"),
    Case(
        "segmentation",
        (8, 21, 512, 512),
        "class axis not last: positions side by side in memory",
        every_peer=True,
        memory=True,
        quick=True,
    ),
    Case("2048x32000 bfloat16", (2048, 32000), "half the bytes", dtype="bfloat16"),
    Case("2048x32000 float16", (2048, 32000), "half the bytes", dtype="float16"),
    Case("512x128256 bfloat16", (512, 128256), "half the bytes, long rows", dtype="bfloat16"),
    Case("16384x1000 bfloat16", (16384, 1000), "half the bytes, short rows", dtype="bfloat16"),
    Case(
        "1024x32000 probabilities",
        (1024, 32000),
        "distillation: two inputs to read",
        target="probability",
    ),
    Case(
        "1024x32000 probabilities bfloat16",
        (1024, 32000),
        "distillation at half the bytes",
        dtype="bfloat16",
        target="probability",
    ),
    Case("2048x32000 smoothing", (2048, 32000), "label smoothing 0.1", label_smoothing=0.1),
    Case("2048x32000 ignored 50%", (2048, 32000), "padding", ignored=0.5),
    Case("2048x32000 ignored 99%", (2048, 32000), "prompt tokens masked", ignored=0.99, quick=True),
    Case(
        "2048x1000 with -inf",
        (2048, 1000),
        "masked classes: who answers at all",
        minus_infinity=True,
        quick=True,
    ),
    # Last: it needs the memory of everybody else.
    Case("16384x32000", (16384, 32000), "2.1 GB of logits, near 2^29 elements"),
)
