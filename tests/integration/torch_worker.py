"""torch's loss and gradients of the cases that torch_run.py wrote; needs torch and numpy only.

python torch_worker.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch


def compute(arrays: dict, dtype: str, options: dict) -> dict[str, np.ndarray]:
    """Loss, and the gradients of the inputs that have one."""
    tensors = {}
    for name, values in arrays.items():
        tensor = torch.from_numpy(values)
        if tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, dtype))
        tensors[name] = tensor if tensor.is_floating_point() else tensor.long()
    for name in ("logits", "input", "linear_weight", "linear_bias"):
        if name in tensors:
            tensors[name].requires_grad_()
    # torch has no derivative by the weight beside class indices.
    if tensors["target"].is_floating_point():
        tensors["target"].requires_grad_()
    upstream, target = tensors.pop("grad_loss"), tensors.pop("target")
    if "logits" in tensors:
        loss = torch.nn.functional.cross_entropy(
            tensors["logits"], target, tensors.get("weight"), **options
        )
    else:
        first, linear_weight = tensors.pop("input"), tensors.pop("linear_weight")
        loss = torch.nn.functional.linear_cross_entropy(
            first, linear_weight, target, **tensors, **options
        )
        tensors |= {"input": first, "linear_weight": linear_weight}
    loss.backward(upstream)
    tensors["target"] = target
    results = {"loss": loss.detach()}
    results |= {name: value.grad for name, value in tensors.items() if value.requires_grad}
    return {name: value.double().numpy() for name, value in results.items()}


def main() -> None:
    folder = Path(sys.argv[1])
    for request in json.loads((folder / "requests.json").read_text()):
        with np.load(folder / f"{request['name']}.npz") as arrays:
            results = compute(dict(arrays), request["dtype"], request["options"])
        np.savez(folder / f"{request['name']}.result.npz", **results)


if __name__ == "__main__":
    main()
