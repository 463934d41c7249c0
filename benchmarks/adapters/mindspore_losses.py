"""mindspore.ops.cross_entropy and ms_ce, in graph mode or PyNative."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

import ms_ce
from ms_ce.ops.cpu import library


class MindSporeLoss(nn.Cell):
    def __init__(self, case: dict[str, Any], ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = case["label_smoothing"]

    def construct(self, logits: Tensor, target: Tensor) -> Tensor:
        return ops.cross_entropy(
            logits,
            target,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )


class FusedValueAndGrad(nn.Cell):
    """Loss and gradient of a row while it is in cache: one read of the logits instead of two."""

    def __init__(self, case: dict[str, Any], ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = case["label_smoothing"]

    def construct(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return ms_ce.cross_entropy_value_and_grad(
            logits,
            target,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            backend="cpu",
        )


def _mean(logits: Tensor, target: Tensor) -> Tensor:
    return ops.ReduceMean()(logits)


class Losses:
    def __init__(self, settings: dict[str, str]) -> None:
        ms.set_device("CPU")
        graph = settings["mode"] == "graph"
        ms.set_context(mode=ms.GRAPH_MODE if graph else ms.PYNATIVE_MODE)
        self.implementation = settings["implementation"]

    def versions(self) -> dict[str, str]:
        versions = {"mindspore": ms.__version__, "ms_ce": ms_ce.__version__}
        if library.problem() is None:
            versions["ms_ce instruction set"] = library.instruction_set()
        return versions

    def load(
        self, logits: np.ndarray, target: np.ndarray, case: dict[str, Any], ignore_index: int
    ) -> None:
        self.logits, self.target = Tensor.from_numpy(logits), Tensor.from_numpy(target)
        if case["dtype"] == "bfloat16":
            self.logits = self.logits.astype(ms.bfloat16)
            if case["target"] == "probability":
                self.target = self.target.astype(ms.bfloat16)

        def make(**options: Any) -> nn.Cell:
            if self.implementation == "mindspore":
                return MindSporeLoss(case, ignore_index)
            return ms_ce.CrossEntropyLoss(
                ignore_index=ignore_index,
                label_smoothing=case["label_smoothing"],
                backend=self.implementation,
                **options,
            )

        self.computations = {
            "forward": make(),
            "forward_backward": ms.value_and_grad(make().set_train()),
        }
        if self.implementation == "cpu":
            two_passes = make(gradient_in_forward=False).set_train()
            self.computations["two_passes"] = ms.value_and_grad(two_passes)
            self.computations["value_and_grad"] = FusedValueAndGrad(case, ignore_index)
            self.computations["floor"] = ms.value_and_grad(_mean)

    def run(self, computation: str) -> Any:
        """PyNative returns before the work is done: asnumpy waits for the last result."""
        result = self.computations[computation](self.logits, self.target)
        last = result[1] if isinstance(result, tuple) else result
        last.asnumpy()
        return result

    def answer(self, result: Any) -> tuple[float, np.ndarray | None]:
        if not isinstance(result, tuple):
            return float(result.astype(ms.float32).asnumpy()), None
        loss, gradient = result
        if gradient.dtype == ms.bfloat16:
            gradient = gradient.astype(ms.float32)
        return float(loss.astype(ms.float32).asnumpy()), gradient.asnumpy()
