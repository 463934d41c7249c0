"""Losses in networks under MindSpore's mixed precision: they take what the layers return, sum in float32, and a refusal
leaves the process as it was."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, amp, nn

import ms_ce
from ms_ce import parallel, reference
from tests.integration.conftest import to_numpy
from tests.support.precision_levels import LEVELS, precision_outside

RANDOM = np.random.default_rng(0)
ROWS, FEATURES, CLASSES = 8, 16, 32
HIDDEN = RANDOM.normal(size=(ROWS, FEATURES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES, ROWS).astype(np.int32)
TABLE = RANDOM.normal(size=(CLASSES, FEATURES)).astype(np.float32)
WEIGHT = np.linspace(0.5, 2.0, CLASSES).astype(np.float32)
HALF = {"rtol": 2e-2, "atol": 2e-3}  # of what MindSpore's Dense rounds to 16 bits before the loss


class _Network(nn.Cell):
    """A layer that is computed in 16 bits, and a loss behind it."""

    def __init__(self, loss):
        super().__init__()
        self.body = nn.Dense(
            FEATURES,
            FEATURES,
            weight_init=Tensor(np.eye(FEATURES, dtype=np.float32)),
            has_bias=False,
        )
        self.loss = loss

    def construct(self, hidden, labels):
        return self.loss(self.body(hidden), labels)


class _Head(nn.Cell):
    """The last layer apart from its loss."""

    def __init__(self, loss):
        super().__init__()
        self.head = nn.Dense(FEATURES, CLASSES, weight_init=Tensor(TABLE), has_bias=False)
        self.loss = loss

    def construct(self, hidden, labels):
        return self.loss(self.head(hidden), labels)


def linear(backend):
    table = Parameter(Tensor(TABLE), name="table")
    return ms_ce.LinearCrossEntropyLoss(FEATURES, table, weight=Tensor(WEIGHT), backend=backend)


def plain(backend):
    return _Head(ms_ce.CrossEntropyLoss(Tensor(WEIGHT), backend=backend))


@pytest.fixture(params=[ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
def mode(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # O1 writes the network that it makes there
    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [linear, plain])
def test_gradients_in_the_dtype_of_the_parameters(make, level, backend, mode):
    net = _Network(make(backend))
    table = net.loss.linear_weight if make is linear else net.loss.head.weight
    parameters = [net.body.weight, table]
    net = LEVELS[level](net)
    loss, gradients = ms.value_and_grad(net, None, parameters)(Tensor(HIDDEN), Tensor(LABELS))
    logits = HIDDEN @ TABLE.T
    expected = reference.cross_entropy(logits, LABELS, WEIGHT).loss
    grad_logits = reference.cross_entropy_grad(logits, LABELS, WEIGHT).logits
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=5e-3)
    assert [gradient.dtype for gradient in gradients] == [ms.float32, ms.float32]
    np.testing.assert_allclose(to_numpy(gradients[1]), grad_logits.T @ HIDDEN, **HALF)
    grad_body = (grad_logits @ TABLE).T @ HIDDEN
    np.testing.assert_allclose(to_numpy(gradients[0]), grad_body, rtol=2e-2, atol=1e-2)
    assert precision_outside() == ms.float32


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16], ids=["float16", "bfloat16"])
def test_to_float_of_the_loss_alone(dtype, backend, mode):
    """The input is rounded to it as by nn.Dense, the sums are not: 4,096 rows of loss 20 overflow float16."""
    logits = np.zeros((4096, 4), np.float32)
    logits[:, 0] = 20.0
    loss = ms_ce.CrossEntropyLoss(backend=backend).to_float(dtype)
    result = loss(Tensor(logits), ms.ops.ones(4096, ms.int32))
    assert result.dtype == dtype
    np.testing.assert_allclose(to_numpy(result), 20.0, rtol=1e-6)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16], ids=["float16", "bfloat16"])
def test_hidden_states_of_16_bits_beside_a_table_of_float32(dtype, shift, backend, run):
    """The table is not rounded, and its gradient is float32."""
    hidden, labels = Tensor(HIDDEN.reshape(2, 4, -1)).astype(dtype), Tensor(LABELS.reshape(2, 4))

    def loss(hidden, table):
        return ms_ce.linear_cross_entropy(
            hidden, table, labels, reduction="sum", shift=shift, backend=backend
        )

    value = run(loss, hidden, Tensor(TABLE))
    gradients = run(ms.grad(loss, (0, 1)), hidden, Tensor(TABLE))
    assert [value.dtype, gradients[0].dtype, gradients[1].dtype] == [dtype, dtype, ms.float32]
    rounded = to_numpy(hidden)
    expected = reference.linear_cross_entropy(
        rounded, TABLE, labels.asnumpy(), reduction="sum", shift=shift
    ).loss
    np.testing.assert_allclose(to_numpy(value), expected, rtol=2.0**-8)
    derivative = reference.linear_cross_entropy_grad(
        rounded, TABLE, labels.asnumpy(), reduction="sum", shift=shift
    )
    np.testing.assert_allclose(
        to_numpy(gradients[1]), derivative.linear_weight, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("make", [linear, plain])
def test_a_refusal_leaves_no_mixed_precision_behind(make, backend):
    """MindSpore's own Cells leave it switched on for the process when one of them raises."""
    net = amp.auto_mixed_precision(_Network(make(backend)), "O2")
    with pytest.raises(ValueError, match="class indices are integers: cast them"):
        net(Tensor(HIDDEN), Tensor(LABELS).astype(ms.float16))
    assert precision_outside() == ms.float32
    alone = ms_ce.CrossEntropyLoss(backend=backend).to_float(ms.float16)
    with pytest.raises(ValueError, match="target must have shape"):
        alone(Tensor(HIDDEN), Tensor(LABELS[:3]))
    assert precision_outside() == ms.float32
    again = amp.auto_mixed_precision(_Network(make(backend)), "O2")
    assert np.isfinite(to_numpy(again(Tensor(HIDDEN), Tensor(LABELS))))
    assert precision_outside() == ms.float32


