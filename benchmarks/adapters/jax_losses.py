"""optax's softmax cross-entropy under jax.jit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def _loss(case: dict[str, Any], ignore_index: int) -> Any:
    """The mean loss as a user of optax writes it; work that a case does not need is left out."""
    smoothing = case["label_smoothing"]

    def probabilities(logits: jax.Array, target: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(logits, target, axis=1).mean()

    def classes(logits: jax.Array, target: jax.Array) -> jax.Array:
        safe = jnp.where(target == ignore_index, 0, target) if case["ignored"] else target
        if smoothing:
            labels = optax.smooth_labels(
                jax.nn.one_hot(safe, logits.shape[1], axis=1, dtype=logits.dtype), smoothing
            )
            losses = optax.softmax_cross_entropy(logits, labels, axis=1)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe, axis=1)
        return losses.mean(where=target != ignore_index) if case["ignored"] else losses.mean()

    return probabilities if case["target"] == "probability" else classes


class Losses:
    def __init__(self, settings: dict[str, str]) -> None:
        jax.config.update("jax_platforms", "cpu")

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__, "optax": optax.__version__}

    def load(
        self, logits: np.ndarray, target: np.ndarray, case: dict[str, Any], ignore_index: int
    ) -> None:
        dtype = jnp.dtype(case["dtype"])
        self.logits = jnp.asarray(logits, dtype)
        self.target = jnp.asarray(target, dtype if case["target"] == "probability" else jnp.int32)
        loss = _loss(case, ignore_index)
        self.computations = {
            "forward": jax.jit(loss),
            "forward_backward": jax.jit(jax.value_and_grad(loss)),
        }

    def run(self, computation: str) -> Any:
        return jax.block_until_ready(self.computations[computation](self.logits, self.target))

    def answer(self, result: Any) -> tuple[float, np.ndarray | None]:
        if not isinstance(result, tuple):
            return float(result), None
        return float(result[0]), np.asarray(result[1], np.float32)
