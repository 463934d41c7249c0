"""Log-probabilities and entropies, from logits and from hidden states, against the float64 reference."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from ms_ce import reference
from tests.integration.conftest import DTYPES, to_numpy, to_tensor
from tests.integration.linear_cases import loop_in_a_bprop
from tests.support.linear_tolerances import check_linear
from tests.support.tolerances import check_close, tolerance

SHAPES = ((9,), (6, 13), (2, 5, 130))
# As the functions are called, and what that is to the reference.
OPTIONS = {
    "plain": ({}, {}),
    "temperature": ({"temperature": 0.7}, {"logit_scale": 1 / 0.7}),
    "everything": (
        {"temperature": 1.5, "softcap": 4.0, "logit_scale": 0.8, "ignore_index": 3},
        {"softcap": 4.0 / 1.5, "logit_scale": 0.8 / 1.5, "ignore_index": 3},
    ),
}


def upstreams(shape):
    random = np.random.default_rng(2)
    return random.normal(size=shape).astype(np.float32), random.normal(size=shape).astype(
        np.float32
    )


def gradient(logits, target, of_log_prob, of_entropy, options):
    """Of Σ of_log_prob·log_prob + of_entropy·entropy by logits (N, C)."""
    by_rows = reference.cross_entropy_grad(
        logits, target, reduction="none", **options, grad_loss=-of_log_prob.reshape(-1)
    ).logits
    return by_rows + reference.entropy_grad(logits, target, of_entropy.reshape(-1), **options)


def draw(shape, dtype, ignored):
    random = np.random.default_rng(1)
    logits = random.normal(scale=2, size=shape)
    flat = logits.reshape(-1, shape[-1])
    flat[0, 1] = -np.inf  # a class without probability
    target = np.array(random.integers(2, shape[-1], shape[:-1]))
    if target.ndim:
        target.reshape(-1)[1] = ignored
    return to_numpy(to_tensor(logits, dtype)).astype(np.float64), target


def wide(dtype):
    return "float64" if dtype == "float64" else "float32"


def _cases():
    for backend in ("cpu", "composed"):
        for dtype in DTYPES:
            for shape in SHAPES:
                for name in OPTIONS:
                    yield pytest.param(shape, name, dtype, backend, "pynative")
                    if name == "everything" and dtype in ("float32", "bfloat16"):
                        yield pytest.param(shape, name, dtype, backend, "jit")


@pytest.mark.parametrize(
    ("shape", "name", "dtype", "backend", "run"), list(_cases()), indirect=["run"]
)
def test_of_logits(shape, name, dtype, backend, run):
    options, expected_options = OPTIONS[name]
    logits, target = draw(shape, dtype, options.get("ignore_index", -100))
    rows, labels = logits.reshape(-1, shape[-1]), target.reshape(-1)
    upstream = upstreams(target.shape)

    def both(logits, target):
        return ms_ce.token_log_probs(logits, target, entropy=True, backend=backend, **options)

    def total(logits, target, of_log_prob, of_entropy):
        log_prob, entropy = both(logits, target)
        return (log_prob * of_log_prob).sum() + (entropy * of_entropy).sum()

    tensors = (to_tensor(logits, dtype), to_tensor(target))
    bound = tolerance(backend, wide(dtype), "softcap" in options)
    bound = bound._replace(absolute=4 * bound.absolute)
    log_prob, entropy = run(both, *tensors)
    assert log_prob.shape == entropy.shape == target.shape
    assert str(log_prob.dtype).lower() == wide(dtype)
    expected = reference.token_log_probs(rows, labels, **expected_options)
    for what, actual, value in zip(
        ("log_prob", "entropy"), (log_prob, entropy), expected, strict=True
    ):
        check_close(to_numpy(actual), value.reshape(target.shape), wide(dtype), bound, what)
    actual = run(ms.grad(total), *tensors, *[Tensor(each) for each in upstream])
    exact = gradient(rows, labels, *upstream, expected_options).reshape(shape)
    bound = tolerance(backend, dtype, "softcap" in options)
    bound = bound._replace(absolute=8 * bound.absolute)
    check_close(to_numpy(actual), exact, dtype, bound, "gradient")


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_entropy(dtype, backend):
    """The same log-probabilities, and their gradient alone."""
    logits, target = draw((6, 13), dtype, -100)
    upstream = upstreams(target.shape)[0]
    tensors = (to_tensor(logits, dtype), to_tensor(target))

    def total(logits, target):
        return (ms_ce.token_log_probs(logits, target, backend=backend) * Tensor(upstream)).sum()

    bound = tolerance(backend, wide(dtype))
    log_prob = ms_ce.token_log_probs(*tensors, backend=backend)
    expected = reference.token_log_probs(logits, target)[0]
    check_close(to_numpy(log_prob), expected, wide(dtype), bound, "log_prob")
    exact = gradient(logits, target, upstream, np.zeros_like(upstream), {})
    actual = to_numpy(ms.grad(total)(*tensors))
    check_close(actual, exact, dtype, tolerance(backend, dtype), "gradient")


@loop_in_a_bprop(run="jit", chunk_bytes=3 * 31 * 4)
@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("chunk_bytes", (3 * 31 * 4, None))
@pytest.mark.parametrize("shift", (False, True))
@pytest.mark.parametrize(
    ("dtype", "entropy"), [("float32", False), ("float32", True), ("bfloat16", True)]
)
def test_of_hidden_states(dtype, shift, chunk_bytes, entropy, backend, run):
    random = np.random.default_rng(3)
    hidden, table, bias = (
        to_numpy(to_tensor(random.normal(size=size), dtype)).astype(np.float64)
        for size in ((2, 6, 7), (31, 7), (31,))
    )
    target = random.integers(0, 31, (2, 6))
    target[0, 2] = target[1, 5] = -100
    rows, labels = (hidden[:, :-1], target[:, 1:]) if shift else (hidden, target)
    upstream = upstreams(labels.shape)
    logits = (rows @ table.T + bias).reshape(-1, 31)

    def both(hidden, table, target, bias):
        return ms_ce.linear_token_log_probs(
            hidden, table, target, bias, temperature=1.5, entropy=entropy, shift=shift,
            chunk_bytes=chunk_bytes, backend=backend,
        )  # fmt: skip

    def total(hidden, table, target, bias, of_log_prob, of_entropy):
        if not entropy:
            return (both(hidden, table, target, bias) * of_log_prob).sum()
        log_prob, entropies = both(hidden, table, target, bias)
        return (log_prob * of_log_prob).sum() + (entropies * of_entropy).sum()

    tensors = [to_tensor(each, dtype) for each in (hidden, table)]
    tensors += [to_tensor(target), to_tensor(bias, dtype)]
    loop = {"composed_loop": backend == "composed"}
    actual = run(both, *tensors, **loop)
    actual = actual if entropy else (actual,)
    expected = reference.token_log_probs(logits, labels.reshape(-1), logit_scale=1 / 1.5)
    for got, value in zip(actual, expected, strict=False):
        assert got.shape == labels.shape
        assert got.dtype == ms.float32
        check_linear(to_numpy(got), value.reshape(labels.shape), backend, dtype, "value")
    given = [Tensor(each) for each in upstream]
    gradients = run(ms.grad(total, (0, 1, 3)), *tensors, *given, **loop)
    of_entropy = upstream[1] if entropy else np.zeros_like(upstream[1])
    scale = {"logit_scale": 1 / 1.5}
    slope = gradient(logits, labels.reshape(-1), upstream[0], of_entropy, scale)
    by_hidden = (slope @ table).reshape(rows.shape)
    if shift:
        by_hidden = np.concatenate([by_hidden, np.zeros_like(by_hidden[:, :1])], 1)
    exact = (by_hidden, slope.T @ rows.reshape(-1, 7), slope.sum(0))
    for got, value in zip(gradients, exact, strict=True):
        check_linear(to_numpy(got), value, backend, dtype, "gradient")


@loop_in_a_bprop(run="jit")
@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("frozen", (("linear_weight",), ("input",), ("input", "linear_weight")))
def test_frozen(frozen, backend, run):
    """What is frozen gets no gradient, the rest its own."""
    random = np.random.default_rng(4)
    hidden, table, bias = (
        random.normal(size=(8, 5)),
        random.normal(size=(11, 5)),
        random.normal(size=11),
    )
    target, upstream = random.integers(0, 11, 8), upstreams((8,))

    def total(hidden, table, bias, target, of_log_prob, of_entropy):
        log_prob, entropy = ms_ce.linear_token_log_probs(
            hidden, table, target, bias, entropy=True, frozen=frozen, chunk_bytes=3 * 11 * 8, backend=backend
        )  # fmt: skip
        return (log_prob * of_log_prob).sum() + (entropy * of_entropy).sum()

    tensors = [Tensor(each) for each in (hidden, table, bias, target, *upstream)]
    loop = {"composed_loop": backend == "composed"}
    gradients = run(ms.grad(total, (0, 1, 2)), *tensors, **loop)
    slope = gradient(hidden @ table.T + bias, target, *upstream, {})
    exact = {"input": slope @ table, "linear_weight": slope.T @ hidden, "linear_bias": slope.sum(0)}
    for (name, value), got in zip(exact.items(), gradients, strict=True):
        check_linear(to_numpy(got), value * (name not in frozen), backend, "float64", name)


@pytest.mark.parametrize("dtype", (ms.float32, ms.bfloat16), ids=str)
def test_a_row_has_the_same_bits_in_any_batch_and_chunk(dtype):
    """As reinforcement learning needs: neither neighbours nor chunks change a row's numbers or its gradient."""
    random = np.random.default_rng(5)
    hidden, table = (random.normal(size=size).astype(np.float32) for size in ((40, 16), (300, 16)))
    table = Tensor(table).astype(dtype)
    target = random.integers(0, 300, 40).astype(np.int32)

    def total(hidden, chunk_bytes):
        log_prob, entropy = ms_ce.linear_token_log_probs(
            hidden, table, Tensor(target[: hidden.shape[0]]), entropy=True,
            chunk_bytes=chunk_bytes, backend="cpu",
        )  # fmt: skip
        return (log_prob + 0.1 * entropy).sum(), log_prob, entropy

    results = []
    for rows, chunk in ((40, None), (40, 300 * 4 * 7), (13, None), (13, 300 * 4)):
        (_, log_prob, entropy), grad = ms.value_and_grad(total, 0, has_aux=True)(
            Tensor(hidden[:rows]).astype(dtype), chunk
        )
        results.append([to_numpy(each)[:13] for each in (log_prob, entropy, grad)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


def test_second_derivatives_are_refused_or_right():
    logits, target = np.random.default_rng(6).normal(size=(3, 4)), np.array([0, 1, 3])

    def total(logits, backend):
        log_prob, entropy = ms_ce.token_log_probs(
            logits, Tensor(target), entropy=True, backend=backend
        )
        return (log_prob + entropy).sum()

    def along(logits, backend):
        return (ms.grad(total)(logits, backend) * Tensor(logits_direction)).sum()

    logits_direction = np.random.default_rng(7).normal(size=(3, 4))
    with pytest.raises(NotImplementedError, match="token_log_probs is differentiated once"):
        ms.grad(along)(Tensor(logits), "cpu")
    ms.common.api._pynative_executor.clear_res()
    one = np.ones(3)

    def first(point):
        return gradient(point, target, one, one, {})

    step = 1e-6 * logits_direction
    expected = (first(logits + step) - first(logits - step)) / 2e-6
    actual = to_numpy(ms.grad(along)(Tensor(logits), "composed"))
    np.testing.assert_allclose(actual, expected, atol=1e-8)


X, Y = Tensor(np.zeros((2, 3), np.float32)), Tensor(np.array([0, 1], np.int32))
MESSAGES = [
    (lambda: ms_ce.token_log_probs(X, Y, temperature=0.0), ValueError, "temperature must be above 0, got 0.0"),
    (lambda: ms_ce.token_log_probs(X, Y, temperature="1"), TypeError, "temperature must be a float"),
    (lambda: ms_ce.token_log_probs(X, Y, entropy=1), TypeError, "entropy must be True or False"),
    (lambda: ms_ce.token_log_probs(X, X), TypeError, "target must hold class indices .*cast them"),
    (lambda: ms_ce.token_log_probs(X, Y[0]), ValueError, "target must have 1 dimensions"),
    (lambda: ms_ce.token_log_probs(X, Y[:1]), ValueError, r"target must have shape \(2,\)"),
    (lambda: ms_ce.token_log_probs(None, Y), TypeError, "logits must be a mindspore.Tensor"),
    (lambda: ms_ce.linear_token_log_probs(X, X, X), TypeError, "target must hold class indices"),
    (lambda: ms_ce.linear_token_log_probs(X, X[:, :2], Y), ValueError, "linear_weight must have shape"),
    (lambda: ms_ce.linear_token_log_probs(X, X, Y, frozen=("x",)), ValueError, "frozen must hold"),
    (lambda: ms_ce.linear_token_log_probs(X, X, Y, temperature=-1), ValueError, "temperature must be above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), MESSAGES)
def test_messages(call, error, text):
    with pytest.raises(error, match=f"token_log_probs: {text}"):
        call()


def test_a_label_out_of_range(backend):
    with pytest.raises((RuntimeError, ValueError), match=r"target 6 at position \(0,\)"):
        ms_ce.token_log_probs(X, Y + 6, backend=backend).asnumpy()
    with pytest.raises((RuntimeError, ValueError), match=r"target 6 at position \(0,\)"):
        ms_ce.linear_token_log_probs(X, X, Y + 6, backend=backend).asnumpy()