@pytest.mark.parametrize(
    ("hidden", "table"), [("float32", "float16"), ("float64", "float32"), ("float16", "bfloat16")]
)
def test_other_mixtures_are_refused(hidden, table):
    inputs = Tensor(HIDDEN).astype(getattr(ms, hidden)), Tensor(TABLE).astype(getattr(ms, table))
    text = f"linear_weight must have input's dtype {hidden}.*, got {table}; cast one to the other"
    with pytest.raises(TypeError, match=text):
        ms_ce.linear_cross_entropy(*inputs, Tensor(LABELS))


class _Function(nn.Cell):
    """A function of ours called inside a Cell."""

    def __init__(self, function, **options):
        super().__init__()
        self.function, self.options = function, options

    def construct(self, *tensors):
        return self.function(*tensors, **self.options)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_functions_sum_in_float32(name, backend, mode):
    """Under to_float too, as the Cells: 4,096 rows of 20."""
    logits = np.zeros((4096, 4), np.float32)
    logits[:, 0] = 20.0 if name == "cross_entropy" else 0.0
    logits[:, 1] = 0.0 if name == "cross_entropy" else -20.0
    labels = ms.ops.ones(4096, ms.int32)
    net = _Function(getattr(ms_ce, name), backend=backend).to_float(ms.float16)
    loss, gradient = ms.value_and_grad(net)(Tensor(logits), labels)
    assert (loss.dtype, gradient.dtype) == (ms.float16, ms.float32)
    np.testing.assert_allclose(to_numpy(loss), 20.0, rtol=1e-6)
    expected = getattr(reference, f"{name}_grad")(logits, labels.asnumpy())[0]
    np.testing.assert_allclose(to_numpy(gradient), expected, rtol=1e-3, atol=1e-6)
    assert precision_outside() == ms.float32


@pytest.mark.parametrize("chunk_bytes", [None, 400])
def test_the_linear_function(chunk_bytes, backend, mode):
    net = _Function(ms_ce.linear_cross_entropy, chunk_bytes=chunk_bytes, backend=backend)
    net = net.to_float(ms.float16)
    tensors = [Tensor(HIDDEN), Tensor(TABLE), Tensor(LABELS)]
    loss, gradients = ms.value_and_grad(net, (0, 1))(*tensors)
    assert [loss.dtype, gradients[0].dtype, gradients[1].dtype] == [
        ms.float16,
        ms.float32,
        ms.float32,
    ]
    expected = reference.linear_cross_entropy(HIDDEN, TABLE, LABELS).loss
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=5e-3)
    derivative = reference.linear_cross_entropy_grad(HIDDEN, TABLE, LABELS)
    np.testing.assert_allclose(to_numpy(gradients[0]), derivative.input, **HALF)
    np.testing.assert_allclose(to_numpy(gradients[1]), derivative.linear_weight, **HALF)
    assert precision_outside() == ms.float32


