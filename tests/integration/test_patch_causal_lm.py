"""Language models whose head leaves its product to the loss: a model of the libraries' form, without the libraries."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

import ms_ce
from ms_ce import reference
from ms_ce.patch import causal_lm
from ms_ce.patch.causal_lm import LinearLogits, without_logits
from tests.integration.conftest import to_numpy

VOCABULARY, WIDTH, SHAPE = 11, 6, (2, 5)
RANDOM = np.random.default_rng(4)
HIDDEN = RANDOM.normal(size=(*SHAPE, WIDTH)).astype(np.float32)
TABLE = RANDOM.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
LABELS = RANDOM.integers(0, VOCABULARY, SHAPE).astype(np.int32)
LABELS[0, 2] = -100


def _shifted(labels):
    padding = ops.full((labels.shape[0], 1), -100, dtype=labels.dtype)
    return ops.cat([labels[:, 1:], padding], 1)


def loss_function(logits, labels, num_items_in_batch=None, shift_labels=None):
    """As the libraries': on logits, and on hidden states where it gets them."""
    if isinstance(logits, LinearLogits):
        return causal_lm.causal_loss(logits, labels, num_items_in_batch, -100, shift_labels)
    target = _shifted(labels) if shift_labels is None else shift_labels
    reduction = "mean" if num_items_in_batch is None else "sum"
    logits = logits.astype(ms.float32).reshape(-1, VOCABULARY)
    loss = ms_ce.cross_entropy(logits, target.reshape(-1), reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


class LlamaForCausalLM(nn.Cell):
    loss_function = staticmethod(loss_function)

    def __init__(self, dtype=ms.float32):
        super().__init__()
        self.lm_head = nn.Dense(WIDTH, VOCABULARY, has_bias=False, dtype=dtype)
        self.lm_head.weight.set_data(ms.Tensor(TABLE).astype(dtype))

    def construct(self, hidden, labels=None, return_dict=False, **options):
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, **options)
        return {"loss": loss, "logits": logits} if return_dict else (loss, logits)


class OtherForCausalLM(LlamaForCausalLM):
    """A family that is not in the list."""


def call(model, *args, **keywords):
    return without_logits(
        nn.Cell.__call__, model, "construct", args, keywords, loss_function, (nn.Dense,)
    )


def made(model=None, training=True):
    model = LlamaForCausalLM() if model is None else model
    return model.set_train(training)


OPTIONS = {
    "mean": {},
    "items": {"num_items_in_batch": 16},
    "shift_labels": {"shift_labels": ms.Tensor(np.roll(LABELS, 2, 1))},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradients(options):
    model = made()
    hidden, labels = ms.Tensor(HIDDEN), ms.Tensor(LABELS)

    def gradient(function):
        def loss(hidden):
            return function(model, hidden, labels, **options)[0]

        value, gradients = ms.value_and_grad(loss, 0, [model.lm_head.weight])(hidden)
        return [to_numpy(each) for each in (value, gradients[0], gradients[1][0])]

    expected = gradient(nn.Cell.__call__)
    for ours, theirs in zip(gradient(call), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


def test_the_reference():
    target = np.concatenate([LABELS[:, 1:], np.full((2, 1), -100)], 1).reshape(-1)
    logits = (HIDDEN.astype(np.float64) @ TABLE.T.astype(np.float64)).reshape(-1, VOCABULARY)
    loss = call(made(), ms.Tensor(HIDDEN), ms.Tensor(LABELS))[0]
    expected = reference.cross_entropy(logits, target).loss
    np.testing.assert_allclose(float(loss), expected, rtol=2e-6)


def test_16_bits_are_summed_in_float32():
    """Within the rounding of single rows, 2^-11 of each, and not of the sum."""
    many = np.random.default_rng(0).normal(size=(4, 512, WIDTH)).astype(np.float16)
    labels = np.random.default_rng(1).integers(0, VOCABULARY, (4, 512)).astype(np.int32)
    loss = call(made(LlamaForCausalLM(ms.float16)), ms.Tensor(many), ms.Tensor(labels))[0]
    logits = many.astype(np.float64) @ TABLE.astype(np.float16).T.astype(np.float64)
    target = np.concatenate([labels[:, 1:], np.full((4, 1), -100)], 1)
    expected = reference.cross_entropy(logits.reshape(-1, VOCABULARY), target.reshape(-1)).loss
    assert loss.dtype == ms.float32
    np.testing.assert_allclose(float(loss), expected, rtol=2.0**-13)


@pytest.mark.parametrize("return_dict", [False, True])
def test_the_output_holds_no_logits(return_dict):
    output = call(made(), ms.Tensor(HIDDEN), ms.Tensor(LABELS), return_dict)
    assert (output["logits"] if return_dict else output[1]) is None


class Adapter(nn.Dense):
    """A layer around the head, as LoRA's."""


def _adapted() -> LlamaForCausalLM:
    model = LlamaForCausalLM()
    model.lm_head = Adapter(WIDTH, VOCABULARY)
    return model


def _with_another_loss() -> LlamaForCausalLM:
    model = LlamaForCausalLM()
    object.__setattr__(model, "loss_function", lambda logits, labels: logits.sum())
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: made(training=False),
        lambda: made(OtherForCausalLM()),
        lambda: made(_adapted()),
        lambda: made(_with_another_loss()),
    ],
    ids=["evaluation", "another family", "adapter", "another loss"],
)
def test_everywhere_else_logits_are_made(model):
    model = model()
    loss, logits = call(model, ms.Tensor(HIDDEN), ms.Tensor(LABELS))
    assert logits.shape == (*SHAPE, VOCABULARY)
    assert float(loss) == pytest.approx(
        float(nn.Cell.__call__(model, ms.Tensor(HIDDEN), ms.Tensor(LABELS))[0])
    )


def test_without_labels_logits_are_made():
    assert call(made(), ms.Tensor(HIDDEN))[1].shape == (*SHAPE, VOCABULARY)


def test_the_model_is_as_before_also_after_an_exception():
    model = made()
    before = dict(vars(model))
    call(model, ms.Tensor(HIDDEN), ms.Tensor(LABELS))
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 5\).*got \(2, 3\)"):
        call(model, ms.Tensor(HIDDEN), ms.Tensor(LABELS[:, :3]))
    assert vars(model).keys() == before.keys()
    assert isinstance(model.lm_head, nn.Dense)
