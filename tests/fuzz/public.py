"""One drawn loss through the public functions, in PyNative and compiled, against the reference."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

import ms_ce
from ms_ce import reference
from tests.fuzz.bounds import Terms
from tests.fuzz.draw import Drawn, draw
from tests.kernel.library import Brain, dtype_name, to_float64

MODES = ("pynative", "jit", "graph")


def to_tensor(array: np.ndarray, view: bool = False) -> Tensor:
    """A tensor of its own, or a view of the second half of a larger one."""
    values = to_float64(array).astype(np.float32) if isinstance(array, Brain) else array
    if not view or not values.ndim:
        tensor = Tensor(np.array(values, order="C"))
    else:
        tensor = Tensor(np.stack([np.zeros_like(values), values]))[1]
    return tensor.astype(ms.bfloat16) if isinstance(array, Brain) else tensor


def to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.astype(ms.float64).asnumpy()


def _called(drawn: Drawn, mode: str, backend: str, view: bool) -> dict[str, np.ndarray]:
    """The loss and its gradients by name."""
    options: dict[str, Any] = {
        **drawn.options,
        "softcap": drawn.options["softcap"] or None,
        "backend": backend,
    }
    if drawn.row_weight is not None:
        options["row_weight"] = to_tensor(drawn.row_weight.astype(np.float32))
    tensors = {"logits": to_tensor(drawn.logits, view), "target": to_tensor(drawn.target, view)}
    if drawn.weight is not None:
        tensors["weight"] = to_tensor(drawn.weight)
    upstream, names = Tensor(to_float64(drawn.upstream)), list(tensors)
    wanted = tuple(i for i, n in enumerate(names) if n != "target" or drawn.probabilities)

    def total(*given):
        loss = ms_ce.cross_entropy(*given, **options)
        return (loss.astype(ms.float64) * upstream).sum(), loss

    function = ms.value_and_grad(total, wanted, has_aux=True)
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    try:
        (_, loss), gradients = (ms.jit(function) if mode == "jit" else function)(*tensors.values())
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    found = {"loss": to_numpy(loss)}
    return found | {names[i]: to_numpy(g) for i, g in zip(wanted, gradients, strict=True)}


def _fits(drawn: Drawn) -> bool:
    """Not what the tensors of MindSpore hold otherwise, or the product with the upstream gradient spoils."""
    finite = np.all(np.abs(to_float64(drawn.logits)) < 1e4)
    return bool(finite) and bool(np.prod(drawn.shape))


def check(drawn: Drawn, mode: str, backend: str, view: bool) -> None:
    found, terms = _called(drawn, mode, backend, view), Terms(drawn)
    if backend == "composed":  # MindSpore's exp is good to 8.2e-6, and 0 below normal numbers
        terms.unit *= 8
        terms.least_p = np.finfo(np.float64 if drawn.dtype == "float64" else np.float32).tiny
    settings = {**drawn.options, "row_weight": drawn.row_weight}
    with np.errstate(all="ignore"):
        loss = reference.cross_entropy(*drawn.exact, **settings).loss
        if terms.known():
            allowed = terms.reduced(terms.row_losses())
            terms.check("loss", found["loss"], loss, allowed, drawn.dtype)
        grads = reference.cross_entropy_grad(
            *drawn.exact, **settings, grad_loss=to_float64(drawn.upstream)
        )
        for name, of in (
            ("logits", grads.logits),
            ("target", grads.target),
            ("weight", grads.weight),
        ):
            if name in found:
                dtype = drawn.dtype if name == "logits" else dtype_name(getattr(drawn, name))
                terms.check(
                    f"gradient of {name}", found[name], of, getattr(terms, f"grad_{name}")(), dtype
                )


def one(seed: int, number: int, compiled: bool) -> int:
    """Draws and checks loss `number` of `seed`; returns the calls made. AssertionError says what is wrong."""
    random = np.random.default_rng([seed, number, 1])
    drawn = draw(random)
    while not _fits(drawn):
        drawn = draw(random)
    backend = str(random.choice(("cpu", "composed") if not drawn.options["softcap"] else ("cpu",)))
    mode, view = str(random.choice(MODES[1:])) if compiled else MODES[0], bool(random.integers(2))
    try:
        check(drawn, mode, backend, view)
    except (AssertionError, RuntimeError, TypeError, ValueError) as failure:
        text = f"seed {seed}, case {number}: {drawn}, {mode}, {backend}, view {view}: {failure}"
        raise AssertionError(text) from failure
    return 1
