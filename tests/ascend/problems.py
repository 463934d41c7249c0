"""Shapes and inputs of the tests on the host model, and why each is there."""

from __future__ import annotations

import numpy as np

from tests.ascend.expected import Options, Problem
from tests.ascend.operators import decode, encode

# rows, classes, cores. Classes around the lane width (64), around the copy block (7, 8), across the change from the
# batched path to the tiled one (1024), rows that share a tile (1025, 4097), rows of several tiles (32,000),
# vocabularies
# of language models (128,256) and the largest that any of them has (262,144); rows fewer and more than cores.
SHAPES = (
    (0, 10, 48),
    (1, 1, 1),
    (4096, 1, 48),
    (1500, 7, 40),
    (1025, 8, 2),
    (300, 63, 7),
    (129, 64, 1),
    (70, 65, 48),
    (67, 1000, 7),
    (9, 1025, 2),
    (10, 4097, 40),
    (3, 32000, 48),
    (7, 32000, 2),
    (2, 128256, 40),
    (1, 262144, 7),
)
SMALL_SHAPES = ((5, 7, 2), (33, 65, 7), (40, 130, 3), (9, 1030, 2), (3, 20000, 2), (2, 9000, 7))
DTYPES = ("float32", "float16", "bfloat16")


def name_of(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape[:2])) + f"-{shape[2]}cores"


def make(
    shape: tuple[int, int, int],
    dtype: str,
    options: Options,
    *,
    probabilities: bool = False,
    logits: np.ndarray | None = None,
    ignored: float = 0.2,
    seed: int = 0,
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """The problem in float64, and its logits and target as the kernel takes them."""
    rows, classes, _ = shape
    random = np.random.default_rng(seed + rows + classes)
    if logits is None:
        logits = random.normal(scale=3.0, size=(rows, classes))
    coded = encode(logits.astype(np.float32), dtype)
    weight = (random.random(classes) + 0.1).astype(np.float32) if options.weighted else None
    if probabilities:
        target = random.random((rows, classes)) * (random.random((rows, classes)) < 0.5) + 1e-3
        target_coded = encode((target / target.sum(1, keepdims=True)).astype(np.float32), dtype)
        target_values = decode(target_coded, dtype)
    else:
        target_values = random.integers(0, classes, rows)
        target_values = np.where(random.random(rows) < ignored, options.ignore_index, target_values)
        target_values[:1], target_values[rows - 1 :] = 0, classes - 1  # where a row begins and ends
        target_values = target_values.astype(options.target_dtype)
        target_coded = target_values
    grad_loss = random.normal(size=rows if options.reduction == "none" else 1).astype(np.float32)
    problem = Problem(
        decode(coded, dtype),
        target_values,
        None if weight is None else weight.astype(np.float64),
        options,
        grad_loss.astype(np.float64) if options.reduction == "none" else np.float64(grad_loss[0]),
    )
    return problem, coded, target_coded
