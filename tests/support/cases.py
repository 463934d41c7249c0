"""The inputs that tests share, one list for all backends, modes and dtypes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One call: shapes, kind of target and options; `inputs` draws the arrays."""

    name: str
    shape: tuple[int, ...]
    probabilities: bool = False
    weight: bool = False
    ignored: float = 0.0  # share of rows that carry ignore_index
    label_dtype: str = "int32"
    options: dict[str, Any] = {}
    scale: float = 2.0  # of the logits

    def inputs(self, dtype: str, seed: int = 0) -> dict[str, np.ndarray | None]:
        """logits, target, weight and an upstream gradient as numpy arrays, rounded to `dtype`."""
        random = np.random.default_rng(seed)
        rows = self.shape[:1] + self.shape[2:] if len(self.shape) > 1 else ()
        classes = self.shape[0] if len(self.shape) == 1 else self.shape[1]
        logits = random.normal(scale=self.scale, size=self.shape)
        if self.probabilities:
            axis = 0 if len(self.shape) == 1 else 1
            target = random.random(self.shape)
            target = target / target.sum(axis=axis, keepdims=True)
        else:
            target = np.array(random.integers(0, classes, rows))
            ignore_index = self.options.get("ignore_index", -100)
            target = np.where(random.random(rows) < self.ignored, ignore_index, target)
            target = target.astype(self.label_dtype)
        weight = random.random(classes) + 0.25 if self.weight else None
        upstream = random.normal(size=rows if self.options.get("reduction") == "none" else ())
        return {
            "logits": round_to(logits, dtype),
            "target": round_to(target, dtype) if self.probabilities else target,
            "weight": None if weight is None else round_to(weight, dtype),
            "grad_loss": round_to(upstream, dtype),
        }


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` rounded to `dtype`; bfloat16, which numpy lacks, is held in float32."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(dtype)
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


NONE = {"reduction": "none"}
SUM = {"reduction": "sum"}

# Every option at a value that is not its default, every shape that torch allows, every target dtype. Sizes are
# small: long rows and many rows are the kernel tests' business (tests/kernel).
CASES = (
    Case("plain", (7, 13)),
    Case("unbatched", (9,)),
    Case("unbatched none", (9,), options=NONE),
    Case("one class", (5, 1)),
    Case("two classes", (33, 2), options=NONE),
    Case("wide", (3, 1000), options=SUM),
    Case("sequence", (4, 11, 6)),
    Case("image", (2, 5, 3, 4), ignored=0.3, options={"ignore_index": 255}, label_dtype="uint8"),
    Case("five spatial", (2, 3, 2, 1, 3, 2, 2), ignored=0.2, options=NONE),
    Case("ignored", (40, 10), ignored=0.5),
    Case("ignored none", (40, 10), ignored=0.5, options=NONE, label_dtype="int64"),
    Case("ignored sum", (40, 10), ignored=0.5, options=SUM, label_dtype="int64"),
    Case("ignore a real class", (40, 4), options={"ignore_index": 2}),
    Case("weight", (12, 6), weight=True, ignored=0.25),
    Case("weight none", (12, 6), weight=True, ignored=0.25, options=NONE),
    Case("weight image", (2, 6, 3, 3), weight=True, ignored=0.25, options=SUM),
    Case("smoothing", (12, 6), options={"label_smoothing": 0.1}),
    Case(
        "smoothing weight ignored",
        (2, 6, 5),
        weight=True,
        ignored=0.3,
        options={"label_smoothing": 0.3, "reduction": "mean"},
    ),
    Case("smoothing one", (8, 6), weight=True, options={"label_smoothing": 1.0, **NONE}),
    Case("probabilities", (12, 6), probabilities=True),
    Case("probabilities unbatched", (6,), probabilities=True),
    Case("probabilities none", (3, 6, 4), probabilities=True, options=NONE),
    Case("probabilities sum", (3, 6, 2, 2), probabilities=True, weight=True, options=SUM),
    Case(
        "probabilities smoothing weight",
        (9, 6),
        probabilities=True,
        weight=True,
        options={"label_smoothing": 0.2},
    ),
    Case("z-loss", (12, 6), ignored=0.2, options={"z_loss": 0.01}),
    Case("softcap", (12, 6), options={"softcap": 3.0}, weight=True),
    Case("logit scale", (12, 6), options={"logit_scale": 0.3, **NONE}),
    Case(
        "everything",
        (4, 6, 3),
        weight=True,
        ignored=0.3,
        options={
            "label_smoothing": 0.1,
            "z_loss": 0.02,
            "softcap": 4.0,
            "logit_scale": 1.5,
            "ignore_index": -1,
            "reduction": "mean",
        },
    ),
    Case(
        "everything probabilities",
        (4, 6, 3),
        probabilities=True,
        weight=True,
        options={"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 4.0, "logit_scale": 1.5},
    ),
)

NLL_CASES = tuple(
    case
    for case in CASES
    if not case.probabilities and not set(case.options) - {"reduction", "ignore_index"}
)
