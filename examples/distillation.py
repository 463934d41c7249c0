"""A student learns a teacher's distribution from hidden states; the logits of neither are ever whole.

Run ``python examples/distillation.py``; ``--beta 1`` for reverse KL, ``--beta 0.5`` for Jensen-Shannon.
"""

from __future__ import annotations

import argparse

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

import ms_ce

VOCABULARY, TEACHER_WIDTH, STUDENT_WIDTH, TOKENS = 2000, 48, 16, 96


class Student(nn.Cell):
    """Narrow hidden states, of the teacher's here, and a table of its own."""

    def __init__(self, random: np.random.Generator):
        super().__init__()
        self.narrow = nn.Dense(TEACHER_WIDTH, STUDENT_WIDTH)
        table = random.normal(size=(VOCABULARY, STUDENT_WIDTH)) / STUDENT_WIDTH**0.5
        self.table = Parameter(Tensor(table, ms.float32), name="table")

    def construct(self, features: Tensor) -> Tensor:
        return self.narrow(features)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--beta", type=float, default=0.0)
    arguments.add_argument("--temperature", type=float, default=2.0)
    arguments.add_argument("--steps", type=int, default=40)
    chosen = arguments.parse_args()
    ms.set_device("CPU")
    ms.set_seed(0)
    random = np.random.default_rng(0)
    teacher = Tensor(random.normal(size=(4, TOKENS, TEACHER_WIDTH)), ms.float32)
    table = random.normal(size=(VOCABULARY, TEACHER_WIDTH)) / TEACHER_WIDTH**0.5
    teacher_table = Tensor(2 * table, ms.float32)
    mask = Tensor(np.arange(TOKENS) >= 16, ms.float32).broadcast_to((4, TOKENS))  # not the prompt

    student = Student(random)
    optimizer = nn.Adam(student.trainable_params(), learning_rate=0.02)

    def loss(features: Tensor) -> Tensor:
        return ms_ce.linear_distillation_loss(
            student(features),
            student.table,
            teacher,
            teacher_table,
            beta=chosen.beta,
            temperature=chosen.temperature,
            row_weight=mask,
        )

    step = ms.value_and_grad(loss, None, optimizer.parameters)
    for number in range(chosen.steps):
        value, gradients = step(teacher)
        optimizer(gradients)
        if number in (0, chosen.steps - 1):
            print(f"step {number}: divergence {float(value):.4f}")


if __name__ == "__main__":
    main()
