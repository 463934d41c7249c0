"""Accumulate gradients over micro-batches that hold different numbers of tokens.

Run ``python examples/gradient_accumulation.py``. The mean over a step's tokens divides the sum of all their losses by
the number of all of them. `total_weight` gives each micro-batch that number, so that its loss is its share of the
mean. A mean of the micro-batches' means is another number: tokens of short answers count for more.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import ms_ce

VOCABULARY, WIDTH, IGNORED = 500, 32, -100
LENGTHS = (30, 4, 11, 1)  # tokens that count, in each micro-batch


def micro_batches(generator: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
    """(tokens, labels) of shape (1, 32) each; labels behind the answer are IGNORED."""
    batches = []
    for length in LENGTHS:
        tokens = generator.integers(0, VOCABULARY, (1, 32))
        labels = np.where(np.arange(32) < length, np.roll(tokens, -1, axis=1), IGNORED)
        batches.append((Tensor(tokens, ms.int32), Tensor(labels, ms.int32)))
    return batches


class LanguageModel(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Dense(WIDTH, WIDTH)
        self.loss = ms_ce.LinearCrossEntropyLoss(WIDTH, VOCABULARY)

    def construct(self, tokens, labels, total_weight):
        hidden = self.layer(self.embedding(tokens))
        return self.loss(hidden, labels, total_weight=total_weight)


def largest_difference(gradients, right) -> float:
    """In parts of the largest right gradient."""
    differences = [float((a - b).abs().max()) for a, b in zip(gradients, right, strict=True)]
    return max(differences) / max(float(one.abs().max()) for one in right)


def main() -> None:
    ms.set_device("CPU")
    ms.set_seed(0)
    model = LanguageModel().set_train()
    parameters = model.trainable_params()
    value_and_grad = ms.jit(ms.value_and_grad(model, None, parameters))
    batches = micro_batches(np.random.default_rng(0))

    def accumulate(divisors):
        """Loss and gradients, added up over the micro-batches."""
        loss, total = 0.0, [ms.ops.zeros_like(one) for one in parameters]
        for (tokens, labels), divisor in zip(batches, divisors, strict=True):
            part, gradients = value_and_grad(tokens, labels, Tensor(divisor, ms.float32))
            loss += float(part)
            total = [one + more for one, more in zip(total, gradients, strict=True)]
        return loss, total

    # Known before the first micro-batch runs, from the labels alone.
    all_tokens = sum(LENGTHS)
    right = accumulate([all_tokens] * len(batches))
    means = accumulate([len(batches) * length for length in LENGTHS])

    tokens, labels = (ms.ops.concat(parts) for parts in zip(*batches, strict=True))
    whole = value_and_grad(tokens, labels, Tensor(all_tokens, ms.float32))
    print(f"one batch of all tokens:   loss {float(whole[0]):.4f}")
    for name, (loss, gradients) in (("sums over all tokens", right), ("mean of means", means)):
        difference = largest_difference(gradients, whole[1])
        print(f"{name + ':':26} loss {loss:.4f}, gradients differ by {difference:.1e}")


if __name__ == "__main__":
    main()
