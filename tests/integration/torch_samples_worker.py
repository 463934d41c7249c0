"""The inputs on which torch tests its own losses, and its float64 results there; needs torch and expecttest.

python torch_samples_worker.py FOLDER DTYPE...

The inputs are those of torch.testing's op_db and module_db, rounded to each dtype.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

FUNCTIONS = {
    "nn.functional.cross_entropy": "cross_entropy",
    "nn.functional.nll_loss": "nll_loss",
    "nn.CrossEntropyLoss": "cross_entropy",
    "nn.NLLLoss": "nll_loss",
}


def samples():
    """(name, function, input, target, options), in float64."""
    settings = {"device": "cpu", "dtype": torch.float64, "requires_grad": True}
    for operator in op_db:
        if operator.name in FUNCTIONS:
            drawn = operator.sample_inputs("cpu", torch.float64, requires_grad=True)
            for index, sample in enumerate(drawn):
                name = f"{operator.name} {index}"
                yield name, FUNCTIONS[operator.name], sample.input, *sample.args, sample.kwargs
    for module in module_db:
        if module.name in FUNCTIONS:
            drawn = module.module_inputs_func(module, training=True, **settings)
            for index, sample in enumerate(drawn):
                options = sample.constructor_input.kwargs
                assert not sample.constructor_input.args
                assert not sample.forward_input.kwargs
                name = f"{module.name} {index} {sample.desc}"
                yield name, FUNCTIONS[module.name], *sample.forward_input.args, options


def rounded(tensor, dtype: torch.dtype):
    """A leaf of its own, with the values that the dtype holds."""
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.detach().to(dtype).double()


def compute(function: str, logits, target, weight, options: dict) -> dict[str, np.ndarray]:
    """The tensors, the upstream gradient, and what torch makes of them."""
    logits.requires_grad_()
    if target.is_floating_point():
        target.requires_grad_()
    loss = getattr(functional, function)(logits, target, weight, **options)
    upstream = rounded(torch.rand_like(loss) + 0.5, torch.bfloat16)  # exact in every dtype
    loss.backward(upstream)
    results = {"logits": logits, "target": target, "upstream": upstream, "loss": loss}
    results["grad_logits"] = logits.grad
    if weight is not None:
        results["weight"] = weight
    if target.is_floating_point():
        results["grad_target"] = target.grad
    return {name: value.detach().numpy() for name, value in results.items()}


def main() -> None:
    folder, dtypes = Path(sys.argv[1]), sys.argv[2:]
    torch.manual_seed(20)
    calls = []
    for name, function, logits, target, options in samples():
        options = dict(options)
        weight = options.pop("weight", None)
        for dtype in dtypes:
            tensors = [rounded(x, getattr(torch, dtype)) for x in (logits, target, weight)]
            np.savez(folder / f"{len(calls)}.npz", **compute(function, *tensors, options))
            calls.append({"name": name, "function": function, "dtype": dtype, "options": options})
    (folder / "calls.json").write_text(json.dumps(calls))


if __name__ == "__main__":
    main()
