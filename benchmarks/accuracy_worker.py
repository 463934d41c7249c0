"""python accuracy_worker.py LIBRARY FOLDER: losses and gradients of the inputs in FOLDER by one library, beside them.

For each case.npz the file case.LIBRARY.npz: `loss` of each row, `mean` of them and `gradient` of their sum, as float64,
or `refused`, where the library does not take the case. LIBRARY is ms_ce-cpu, ms_ce-composed, mindspore or torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def _torch():
    import torch

    def call(logits, target, dtype):
        x = torch.from_numpy(logits).to(getattr(torch, dtype)).requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(x, torch.from_numpy(target), reduction="none")
        mean = torch.nn.functional.cross_entropy(x, torch.from_numpy(target))
        (gradient,) = torch.autograd.grad(
            torch.nn.functional.cross_entropy(x, torch.from_numpy(target), reduction="sum"), x
        )
        return [each.detach().double().numpy() for each in (loss, mean, gradient)]

    return call, torch.__version__


def _of_mindspore(cross_entropy):
    import mindspore as ms

    def call(logits, target, dtype):
        # By way of float64 nothing is rounded twice: the logits are numbers of their dtype.
        x, t = ms.Tensor(logits).astype(getattr(ms, dtype)), ms.Tensor(target.astype(np.int32))
        loss, mean = (cross_entropy(x, t, reduction=each) for each in ("none", "mean"))
        gradient = ms.grad(lambda x: cross_entropy(x, t, reduction="sum"))(x)
        return [each.astype(ms.float64).asnumpy() for each in (loss, mean, gradient)]

    return call, ms.__version__


def _mindspore():
    from mindspore import ops

    return _of_mindspore(ops.cross_entropy)


def _ms_ce(backend: str):
    import functools

    import ms_ce

    call, _ = _of_mindspore(functools.partial(ms_ce.cross_entropy, backend=backend))
    return call, ms_ce.__version__


LIBRARIES = {
    "ms_ce-cpu": lambda: _ms_ce("cpu"),
    "ms_ce-composed": lambda: _ms_ce("composed"),
    "mindspore": _mindspore,
    "torch": _torch,
}


def _answer(call, logits, target, dtype) -> dict:
    try:
        loss, mean, gradient = call(logits, target, dtype)
    except (TypeError, RuntimeError, ValueError) as error:
        return {"refused": str(error).splitlines()[0]}
    return {"loss": loss, "mean": mean, "gradient": gradient}


def answer(library: str, logits, target, dtype: str) -> dict:
    """Of one case, in this process."""
    return _answer(LIBRARIES[library]()[0], logits, target, dtype)


def main(library: str, folder: Path) -> None:
    call, version = LIBRARIES[library]()
    (folder / f"{library}.version").write_text(version)
    for case in sorted(folder.glob("*.npz")):
        if len(case.suffixes) > 1:
            continue
        given = np.load(case)
        found = _answer(call, given["logits"], given["target"], str(given["dtype"]))
        np.savez(folder / f"{case.stem}.{library}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
