"""Time and peak memory of the loss, with ms_ce and with MindSpore's own function.

Run ``python examples/compare_losses.py``. Each implementation is measured in a process of its own,
in graph mode and on the same logits, and the answers are compared before a number is printed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

import ms_ce

IMPLEMENTATIONS = {
    "mindspore.ops.cross_entropy": ops.cross_entropy,
    "ms_ce.cross_entropy": ms_ce.cross_entropy,
}
TIMED_CALLS = 7
COMPARED_ROWS = 32
# Several times what MindSpore's own function is off in fp32 (5.7e-6 in the loss of a row, 2.3e-6
# in the gradient of a summed loss, at 32,000 classes).
LOSS_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-5


class Loss(nn.Cell):
    """One of the implementations as a Cell, so that graph mode compiles it."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.cross_entropy = IMPLEMENTATIONS[implementation]

    def construct(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.cross_entropy(logits, target)


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes.

    Linux says so in /proc; getrusage there begins with what the parent process held, which would
    hide the growth.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def random_inputs(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((rows, classes), dtype=np.float32)
    target = generator.integers(0, classes, rows, dtype=np.int32)
    return Tensor.from_numpy(logits), Tensor.from_numpy(target)


def measure(implementation: str, rows: int, classes: int, result: Path) -> None:
    """Write time, memory growth and answers of one implementation into the file ``result``."""
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    loss_and_gradient = ms.value_and_grad(Loss(implementation))
    # Compiling and loading the kernels takes memory too; a small problem gets that out of the way.
    loss_and_gradient(*random_inputs(2, classes))[1].asnumpy()

    logits, target = random_inputs(rows, classes)
    memory_before = peak_memory()
    seconds = []
    gradient = None
    for _ in range(1 + TIMED_CALLS):
        del gradient  # else two gradients would be alive at once
        start = time.perf_counter()
        loss, gradient = loss_and_gradient(logits, target)
        loss.asnumpy()
        seconds.append(time.perf_counter() - start)
    memory_growth = peak_memory() - memory_before
    # The gradient of a mean is tiny; times the number of rows it is that of a sum.
    compared = np.linspace(0, rows - 1, min(rows, COMPARED_ROWS)).astype(int)
    np.savez(
        result,
        seconds=statistics.median(seconds[1:]),
        memory_growth=memory_growth,
        loss=loss.asnumpy(),
        gradient=gradient.asnumpy()[compared] * rows,
    )


def measure_in_subprocess(implementation: str, rows: int, classes: int) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        command = [sys.executable, str(Path(__file__).resolve())]
        command += ["--rows", str(rows), "--classes", str(classes)]
        command += ["--measure", implementation, "--result", str(result)]
        subprocess.run(command, check=True)
        with np.load(result) as measured:
            return dict(measured)


def check_agreement(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Raise AssertionError where the two implementations differ: a wrong answer is not timed."""
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=0, atol=LOSS_TOLERANCE)
    np.testing.assert_allclose(
        ours["gradient"], theirs["gradient"], rtol=0, atol=GRADIENT_TOLERANCE
    )


def comparison_table(rows: int, classes: int) -> str:
    """Measure both implementations and lay the figures out as a table."""
    results = {
        implementation: measure_in_subprocess(implementation, rows, classes)
        for implementation in IMPLEMENTATIONS
    }
    theirs, ours = results.values()
    check_agreement(ours, theirs)
    megabytes = rows * classes * 4 / 1e6
    lines = [
        f"Loss forward and backward, {rows} x {classes} fp32, graph mode, "
        f"median of {TIMED_CALLS} calls, each in its own process.",
        f"The logits are {megabytes:.0f} MB; the growth includes their gradient, as large again.",
        f"{'':30}{'time':>12}{'speed':>8}{'peak memory growth':>22}",
    ]
    for implementation, result in results.items():
        speed = theirs["seconds"] / result["seconds"]
        lines.append(
            f"{implementation:30}{1e3 * result['seconds']:>9.1f} ms{speed:>7.1f}x"
            f"{result['memory_growth'] / 1e6:>19.0f} MB"
        )
    gradient_difference = np.abs(ours["gradient"] - theirs["gradient"]).max()
    lines.append(
        f"Same answer: loss {float(ours['loss']):.6f} and {float(theirs['loss']):.6f}, "
        f"gradients of the summed loss differ by at most {gradient_difference:.1e}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--measure", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.rows, arguments.classes, arguments.result)
    else:
        print(comparison_table(arguments.rows, arguments.classes))


if __name__ == "__main__":
    main()
