"""A training step of the demo's language model with a large vocabulary: with its logits and without.

    python benchmarks/training_step.py            about two minutes
    python benchmarks/training_step.py --rows 2048 --vocabulary 32000

Forward, backward and AdamW in graph mode. Each way is measured in a process of its own, in turn, and the
losses of the first steps are compared before a number is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "logits, mindspore.ops.cross_entropy": "mindspore",
    "logits, ms_ce.CrossEntropyLoss": "ms_ce",
    "no logits, ms_ce.LinearCrossEntropyLoss": "linear",
}
CONTEXT, WARM_UP, TIMED, ROUNDS = 128, 2, 3, 3
LOSS_TOLERANCE = 1e-4


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measure(way: str, rows: int, vocabulary: int, width: int) -> dict[str, Any]:
    """Seconds of the steps, growth of the resident memory over all of them, and their losses."""
    sys.path.insert(0, str(ROOT / "examples"))
    import mindspore as ms
    import numpy as np
    from language_model.model import LanguageModel, ModelConfig
    from language_model.training import LanguageModelLoss, TrainingConfig, create_optimizer
    from mindspore import Tensor, nn, ops

    import ms_ce

    class LogitsLoss(nn.Cell):
        def __init__(self, model: LanguageModel) -> None:
            super().__init__()
            self.model = model
            ours, theirs = ms_ce.CrossEntropyLoss(), ops.cross_entropy
            self.cross_entropy = ours if way == "ms_ce" else theirs

        def construct(self, tokens: Tensor, targets: Tensor) -> Tensor:
            return self.cross_entropy(self.model(tokens), targets.reshape(-1))

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    model = LanguageModel(ModelConfig(vocabulary, CONTEXT, width, layers=2))
    loss = LanguageModelLoss(model) if way == "linear" else LogitsLoss(model)
    optimizer = create_optimizer(model.trainable_params(), TrainingConfig())
    step = nn.TrainOneStepCell(loss, optimizer).set_train()
    shape = (rows // CONTEXT, CONTEXT)
    ids = np.random.default_rng(0).integers(0, vocabulary, (2, *shape), dtype=np.int32)
    tokens, targets = Tensor(ids[0]), Tensor(ids[1])
    before = memory("VmRSS")
    losses, seconds = [], []
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        losses.append(float(step(tokens, targets)))
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[WARM_UP:], "bytes": memory("VmHWM") - before, "losses": losses}


def measure_in_subprocess(way: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way]
    for name in ("rows", "vocabulary", "width"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(options: argparse.Namespace) -> str:
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS.values()}
    for _ in range(ROUNDS):
        for way, results in runs.items():
            results.append(measure_in_subprocess(way, options))
    first = runs["mindspore"][0]["losses"]
    for way, results in runs.items():
        difference = max(abs(a - b) for a, b in zip(results[0]["losses"], first, strict=True))
        if not difference <= LOSS_TOLERANCE:
            raise AssertionError(f"{way}: the losses are {difference:.1e} off MindSpore's own")
    logits = options.rows * options.vocabulary * 4 / 1e6
    lines = [
        f"{options.rows} tokens, vocabulary {options.vocabulary}, width {options.width}, 2 layers; "
        f"the logits are {logits:.0f} MB.",
        "",
        "| loss of the step | step, ms | memory beyond the parameters, MB |",
        "|---|---:|---:|",
    ]
    for name, way in WAYS.items():
        seconds = statistics.median(s for result in runs[way] for s in result["seconds"])
        growth = statistics.median(result["bytes"] for result in runs[way])
        lines.append(f"| {name} | {1e3 * seconds:.0f} | {growth / 1e6:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048, help=f"a multiple of {CONTEXT}")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--way", choices=WAYS.values(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.rows, options.vocabulary, options.width)))
    else:
        print(table(options))


if __name__ == "__main__":
    main()
