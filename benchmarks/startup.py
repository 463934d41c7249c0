"""What ms_ce costs before the first step: its import, and compiling a loss with its gradient.

    python benchmarks/startup.py                       about a minute
    python benchmarks/startup.py --beside <checkout>   another ms_ce too, in turn with this one

All figures are processor time, the least of all rounds. A round is a fresh process of each checkout. MindSpore's own
losses are compiled in the same processes, between ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS, FEATURES, CLASSES = 64, 32, 100
REPEATS = 5  # of each loss in a process; the first one reads the sources, and is not the least
IMPORT = "import ms_ce, beyond mindspore"
# What of ours stands beside what of MindSpore's.
PEERS = {
    "ms_ce.CrossEntropyLoss": "nn.CrossEntropyLoss",
    "ms_ce.LinearCrossEntropyLoss": "nn.Dense and nn.CrossEntropyLoss",
}


def measure() -> dict[str, float]:
    """Least seconds of this process, by what they are for."""
    import mindspore as ms

    start = process_time()
    import ms_ce

    seconds = {IMPORT: process_time() - start}
    import numpy as np
    from mindspore import Tensor, nn

    class Head(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.loss = nn.Dense(FEATURES, CLASSES), nn.CrossEntropyLoss()

        def construct(self, hidden: Tensor, target: Tensor) -> Tensor:
            return self.loss(self.dense(hidden), target)

    losses: dict[str, Callable[[], Any]] = {
        "ms_ce.CrossEntropyLoss": ms_ce.CrossEntropyLoss,
        "nn.CrossEntropyLoss": nn.CrossEntropyLoss,
        "ms_ce.LinearCrossEntropyLoss": lambda: ms_ce.LinearCrossEntropyLoss(FEATURES, CLASSES),
        "nn.Dense and nn.CrossEntropyLoss": Head,
    }
    random = np.random.default_rng(0)
    hidden, logits = (
        Tensor(random.normal(size=(ROWS, size)).astype(np.float32)) for size in (FEATURES, CLASSES)
    )
    target = Tensor(random.integers(0, CLASSES, ROWS, dtype=np.int32))
    ms.set_context(mode=ms.GRAPH_MODE)
    for _ in range(REPEATS):
        for name, make in losses.items():
            loss = make().set_train()
            parameters = loss.trainable_params()
            step = ms.jit(ms.value_and_grad(loss, None if parameters else 0, parameters or None))
            start = process_time()
            step(hidden if parameters else logits, target)
            seconds[name] = min(seconds.get(name, np.inf), process_time() - start)
    return seconds


def measured(checkout: Path) -> dict[str, float]:
    """The same, of a fresh process that imports the ms_ce of a checkout."""
    command = [sys.executable, __file__, "--measure"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "GLOG_v": "3"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beside", type=Path, help="another checkout, its kernel built")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure()))
        return
    checkouts = [ROOT] + ([options.beside.resolve()] if options.beside else [])
    rounds = [[measured(checkout) for checkout in checkouts] for _ in range(options.rounds)]
    for place, checkout in enumerate(checkouts):
        least = {name: min(r[place][name] for r in rounds) for name in rounds[0][place]}
        print(f"{checkout}\n  {IMPORT}: {least[IMPORT] * 1e3:.0f} ms")
        for ours, theirs in PEERS.items():
            ratio = least[ours] / least[theirs]
            print(
                f"  compiling {ours}: {least[ours] * 1e3:.0f} ms, {ratio:.2f} of the {least[theirs] * 1e3:.0f} ms of "
                f"{theirs}"
            )


if __name__ == "__main__":
    main()
