"""Train the demo's language model with its batch and its vocabulary split over processes.

Run ``make demo-sharded``, or by hand two data-parallel times two vocabulary-parallel workers on one machine:

    msrun --worker_num=4 --local_worker_num=4 --master_port=8118 --log_dir=sharded_logs --join=True \
        examples/train_sharded.py

Rank 0 shows its progress in sharded_logs/worker_0.log. At the end it trains the same model in one process and prints
how far the two loss curves lie apart; more than rounding is an error.

On one host of an Ascend cluster, with HCCL in the place of MindSpore's CPU collectives:

    msrun --worker_num=8 --local_worker_num=8 --log_dir=sharded_logs --join=True \
        examples/train_sharded.py --device Ascend --data-parallel 2 --vocabulary-parallel 4

and on several hosts the same on each, with --worker_num the number of all workers, --master_addr the address of the
first host and --node_rank the host's number. This has run on CPU only.
"""

from __future__ import annotations

import argparse
import os
import sys

import mindspore as ms
import numpy as np
from language_model.data import Batch, load_corpus, random_batches
from language_model.model import LanguageModel, ModelConfig
from language_model.training import LanguageModelLoss, TrainingConfig, create_optimizer
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import create_group, get_group_size, get_rank, init
from tqdm import tqdm

from ms_ce.parallel import SumGradient, VocabParallelCrossEntropyLoss

# Different orders of summation, through this many steps of AdamW.
CURVE_TOLERANCE = 1e-3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-parallel", type=int, default=2, help="ways to split the batch")
    parser.add_argument("--vocabulary-parallel", type=int, default=2, help="ways to split classes")
    parser.add_argument("--device", choices=("CPU", "Ascend"), default="CPU")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8, help="of all workers together")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Mesh:
    """This worker's place: workers that share rows are neighbours, and split the vocabulary."""

    def __init__(self, data_parallel: int, vocabulary_parallel: int) -> None:
        workers = data_parallel * vocabulary_parallel
        if get_group_size() != workers:
            raise ValueError(
                f"--data-parallel × --vocabulary-parallel must be the number of workers, got "
                f"{data_parallel} × {vocabulary_parallel} for {get_group_size()}"
            )
        self.data_parallel, self.vocabulary_parallel = data_parallel, vocabulary_parallel
        self.row_rank, self.class_rank = divmod(get_rank(), vocabulary_parallel)
        first = self.row_rank * vocabulary_parallel
        self.class_group = f"vocabulary {self.row_rank}"
        create_group(self.class_group, list(range(first, first + vocabulary_parallel)))
        self.row_group = f"rows {self.class_rank}"
        create_group(self.row_group, list(range(self.class_rank, workers, vocabulary_parallel)))

    def class_blocks(self, vocabulary_size: int) -> list[int]:
        """Classes that each worker of a vocabulary group holds; they need not be equal."""
        return [
            len(part)
            for part in np.array_split(np.arange(vocabulary_size), self.vocabulary_parallel)
        ]

    def my_rows(self, batch: Batch) -> list[Tensor]:
        return [Tensor(np.split(part, self.data_parallel)[self.row_rank]) for part in batch]


class ShardedLoss(nn.Cell):
    """`LanguageModelLoss` for this worker's rows and classes: the mean over the whole batch."""

    def __init__(self, model: LanguageModel, mesh: Mesh) -> None:
        super().__init__()
        self.model = model
        blocks = mesh.class_blocks(model.head.shape[0])
        begin = sum(blocks[: mesh.class_rank])
        mine = model.head.asnumpy()[begin : begin + blocks[mesh.class_rank]]
        model.head = Parameter(Tensor(mine), name="head")
        # All workers of a vocabulary group use the same hidden states, each for its own classes.
        self.shared = SumGradient(mesh.class_group)
        self.cross_entropy = VocabParallelCrossEntropyLoss(
            mesh.class_group, class_blocks=blocks, row_group=mesh.row_group
        )

    def construct(self, tokens: Tensor, targets: Tensor) -> Tensor:
        hidden = self.shared(self.model.hidden(tokens))
        logits = self.model.project(hidden, self.model.head)
        return self.cross_entropy(logits, targets.reshape(-1))


class ShardedTrainingStep(nn.Cell):
    """A training step whose gradients are summed over the workers that hold other rows."""

    def __init__(self, loss: nn.Cell, optimizer: nn.Optimizer, mesh: Mesh) -> None:
        super().__init__()
        self.loss_and_gradients = ms.value_and_grad(loss, None, optimizer.parameters)
        self.optimizer = optimizer
        self.sum = ops.AllReduce(group=mesh.row_group)
        self.map = ops.Map()

    def construct(self, tokens: Tensor, targets: Tensor) -> Tensor:
        loss, gradients = self.loss_and_gradients(tokens, targets)
        return ops.depend(loss, self.optimizer(self.map(self.sum, gradients)))


def make_model(arguments: argparse.Namespace, vocabulary_size: int) -> LanguageModel:
    """The same weights in every process."""
    ms.set_seed(arguments.seed)
    config = ModelConfig(vocabulary_size, arguments.context, arguments.width, arguments.layers)
    return LanguageModel(config)


def train(step: nn.Cell, batches, rows, steps: int, title: str) -> list[float]:
    """The loss of every step; `rows` takes a worker's part of a batch."""
    progress = tqdm(range(steps), desc=title, unit="step", disable=get_rank() != 0)
    curve = []
    for _ in progress:
        curve.append(float(step(*rows(next(batches)))))
        progress.set_postfix(loss=f"{curve[-1]:.4f}")
    return curve


def compare(sharded: list[float], single: list[float]) -> None:
    apart = float(np.abs(np.subtract(sharded, single)).max())
    print(f"loss, first and last step: {sharded[0]:.6f} {sharded[-1]:.6f} sharded")
    print(f"                           {single[0]:.6f} {single[-1]:.6f} in one process")
    if apart > CURVE_TOLERANCE:
        sys.exit(f"the loss curves lie {apart:.2e} apart, more than {CURVE_TOLERANCE:.0e}")
    print(f"the loss curves are equal: at most {apart:.1e} apart over {len(single)} steps")


def main() -> None:
    arguments = parse_arguments()
    if "MS_WORKER_NUM" not in os.environ:
        sys.exit("start this script with msrun, which sets up the workers (make demo-sharded)")
    ms.set_device(arguments.device)
    ms.set_context(mode=ms.GRAPH_MODE)
    init()
    mesh = Mesh(arguments.data_parallel, arguments.vocabulary_parallel)
    corpus = load_corpus()
    config = TrainingConfig(arguments.steps, arguments.batch_size)

    def batches():
        return random_batches(
            corpus.training, arguments.batch_size, arguments.context, arguments.seed
        )

    loss = ShardedLoss(make_model(arguments, len(corpus.alphabet)), mesh)
    optimizer = create_optimizer(loss.trainable_params(), config)
    step = ShardedTrainingStep(loss, optimizer, mesh).set_train()
    sharded = train(step, batches(), mesh.my_rows, config.steps, "sharded")
    if get_rank() == 0:
        whole = LanguageModelLoss(make_model(arguments, len(corpus.alphabet)))
        step = nn.TrainOneStepCell(whole, create_optimizer(whole.trainable_params(), config))
        single = train(
            step.set_train(),
            batches(),
            lambda batch: map(Tensor, batch),
            config.steps,
            "one process",
        )
        compare(sharded, single)


if __name__ == "__main__":
    main()
