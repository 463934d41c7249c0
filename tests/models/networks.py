"""One network of each library, with random weights: `step()` returns (loss, gradients) and moves the weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 0.1
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "use_cache": False,
}


def _tokens(vocabulary: int, sequences: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and labels that leave out the first quarter of each sequence, as a prompt is."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, (sequences, length)).astype(np.int32)
    labels = tokens.copy()
    labels[:, : length // 4] = -100
    return tokens, labels


def _stepping(gradient: Callable, parameters: list) -> Callable:
    """SGD on MindSpore's parameters."""
    import mindspore as ms

    def step():
        loss, gradients = gradient()
        made = [each.asnumpy().copy() for each in gradients]
        for parameter, each in zip(parameters, made, strict=True):
            parameter.set_data(ms.Tensor(parameter.asnumpy() - RATE * each))
        return float(loss), made

    return step


def mindcv(size) -> Callable:
    import mindspore as ms
    from mindcv.loss import create_loss
    from mindcv.models import create_model

    ms.set_seed(0)
    network, loss = create_model("resnet18", num_classes=10), create_loss("CE", label_smoothing=0.1)
    network.set_train()
    random = np.random.default_rng(0)
    images = ms.Tensor(random.normal(size=(8, 3, 32, 32)).astype(np.float32))
    labels = ms.Tensor(random.integers(0, 10, 8).astype(np.int32))

    def forward():
        return loss(network(images), labels)

    parameters = list(network.trainable_params())
    return _stepping(ms.value_and_grad(forward, None, parameters), parameters)


def mindone(size) -> Callable:
    from tests.models import cpu_operators

    cpu_operators.install()
    import mindspore as ms
    from mindone.transformers.models.llama.modeling_llama import LlamaForCausalLM
    from transformers import LlamaConfig

    ms.set_seed(0)
    config = LlamaConfig(vocab_size=size[0], **LLAMA)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    _draw(model.trainable_params())
    model.set_train()
    tokens, labels = (ms.Tensor(each) for each in _tokens(*size))

    def forward():
        return model(input_ids=tokens, labels=labels, use_cache=False, return_dict=False)[0]

    parameters = list(model.trainable_params())
    return _stepping(ms.value_and_grad(forward, None, parameters), parameters)


def mindnlp(size) -> Callable:
    import mindnlp  # noqa: F401  it makes torch mindtorch
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=size[0], **LLAMA)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    model.train()
    tokens, labels = (torch.tensor(each.astype(np.int64)) for each in _tokens(*size))

    def forward():
        return model(input_ids=tokens, labels=labels).loss

    parameters = list(model.parameters())
    gradient = torch.autograd.value_and_grad(forward, parameters, attach_grads=False)

    def step():
        loss, gradients = gradient()
        for parameter, each in zip(parameters, gradients, strict=True):
            parameter.copy_(torch.tensor(parameter.asnumpy() - RATE * each.asnumpy()))
        return float(loss), [each.asnumpy().copy() for each in gradients]

    return step


def mindformers(size) -> Callable:
    """GPTModel with a decoder of one layer in place of its own, whose FlashAttentionScore has no CPU kernel."""
    from tests.models import cpu_operators, hyper_parallel_stand_in

    hyper_parallel_stand_in.install()
    cpu_operators.install_for_mindformers()
    import mindspore as ms

    from tests.models.gpt import tiny_gpt

    model = tiny_gpt(size[0], size[2], LLAMA["hidden_size"])
    _draw(model.trainable_params())
    model.set_train()
    tokens, labels = _tokens(*size)
    mask = ms.Tensor((labels >= 0).astype(np.float32))
    tokens, labels = ms.Tensor(tokens), ms.Tensor(np.maximum(labels, 0))

    def forward():
        return model(tokens, labels=labels, loss_mask=mask)[0].sum()

    parameters = list(model.trainable_params())
    return _stepping(ms.value_and_grad(forward, None, parameters), parameters)


def _draw(parameters) -> None:
    """The same weights in every process."""
    import mindspore as ms

    random = np.random.default_rng(1)
    for parameter in parameters:
        if parameter.ndim > 1:
            values = 0.02 * random.normal(size=parameter.shape)
            parameter.set_data(ms.Tensor(values.astype(np.float32)))
