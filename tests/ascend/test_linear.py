"""The linear loss of the ascend backend: chunks of MindSpore's matrix products, statistics by the kernels of the host
model."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from ms_ce import reference
from ms_ce.ops.linear import chunked as linear_chunked
from ms_ce.ops.options import Gradients, Options, Plan
from tests.ascend.test_python_side import HostOperator, ascend, host_operators, tensor
from tests.support.cases import round_to
from tests.support.linear_tolerances import check_linear

__all__ = ["host_operators"]  # pytest runs it around every test here

ROWS, FEATURES, CLASSES, CHUNK_ROWS = 13, 5, 40, 4
CASES = {
    "plain": ("float32", Options(), {}),
    "bfloat16": ("bfloat16", Options(label_smoothing=0.1), {"weighted": True}),
    "everything": ("float32", Options(-100, "sum", 0.1, 0.01, 6.0, 0.7), {"weighted": True}),
    "none": ("float16", Options(reduction="none"), {}),
    "probabilities": ("float32", Options(z_loss=0.01), {"probabilities": True}),
}


def draw(dtype, weighted=False, probabilities=False):
    random = np.random.default_rng(9)
    hidden = round_to(random.normal(size=(ROWS, FEATURES)), dtype)
    linear_weight = round_to(random.normal(size=(CLASSES, FEATURES)), dtype)
    linear_bias = round_to(random.normal(size=CLASSES), dtype)
    target = np.array(random.integers(0, CLASSES, ROWS), np.int32)
    target[2:5] = -100
    if probabilities:
        target = random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
    weight = round_to(random.random(CLASSES) + 0.5, dtype) if weighted else None
    return hidden, linear_weight, target, linear_bias, weight


@pytest.mark.parametrize("in_forward", (True, False))
@pytest.mark.parametrize(
    ("name", "of_weight"), [*((name, True) for name in CASES), (next(iter(CASES)), False)]
)
def test_loss_and_gradients(name, of_weight, in_forward, monkeypatch):
    called = []
    run = HostOperator.__call__

    def recorded(self, *arguments):
        called.append(self.name)
        return run(self, *arguments)

    monkeypatch.setattr(HostOperator, "__call__", recorded)
    dtype, options, what = CASES[name]
    data = draw(dtype, **what)
    tensors = [tensor(values, dtype) for values in data]
    if what.get("probabilities"):
        tensors[2] = ms.Tensor(data[2])

    def loss(hidden, linear_weight, linear_bias):
        (value,) = linear_chunked.linear_cross_entropy(
            Plan("linear_cross_entropy", "ascend", options, chunk_bytes=CHUNK_ROWS * CLASSES * 4),
            Gradients(in_forward, linear_weight=of_weight),
            False,
            hidden,
            linear_weight,
            tensors[2],
            linear_bias,
            tensors[4],
            None,
        )
        value = value.astype(hidden.dtype)
        return value.astype(ms.float32).sum(), value

    arguments = (tensors[0], tensors[1], tensors[3])
    (_, value), gradients = ms.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arguments)
    settings = {**options._asdict(), "softcap": options.softcap or None}
    expected = reference.linear_cross_entropy(*data, **settings).loss
    upstream = np.ones(ROWS) if options.reduction == "none" else 1.0
    wanted = reference.linear_cross_entropy_grad(*data, **settings, grad_loss=upstream)
    # The products and the transformations in front of the kernels are MindSpore's.
    check_linear(value.astype(ms.float32).asnumpy(), expected, "composed", dtype, "loss")
    names = wanted._fields[:3]
    for gradient, want, what in zip(gradients, wanted[:3], names, strict=True):
        if what == "linear_weight" and not of_weight:
            continue
        check_linear(gradient.astype(ms.float32).asnumpy(), want, "composed", dtype, what)
    kernels = set() if name == "probabilities" else {"MsCePartial", "MsCeBackward"}
    assert set(called) == kernels


def test_a_target_out_of_range_is_remembered():
    hidden, linear_weight, target, _, _ = draw("float32")
    target[1] = CLASSES
    (loss,) = linear_chunked.linear_cross_entropy(
        Plan("linear_cross_entropy", "ascend", Options(), chunk_bytes=CHUNK_ROWS * CLASSES * 4),
        Gradients(),
        False,
        *map(ms.Tensor, (hidden, linear_weight, target)),
        None,
        None,
        None,
    )
    assert np.isnan(loss.asnumpy())
    with pytest.raises(ValueError, match=f"target {CLASSES} in row 1"):
        ascend.check_targets()
