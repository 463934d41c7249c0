"""Text from a trained language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn

from .data import Corpus


def generate(
    model: nn.Cell,
    corpus: Corpus,
    prompts: Sequence[str],
    length: int,
    context: int,
    temperature: float = 0.7,
    seed: int = 0,
) -> list[str]:
    """Every prompt continued by ``length`` characters, all of them side by side in one batch.

    The prompts have at most ``context`` characters. The batch always holds ``context`` tokens, so
    that one compiled graph serves every step: what stands behind the last character is padding,
    which a causal model does not look at.
    """
    generator = np.random.default_rng(seed)
    texts = [list(corpus.encode(prompt)) for prompt in prompts]
    for _ in range(length):
        windows = [text[-context:] for text in texts]
        tokens = np.zeros((len(texts), context), dtype=np.int32)
        for row, window in zip(tokens, windows, strict=True):
            row[: len(window)] = window
        logits = model(Tensor(tokens)).asnumpy().reshape(len(texts), context, -1)
        for text, window, row_logits in zip(texts, windows, logits, strict=True):
            scaled = row_logits[len(window) - 1].astype(np.float64) / temperature
            probability = np.exp(scaled - scaled.max())
            probability /= probability.sum()
            text.append(int(generator.choice(len(probability), p=probability)))
    return [corpus.decode(np.array(text)) for text in texts]
