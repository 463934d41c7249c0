"""English text that ships inside CPython, as batches of character ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

import numpy as np

PARAGRAPHS_PER_BLOCK = 20
VALIDATION_EVERY = 10

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Corpus:
    """The characters of a text as ids, split into a training and a validation part."""

    alphabet: str
    training: np.ndarray
    validation: np.ndarray

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``, int32; a character outside the alphabet raises KeyError."""
        ids = {character: index for index, character in enumerate(self.alphabet)}
        return np.array([ids[character] for character in text], dtype=np.int32)

    def decode(self, ids: np.ndarray) -> str:
        return "".join(self.alphabet[index] for index in ids)


def load_corpus() -> Corpus:
    """The help texts of ``pydoc``: the Python language reference.

    The topics quote one another, so each paragraph is kept once; otherwise the model would be
    validated on paragraphs it was trained on. The subject changes from topic to topic, so the
    validation blocks are spread evenly over the text.
    """
    text = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = list(dict.fromkeys(text.split("\n\n")))
    blocks = [
        "\n\n".join(paragraphs[start : start + PARAGRAPHS_PER_BLOCK]) + "\n\n"
        for start in range(0, len(paragraphs), PARAGRAPHS_PER_BLOCK)
    ]
    validation = "".join(blocks[VALIDATION_EVERY - 1 :: VALIDATION_EVERY])
    del blocks[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
    empty = np.empty(0, dtype=np.int32)
    unsplit = Corpus("".join(sorted(set(text))), empty, empty)
    return Corpus(unsplit.alphabet, unsplit.encode("".join(blocks)), unsplit.encode(validation))


def random_batches(ids: np.ndarray, batch_size: int, context: int, seed: int) -> Iterator[Batch]:
    """Endless pairs (tokens, next tokens), each int32 of shape (batch_size, context)."""
    generator = np.random.default_rng(seed)
    window = np.arange(context)
    while True:
        positions = generator.integers(0, len(ids) - context, size=(batch_size, 1)) + window
        yield ids[positions], ids[positions + 1]


def consecutive_batches(ids: np.ndarray, batch_size: int, context: int) -> Iterator[Batch]:
    """The text once, in windows that do not overlap; an incomplete last batch is left out."""
    batch_count = (len(ids) - 1) // (batch_size * context)
    used = batch_count * batch_size * context
    shape = (batch_count, batch_size, context)
    yield from zip(ids[:used].reshape(shape), ids[1 : used + 1].reshape(shape), strict=True)


def bigram_cross_entropy(corpus: Corpus) -> float:
    """Validation loss in nats per character of predicting from the previous character alone.

    The probabilities are the pair counts of the training text, each count raised by one so that
    no pair is impossible.
    """
    size = len(corpus.alphabet)
    counts = np.ones((size, size))
    np.add.at(counts, (corpus.training[:-1], corpus.training[1:]), 1)
    log_probability = np.log(counts / counts.sum(axis=1, keepdims=True))
    return float(-log_probability[corpus.validation[:-1], corpus.validation[1:]].mean())
