"""How the language model is trained and evaluated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor, nn

import ms_ce

from .data import Batch
from .model import LanguageModel


@dataclass(frozen=True)
class TrainingConfig:
    """The optimiser's settings; the learning rate warms up, then follows half a cosine."""

    steps: int = 800
    batch_size: int = 8
    learning_rate: float = 2e-3
    final_fraction: float = 0.05
    warm_up_steps: int = 50
    weight_decay: float = 0.1


class LanguageModelLoss(nn.Cell):
    """Mean cross entropy of the next character, in nats, without the logits of a whole batch."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.linear_cross_entropy = ms_ce.LinearCrossEntropyLoss(model.head.shape[1], model.head)

    def construct(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.linear_cross_entropy(self.model.hidden(tokens), targets.reshape(-1))


def learning_rates(config: TrainingConfig) -> list[float]:
    """The learning rate of every step."""
    step = np.arange(config.steps)
    warm_up = np.minimum(1.0, (step + 1) / config.warm_up_steps)
    cosine = 0.5 * (1 + np.cos(np.pi * step / config.steps))
    decay = config.final_fraction + (1 - config.final_fraction) * cosine
    return [float(rate) for rate in config.learning_rate * warm_up * decay]


def create_optimizer(parameters: Iterable[Parameter], config: TrainingConfig) -> nn.Optimizer:
    """AdamW; weight decay acts on matrices only, not on the scales and shifts of the norms."""
    parameters = list(parameters)
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.ndim >= 2],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for parameter in parameters if parameter.ndim < 2],
            "weight_decay": 0.0,
        },
    ]
    return nn.AdamWeightDecay(groups, learning_rate=learning_rates(config), beta2=0.99)


def mean_loss(loss: nn.Cell, batches: Iterable[Batch]) -> float:
    """The mean of ``loss`` over batches of one size."""
    return float(np.mean([loss(Tensor(x), Tensor(y)).asnumpy() for x, y in batches]))