@pytest.mark.parametrize("make", [ms_ce.NLLLoss, ms_ce.ops.NLLLoss], ids=["Cell", "primitive"])
@pytest.mark.parametrize("level", ["O2", "to_float"])
def test_negative_log_likelihoods(level, make, backend, mode):
    loss = make(backend=backend)
    first = loss if make is ms_ce.NLLLoss else _First(loss)
    net = LEVELS[level](_Head(first))
    value = net(Tensor(HIDDEN), Tensor(LABELS))
    expected = reference.nll_loss(HIDDEN @ TABLE.T, LABELS)[0]
    np.testing.assert_allclose(to_numpy(value), expected, rtol=5e-3, atol=5e-3)
    assert precision_outside() == ms.float32


class _First(nn.Cell):
    """The loss alone of a primitive that returns the total weight too."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def construct(self, logits, labels):
        return self.loss(logits, labels, None)[0]


REFUSED = {
    "shape": (ms_ce.cross_entropy, (HIDDEN, LABELS[:3]), {}, "target must have shape"),
    "no tensor": (ms_ce.cross_entropy, (HIDDEN, None), {}, "it is missing"),
    "option": (ms_ce.nll_loss, (HIDDEN, LABELS), {"reduction": "avg"}, "reduction must be"),
    "backend": (ms_ce.nll_loss, (HIDDEN, LABELS), {"backend": "none"}, "backend"),
    "linear": (ms_ce.linear_cross_entropy, (HIDDEN, TABLE, LABELS[:3]), {}, "target must have"),
    "class index": (
        ms_ce.cross_entropy,
        (HIDDEN, LABELS + 100),
        {"backend": "composed"},
        "is outside",
    ),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_function_that_refuses_leaves_no_mixed_precision_behind(refused):
    function, arrays, options, text = REFUSED[refused]
    tensors = [None if array is None else Tensor(array) for array in arrays]
    net = _Function(function, **options).to_float(ms.float16)
    with pytest.raises((TypeError, ValueError), match=text):
        net(*tensors)
    assert precision_outside() == ms.float32


class _Masked(nn.Cell):
    """A loss of ms_ce.parallel that takes a mask."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.mask = loss, ms.ops.ones(ROWS, ms.float32)

    def construct(self, logits, labels):
        return self.loss(logits, labels, self.mask)


SHARDED = {
    "CrossEntropyLoss": lambda backend: _Masked(parallel.CrossEntropyLoss(backend=backend)),
    "shard": lambda backend: parallel.shard(ms_ce.CrossEntropyLoss(backend=backend)),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("made", SHARDED)
def test_the_sharded_losses_on_one_device(made, level, backend, mode):
    net = _Head(SHARDED[made](backend))
    table = net.head.weight
    loss, gradient = ms.value_and_grad(LEVELS[level](net), None, [table])(
        Tensor(HIDDEN), Tensor(LABELS)
    )
    logits = HIDDEN @ TABLE.T
    np.testing.assert_allclose(
        to_numpy(loss), reference.cross_entropy(logits, LABELS).loss, rtol=5e-3
    )
    grad_logits = reference.cross_entropy_grad(logits, LABELS).logits
    np.testing.assert_allclose(to_numpy(gradient[0]), grad_logits.T @ HIDDEN, **HALF)
    assert (gradient[0].dtype, precision_outside()) == (ms.float32, ms.float32)


@pytest.mark.parametrize("gradient_in_forward", [False, True])
def test_chunks_under_level_auto(gradient_in_forward, backend, mode):
    """It makes products of 16 bits, as those of nn.Dense; what sums them is float32."""
    loss = ms_ce.LinearCrossEntropyLoss(
        FEATURES,
        Parameter(Tensor(TABLE), name="table"),
        chunk_bytes=400,
        gradient_in_forward=gradient_in_forward,
        backend=backend,
    )
    table, net = loss.linear_weight, LEVELS["auto"](_Network(loss))
    value, gradient = ms.value_and_grad(net, None, [table])(Tensor(HIDDEN), Tensor(LABELS))
    logits = HIDDEN @ TABLE.T
    np.testing.assert_allclose(
        to_numpy(value), reference.cross_entropy(logits, LABELS).loss, rtol=5e-3
    )
    grad_logits = reference.cross_entropy_grad(logits, LABELS).logits
    np.testing.assert_allclose(to_numpy(gradient[0]), grad_logits.T @ HIDDEN, **HALF)
