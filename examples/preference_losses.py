"""DPO and GRPO in twenty lines each, on log-probabilities that never need the logits.

Run ``python examples/preference_losses.py``.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

import ms_ce

VOCABULARY, WIDTH, IGNORED = 32000, 64, -100


def sequence_log_prob(hidden, table, target):
    """log p of each sequence: the sum over its tokens; those of the prompt are IGNORED and count 0."""
    return ms_ce.linear_token_log_probs(hidden, table, target, shift=True).sum(axis=-1)


def dpo_loss(hidden, table, target, reference_log_prob, beta=0.1):
    """Direct preference optimisation (Rafailov et al. 2023).

    The first half of the batch holds the chosen answers, the second half the rejected ones. `reference_log_prob` is
    `sequence_log_prob` of the frozen model.
    """
    log_ratio = sequence_log_prob(hidden, table, target) - reference_log_prob
    chosen, rejected = log_ratio.chunk(2)
    return -ops.logsigmoid(beta * (chosen - rejected)).mean()


def grpo_loss(hidden, table, target, old_log_prob, advantage, clip=0.2, entropy_bonus=0.01):
    """Group-relative policy optimisation (Shao et al. 2024), clipped as in PPO, with an entropy bonus.

    `advantage` is a number a sequence: its reward less the mean of its group, over their deviation.
    """
    log_prob, entropy = ms_ce.linear_token_log_probs(
        hidden, table, target, shift=True, entropy=True
    )
    counts = (target[..., 1:] != IGNORED).astype(log_prob.dtype)
    ratio = ops.exp(log_prob - old_log_prob)
    clipped = ops.clamp(ratio, 1.0 - clip, 1.0 + clip)
    advantage = advantage.expand_dims(-1)
    gain = ops.minimum(ratio * advantage, clipped * advantage) + entropy_bonus * entropy
    per_sequence = (gain * counts).sum(axis=-1) / counts.sum(axis=-1)
    return -per_sequence.mean()


def main() -> None:
    ms.set_device("CPU")
    random = np.random.default_rng(0)
    hidden = Tensor(random.standard_normal((4, 33, WIDTH)), ms.float32)
    table = Tensor(random.standard_normal((VOCABULARY, WIDTH)) / WIDTH**0.5, ms.float32)
    target = random.integers(0, VOCABULARY, (4, 33))
    target[:, :9] = IGNORED  # the prompt
    target = Tensor(target, ms.int32)

    reference = sequence_log_prob(hidden * 0.9, table, target)
    loss, gradients = ms.value_and_grad(dpo_loss, (0, 1))(hidden, table, target, reference)
    print(f"DPO loss {float(loss):.4f}, gradient norm {float(gradients[0].norm()):.4f}")

    old = ms_ce.linear_token_log_probs(hidden * 0.99, table, target, shift=True)
    advantage = Tensor([1.0, -1.0, 0.5, -0.5], ms.float32)
    loss, gradients = ms.value_and_grad(grpo_loss, (0, 1))(hidden, table, target, old, advantage)
    print(f"GRPO loss {float(loss):.4f}, gradient norm {float(gradients[0].norm()):.4f}")


if __name__ == "__main__":
    main()
