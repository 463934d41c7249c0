"""What has no second derivative is refused by our sentence: never 0, never a nan that a graph's compiler drops."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce

_random = np.random.default_rng(0)
LOGITS, HIDDEN, TABLE, BIAS = (
    Tensor(_random.normal(size=shape).astype(np.float32))
    for shape in ((6, 5), (6, 4), (5, 4), (5,))
)
LABELS = Tensor(np.array([0, 1, 2, 3, 4, -100], np.int32))


def _tokens(x):
    return ms_ce.token_log_probs(x, LABELS, temperature=0.7, entropy=True, backend="cpu")[1]


def _linear(x):
    return ms_ce.linear_cross_entropy(x, TABLE, LABELS, BIAS, backend="cpu")


def _linear_bias(x):
    return ms_ce.linear_cross_entropy(
        HIDDEN, TABLE, LABELS, x, gradient_in_forward=True, backend="cpu"
    )


def _linear_tokens(x):
    return ms_ce.linear_token_log_probs(HIDDEN, x, LABELS, backend="cpu")


def _distillation(x):
    return ms_ce.linear_distillation_loss(x, TABLE, HIDDEN, TABLE, backend="cpu")


def _distillation_bias(x):
    return ms_ce.linear_distillation_loss(
        HIDDEN, TABLE, HIDDEN, TABLE, x, beta=0.5, gradient_in_forward=True, backend="cpu"
    )


def _chunks(x):
    return ms_ce.linear_cross_entropy(x, TABLE, LABELS, chunk_bytes=40, backend="composed")


def _chunks_in_forward(x):
    return ms_ce.linear_cross_entropy(
        x, TABLE, LABELS, chunk_bytes=40, gradient_in_forward=True, backend="composed"
    )


LOSSES = {
    "token_log_probs": (_tokens, LOGITS),
    "linear": (_linear, HIDDEN),
    "linear by the bias, made in the forward pass": (_linear_bias, BIAS),
    "linear_token_log_probs by the table": (_linear_tokens, TABLE),
    "distillation": (_distillation, HIDDEN),
    "distillation by the bias, made in the forward pass": (_distillation_bias, BIAS),
    "chunks of composed": (_chunks, HIDDEN),
}


def _gradient(loss):
    def total(x):
        return loss(x).sum()

    return ms.grad(total)


# jvp and jacfwd are second derivatives in MindSpore.
TRANSFORMS = {
    "jvp": lambda loss, x: ms.jvp(loss, x, x)[1],
    "jacfwd": lambda loss, x: ms.jacfwd(loss)(x),
    "hessian": lambda loss, x: ms.jacrev(_gradient(loss))(x),
    "jacfwd of grad": lambda loss, x: ms.jacfwd(_gradient(loss))(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_refused(name, transform):
    sentence = r"ms_ce: .*(differentiated once|not vectorised)"
    with pytest.raises((NotImplementedError, RuntimeError, ValueError), match=sentence):
        TRANSFORMS[transform](*LOSSES[name]).asnumpy()


def test_refused_each_time():
    """Until 2.9 MindSpore lost about one in ten of these gradients, each then silently 0."""

    def second(x):
        return _gradient(_chunks_in_forward)(x).sum()

    for _ in range(60):
        with pytest.raises((NotImplementedError, RuntimeError), match="differentiated once"):
            ms.grad(second)(HIDDEN).asnumpy()
