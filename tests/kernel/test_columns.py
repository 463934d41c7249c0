"""Rows that are worked on side by side: how they are cut into blocks, and where a block begins, changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernel.library import NO_ROW_WEIGHT, Library, cast, empty, options, to_float64
from tests.kernel.operations import Loss
from tests.kernel.test_streaming import at_offset
from tests.support.tolerances import check_close, tolerance

PLACEHOLDER = np.zeros(1, np.float32)
DTYPES = ("float32", "float64", "float16", "bfloat16")
SHAPES = ((2, 9, 300), (3, 70, 129), (1, 5, 4096), (700, 9), (131, 64), (1000, 3))


def uneven(shape: tuple[int, ...], seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose first classes say little of the others, in some rows alone; some rows are ignored."""
    random = np.random.default_rng(seed)
    x = random.normal(size=shape)
    rows = (shape[0], *shape[2:])
    picks = random.random(rows)
    last = x.swapaxes(1, -1)  # a view: [..., class]
    picks = picks.swapaxes(-1, 1) if picks.ndim > 1 else picks
    last[picks < 0.05, -1] += 60.0
    last[(picks > 0.05) & (picks < 0.1), :2] = -np.inf
    last[(picks > 0.1) & (picks < 0.15), :-1] = -np.inf
    last[(picks > 0.15) & (picks < 0.2)] += 1000.0
    target = random.integers(0, shape[1], rows)
    target[random.random(rows) < 0.2] = -100
    return x, target


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_uneven_rows(isa_library: Library, shape: tuple[int, ...], dtype: str) -> None:
    x, target = uneven(shape)
    loss = Loss(isa_library, cast(x, dtype), target, reduction="sum")
    keep = np.broadcast_to(np.expand_dims(target != -100, 1), shape)
    one = cast(np.ones(()), dtype)
    reference = loss.reference_grad(one).logits
    bound = tolerance("cpu", dtype)
    _, _, lse = loss.forward()
    wide = to_float64(loss.logits)
    top = wide.max(1)
    expected = top + np.log(np.exp(wide - np.expand_dims(top, 1)).sum(1))
    np.testing.assert_allclose(lse[target != -100], expected[target != -100], rtol=2e-6, atol=2e-6)
    for grad in (loss.backward(one), loss.value_and_grad()[3]):
        check_close(to_float64(grad), reference, dtype, bound, "gradient")
        assert np.all(to_float64(grad)[~keep] == 0)
    for ours, theirs in zip(loss.value_and_grad()[:3], loss.forward(), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", ("float32", "float16"))
@pytest.mark.parametrize("inner", (100_000, 100_003))
def test_gradients_that_begin_anywhere_in_a_line(
    isa_library: Library, inner: int, dtype: str
) -> None:
    """Streamed lines begin elsewhere in the rows then: no bit may tell."""
    x, target = uneven((2, 21, inner))
    x, opts = cast(x, dtype), options()
    one = cast(1.0, dtype)
    results = []
    for offset in (0, 1, 4, 15):
        logits = at_offset(x, 15 - offset)
        grads = [at_offset(empty(x.shape, dtype), offset) for _ in range(2)]
        loss, total, lse = empty((), dtype), empty((), "float64"), empty(target.shape, "float64")
        inputs = [logits, target, PLACEHOLDER, NO_ROW_WEIGHT, opts]
        isa_library.call("CrossEntropyValueAndGrad", inputs, [loss, total, lse, grads[0]])
        inputs = [one, PLACEHOLDER, logits, target, PLACEHOLDER, NO_ROW_WEIGHT, lse, total, opts]
        isa_library.call("CrossEntropyBackward", inputs, [grads[1]])
        forward = [empty((), dtype), empty((), "float64"), empty(target.shape, "float64")]
        isa_library.call(
            "CrossEntropyForward", [logits, target, PLACEHOLDER, NO_ROW_WEIGHT, opts], forward
        )
        for ours, theirs in zip((loss, total, lse), forward, strict=True):
            assert ours.tobytes() == theirs.tobytes()
        results.append([array.tobytes() for array in (loss, total, lse, *grads)])
    for other in results[1:]:
        assert other == results[0]


@pytest.mark.parametrize("classes", (5, 9, 70, 1100))
@pytest.mark.parametrize("far", (-20.0, -90.0, -1e4))
@pytest.mark.parametrize("rows", (1, 33))
def test_first_classes_that_do_not_occur(
    isa_library: Library, classes: int, far: float, rows: int
) -> None:
    """What stands in for their maximum is far above the others: lse was -inf."""
    logits = np.full((rows, classes), far, np.float32)
    logits[:, : min(classes - 1, 1050 if classes > 1024 else 4)] = -np.inf
    target = np.full(logits.shape, 0, np.float32)
    target[:, -1] = 1
    loss = Loss(isa_library, logits, target, reduction="none")
    np.testing.assert_allclose(loss.forward()[0], loss.reference().loss, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(loss.forward()[2], loss.reference().lse, rtol=2e-6)
