"""Every function of ops/ascend through MindSpore's own ops.Custom, in PyNative and in graphs, with right numbers:
names, order and types of attributes are what MindSpore makes of a call (real_operators.py)."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from ms_ce.ops import ascend
from ms_ce.ops.options import ClassBlock, Options
from tests.ascend import real_operators
from tests.ascend.expected import reference
from tests.ascend.test_python_side import CASES, close, draw, tensor

pytestmark = pytest.mark.mindspore(
    ">=2.8", reason="a custom kernel on CPU gets its attributes as tensors, not by name"
)
MODES = {"pynative": ms.PYNATIVE_MODE, "graph": ms.GRAPH_MODE}
CHOSEN = ("two axes", "many axes", "bfloat16", "float16", "probabilities", "softcap")


@pytest.fixture(params=MODES)
def mode(request, monkeypatch, tmp_path):
    real_operators.install(monkeypatch, tmp_path)
    ms.set_context(mode=MODES[request.param])
    yield request.param
    ms.set_context(mode=ms.PYNATIVE_MODE)
    real_operators.remove()


class Call(nn.Cell):
    """A function of the backend with options that a graph takes for constants."""

    def __init__(self, function, *constants):
        super().__init__()
        self.function, self.constants = function, constants

    def construct(self, *tensors):
        return self.function(*tensors, *self.constants)


class Objective(nn.Cell):
    """The sum of what a call returns first, times an upstream gradient."""

    def __init__(self, call, upstream):
        super().__init__()
        self.call, self.upstream = call, ms.Tensor(upstream)

    def construct(self, *tensors):
        return (self.call(*tensors)[0].astype(ms.float32) * self.upstream).sum()


def keywords(options: Options) -> dict:
    return {k: v for k, v in options._asdict().items() if v or k == "ignore_index"}


def gradients(call, upstream, positions, tensors):
    found = ms.grad(Objective(call, upstream), positions)(*tensors)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("case", CHOSEN)
def test_cross_entropy(case, mode):
    shape, dtype, options, drawing = CASES[case]
    data = draw(shape, dtype, **drawing)
    tensors = [tensor(a, dtype) for a in data]
    precision = "tanh" if options.softcap else dtype
    call = Call(ascend.cross_entropy, None, options)
    loss, total_weight, lse = call(*tensors)
    expected = reference.cross_entropy(*data, **keywords(options))
    close(loss, expected.loss, precision, "loss")
    close(total_weight, expected.total_weight, "float32", "total_weight")
    close(lse, expected.lse, "tanh" if options.softcap else "float32", "lse")
    upstream = np.linspace(0.5, 1.5, loss.size, dtype=np.float32).reshape(loss.shape)
    positions = (
        0,
        *([1] if drawing.get("probabilities") else []),
        *([2] if data[2] is not None else []),
    )
    wanted = reference.cross_entropy_grad(*data, **keywords(options), grad_loss=upstream)
    for position, found in zip(
        positions, gradients(call, upstream, positions, tensors), strict=True
    ):
        name = ("logits", "target", "weight")[position]
        close(found, getattr(wanted, name), precision, f"gradient of {name}")


def test_row_weights(mode):
    """They are put around the operators, which are called with reduction none."""
    data, row_weight = draw((7, 40), "float32", weighted=True), np.linspace(0.0, 2.0, 7)
    tensors = [tensor(a, "float32") for a in (*data, row_weight)]
    call = Call(ascend.cross_entropy, Options())
    expected = reference.cross_entropy(*data, row_weight=row_weight)
    close(call(*tensors)[0], expected.loss, "float32", "loss")
    wanted = reference.cross_entropy_grad(*data, row_weight=row_weight)
    close(gradients(call, np.float32(1.0), (0,), tensors)[0], wanted.logits, "float32", "gradient")


@pytest.mark.parametrize("weighted", [False, True])
def test_nll_loss(weighted, mode):
    data = draw((4, 6, 3), "float32", weighted=weighted)
    tensors = [tensor(a, "float32") for a in data]
    call = Call(ascend.nll_loss, None, Options())
    close(call(*tensors)[0], reference.nll_loss(*data)[0], "float32", "loss")
    wanted = reference.nll_loss_grad(*data)
    positions = (0, 2) if weighted else (0,)
    found = gradients(call, np.float32(1.0), positions, tensors)
    close(found[0], wanted.logits, "float32", "gradient")
    if weighted:
        close(found[1], wanted.weight, "float32", "gradient of weight")


def test_value_and_grad(mode):
    shape, dtype, options, drawing = CASES["bfloat16"]
    data = draw(shape, dtype, **drawing)
    found = Call(ascend.cross_entropy_value_and_grad, None, options)(
        *[tensor(a, dtype) for a in data]
    )
    close(found[0], reference.cross_entropy(*data, **keywords(options)).loss, dtype, "loss")
    wanted = reference.cross_entropy_grad(*data, **keywords(options)).logits
    close(found[3], wanted, dtype, "gradient")


def test_blocks_of_classes(mode):
    """A block and the rest: their numbers put together are the whole's, as is the gradient of each."""
    options = Options(label_smoothing=0.1, z_loss=0.02)
    logits, target, weight = draw((6, 20), "float32", weighted=True)
    factors = [tensor(target, "float32"), tensor(weight, "float32")]
    parts, cut = [], 8
    for block, columns in (
        (ClassBlock(0, 20), logits[:, :cut]),
        (ClassBlock(cut, 20), logits[:, cut:]),
    ):
        x = tensor(np.ascontiguousarray(columns), "float32")
        parts.append((block, x, Call(ascend.partial, options, block)(x, *factors).asnumpy()))
    lse = np.logaddexp(parts[0][2][:, 0], parts[1][2][:, 0])
    dot, mass = (parts[0][2][:, i] + parts[1][2][:, i] for i in (1, 2))
    keep = target != -100
    loss = np.where(keep, mass * lse - dot + options.z_loss * lse**2, 0.0)
    given, settings = (logits, target, weight), {**keywords(options), "reduction": "none"}
    expected = reference.cross_entropy(*given, **settings)
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-5, atol=1e-5)
    upstream = np.linspace(-1, 1, 6).astype(np.float32)
    of_lse = (2 * options.z_loss * lse * upstream).astype(np.float32)
    saved = [ms.Tensor(v.astype(np.float32)) for v in (np.where(keep, lse, 0.0), mass)]
    found = [
        Call(ascend.partial_backward, options, block)(
            ms.Tensor(upstream), ms.Tensor(of_lse), x, *factors, *saved
        ).asnumpy()
        for block, x, _ in parts
    ]
    wanted = reference.cross_entropy_grad(*given, **settings, grad_loss=upstream).logits
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, rtol=1e-5, atol=1e-6)
