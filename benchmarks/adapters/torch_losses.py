"""torch.nn.functional.cross_entropy, eager or through torch.compile."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


class Losses:
    def __init__(self, settings: dict[str, str]) -> None:
        self.compiled = settings["mode"] == "compile"

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "torch threads": str(torch.get_num_threads())}

    def load(
        self, logits: np.ndarray, target: np.ndarray, case: dict[str, Any], ignore_index: int
    ) -> None:
        dtype = getattr(torch, case["dtype"])
        self.logits = torch.from_numpy(logits).to(dtype)
        probabilities = case["target"] == "probability"
        self.target = torch.from_numpy(target).to(dtype if probabilities else torch.int64)
        smoothing = case["label_smoothing"]

        def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            if probabilities:
                return F.cross_entropy(logits, target, label_smoothing=smoothing)
            return F.cross_entropy(
                logits, target, ignore_index=ignore_index, label_smoothing=smoothing
            )

        if self.compiled:
            torch.compiler.reset()  # else shapes of earlier cases turn into a dynamic one
            loss = torch.compile(loss)
        self.loss = loss

    def run(self, computation: str) -> Any:
        if computation == "forward":
            with torch.no_grad():
                return self.loss(self.logits, self.target)
        logits = self.logits.detach().requires_grad_()
        loss = self.loss(logits, self.target)
        loss.backward()
        return loss, logits.grad

    def answer(self, result: Any) -> tuple[float, np.ndarray | None]:
        if not isinstance(result, tuple):
            return float(result), None
        return float(result[0]), result[1].float().numpy()
