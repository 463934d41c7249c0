"""A decoder-only transformer over characters, built from what is fast in MindSpore on CPU."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

MASKED_SCORE = -1e9


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model; ``width`` is a multiple of ``heads``."""

    vocabulary_size: int
    context: int = 128
    width: int = 128
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"ModelConfig: width must be a multiple of heads, got {self.width} and {self.heads}"
            )


def causal_distance_bias(context: int, heads: int) -> Tensor:
    """What is added to the attention scores, (heads, context, context).

    The future is masked; the past loses score in proportion to its distance, steeply in the first
    head and gently in the last (ALiBi, Press et al. 2022). This replaces position embeddings:
    the steep heads see the last few characters from the first step on.
    """
    distance = np.arange(context)[:, None] - np.arange(context)
    slopes = 4.0 ** -np.arange(heads)
    bias = np.where(distance < 0, MASKED_SCORE, -slopes[:, None, None] * distance)
    return Tensor(bias, ms.float32)


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Dense:
    """A linear layer that keeps the variance of its input, times the square of ``gain``."""
    return nn.Dense(inputs, outputs, weight_init=Normal(gain * inputs**-0.5), has_bias=False)


class Attention(nn.Cell):
    """Causal self-attention with several heads."""

    def __init__(self, config: ModelConfig, residual_gain: float) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_width = config.width // config.heads
        self.query_key_value = linear(config.width, 3 * config.width)
        self.output = linear(config.width, config.width, residual_gain)
        self.bias = causal_distance_bias(config.context, config.heads)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.average = ops.BatchMatMul()
        self.softmax = ops.Softmax(axis=-1)

    def split_heads(self, x: Tensor) -> Tensor:
        batch, context, _ = x.shape
        return x.reshape(batch, context, self.heads, self.head_width).transpose(0, 2, 1, 3)

    def construct(self, x: Tensor) -> Tensor:
        query, key, value = ops.split(self.query_key_value(x), x.shape[-1], axis=-1)
        query = self.split_heads(query * self.head_width**-0.5)
        scores = self.scores(query, self.split_heads(key)) + self.bias
        mixed = self.average(self.softmax(scores), self.split_heads(value))
        return self.output(mixed.transpose(0, 2, 1, 3).reshape(x.shape))


class FeedForward(nn.Cell):
    """Two linear layers with a squared ReLU between them (So et al. 2021).

    On CPU it is a tenth of the time of MindSpore's GELU.
    """

    def __init__(self, config: ModelConfig, residual_gain: float) -> None:
        super().__init__()
        self.up = linear(config.width, 4 * config.width)
        self.down = linear(4 * config.width, config.width, residual_gain)

    def construct(self, x: Tensor) -> Tensor:
        return self.down(ops.square(ops.relu(self.up(x))))


class DecoderBlock(nn.Cell):
    """Attention and feed-forward, each on the normalised residual stream (pre-norm)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # 2 * layers additions to the residual stream together leave its variance near one.
        residual_gain = (2 * config.layers) ** -0.5
        self.attention_norm = nn.LayerNorm((config.width,))
        self.attention = Attention(config, residual_gain)
        self.feed_forward_norm = nn.LayerNorm((config.width,))
        self.feed_forward = FeedForward(config, residual_gain)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class LanguageModel(nn.Cell):
    """Logits of the next character at every position.

    ``hidden`` and ``head`` are separate, so that a loss may take the head's matrix product over.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = (config.vocabulary_size, config.width)
        self.embedding = Parameter(initializer(Normal(0.5), shape), name="embedding")
        self.blocks = nn.CellList([DecoderBlock(config) for _ in range(config.layers)])
        self.final_norm = nn.LayerNorm((config.width,))
        # Small, so that training starts from nearly uniform predictions.
        self.head = Parameter(initializer(Normal(0.02), shape), name="head")
        self.project = ops.MatMul(transpose_b=True)

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (batch, context) int32 → hidden states (batch * context, width)."""
        x = ops.gather(self.embedding, tokens, 0)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x).reshape(-1, x.shape[-1])

    def construct(self, tokens: Tensor) -> Tensor:
        """tokens (batch, context) int32 → logits (batch * context, vocabulary_size)."""
        return self.project(self.hidden(tokens), self.head)
