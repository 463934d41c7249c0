"""MindSpore's own losses: the Cells of mindspore.nn and mint.nn, the functions of mindspore.ops and mint."""

from __future__ import annotations

from typing import Any

from mindspore import dtype as mstype
from mindspore import ops
from mindspore.ops.function import nn_func

import ms_ce
from ms_ce import _arguments, functional
from ms_ce._arguments import NOT_GIVEN
from ms_ce.patch.engine import Patch, Seam, module_of, names_of, original, seam, version_of

KNOWN = ("2.7.0", "2.7.1", "2.7.2", "2.8.0", "2.9.0", "2.10.0")
_NN_FUNC = "mindspore.ops.function.nn_func"
_FLOATS = (mstype.float16, mstype.bfloat16, mstype.float32, mstype.float64)

# What is asked where ms_ce has no answer: smoothed log-probabilities, and targets of the input's rank.
_their_cross_entropy = original(nn_func, "cross_entropy")
_their_nll_loss = original(nn_func, "nll_loss")


def _promoted(input, target, weight):
    """The tensors in dtypes that fit together, as MindSpore's operators promote them."""
    if target.dtype in _FLOATS and target.dtype != input.dtype:
        if input.dtype in (mstype.float16, mstype.bfloat16):
            input = ops.cast(input, target.dtype)
        else:
            target = ops.cast(target, input.dtype)
    if weight is not None and weight.dtype != input.dtype and weight.dtype != mstype.float32:
        weight = ops.cast(weight, input.dtype)
    return input, target, weight


def mint_cross_entropy(
    input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """`mint.nn.functional.cross_entropy` by ms_ce."""
    input, target, weight = _promoted(input, target, weight)
    return ms_ce.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def cross_entropy(
    input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """`mindspore.ops.cross_entropy` by ms_ce."""
    if target.dtype not in _FLOATS and target.ndim == input.ndim:
        return _their_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
    return mint_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def mint_nll_loss(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """`mint.nn.functional.nll_loss` by ms_ce."""
    input, target, weight = _promoted(input, target, weight)
    return ms_ce.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)


def nll_loss(inputs, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """`mindspore.ops.nll_loss` by ms_ce."""
    if label_smoothing != 0.0 or target.ndim == inputs.ndim:
        return _their_nll_loss(inputs, target, weight, ignore_index, reduction, label_smoothing)
    return mint_nll_loss(inputs, target, weight, ignore_index, reduction)


def _of_cell(training, input, target, weight, *options):
    """Cross entropy of a Cell, whose `training` says when a graph makes the gradient."""
    input, target, weight = _promoted(input, target, weight)
    plan = _arguments.planned(
        "CrossEntropyLoss", "auto", (), (NOT_GIVEN, NOT_GIVEN), (*options, 0.0, None, 1.0), "auto"
    )
    return functional.cross_entropy_on(plan, training, input, target, weight)


# The Cells keep the names of their inputs.


def construct_cross_entropy(self, logits, labels):
    options = (self.ignore_index, self.reduction, self.label_smoothing)
    return _of_cell(self.training, logits, labels, self.weight, *options)


def construct_mint_cross_entropy(self, input, target):
    options = (self.ignore_index, self.reduction, self.label_smoothing)
    return _of_cell(self.training, input, target, self.weight, *options)


def construct_nll_loss(self, logits, labels):
    return nll_loss(logits, labels, self.weight, self.ignore_index, self.reduction)


def construct_mint_nll_loss(self, input, target):
    return mint_nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


# For each loss: functions by their name in mindspore.ops.function.nn_func, and Cells by their package.
_PARTS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "cross_entropy": (
        {"cross_entropy": cross_entropy, "cross_entropy_ext": mint_cross_entropy},
        "CrossEntropyLoss",
        {
            "mindspore.nn": construct_cross_entropy,
            "mindspore.mint.nn": construct_mint_cross_entropy,
        },
    ),
    "nll_loss": (
        {"nll_loss": nll_loss, "nll_loss_ext": mint_nll_loss},
        "NLLLoss",
        {"mindspore.nn": construct_nll_loss, "mindspore.mint.nn": construct_mint_nll_loss},
    ),
}


def seams(part: str) -> list[Seam]:
    """The places of a part, for the libraries too that take MindSpore's losses."""
    functions, cell, constructs = _PARTS[part]
    found = []
    for name, new in functions.items():
        found += names_of("mindspore", _NN_FUNC, name, new)
    for package, new in constructs.items():
        owner = getattr(module_of("mindspore", package), cell)
        found.append(seam("mindspore", owner, f"{package}.{cell}", "construct", new))
    return found


def mindspore(*, cross_entropy: bool = True, nll_loss: bool = True, force: bool = False) -> Patch:
    """Replaces MindSpore's own losses by those of ms_ce, everywhere in the process.

    Replaced are `construct` of nn.CrossEntropyLoss and mint.nn.CrossEntropyLoss, instances that were made before
    included, and the functions mindspore.ops.cross_entropy and mint.nn.functional.cross_entropy under every name that
    MindSpore has for them; with `nll_loss` the same of the negative log likelihood. Signatures and names of inputs
    stay; corners are those of `ms_ce.cross_entropy`. What ms_ce does not compute (smoothed log-probabilities in
    ops.nll_loss, class indices of the input's rank) MindSpore still does. A name that a module took by
    `from mindspore.ops import cross_entropy` before the call keeps what it holds, and a graph that was compiled before
    keeps what it was compiled with.

    Keyword Args:
        cross_entropy (bool), nll_loss (bool): which losses. Default True.
        force (bool): replace them in a version of MindSpore that is not known too. Default False.

    Returns:
        Patch: says what it replaced; `undo()`, or the end of a `with` block, puts it back. Another call replaces
        nothing twice.

    Raises:
        RuntimeError: for a version that is not known, without `force`, or one that has no such loss.

    Example:
        >>> import mindspore, ms_ce
        >>> loss = mindspore.nn.CrossEntropyLoss()
        >>> with ms_ce.patch.mindspore(nll_loss=False) as patched:
        ...     print(loss(mindspore.Tensor([[0.0, 0.0]]), mindspore.Tensor([0])))
        0.6931472
        >>> patched.replaced
        ()
    """
    version = version_of("mindspore", KNOWN, force)
    chosen = {"cross_entropy": cross_entropy, "nll_loss": nll_loss}
    found = [one for part, wanted in chosen.items() if wanted for one in seams(part)]
    return Patch("mindspore", version, found)
