"""mindnlp: transformers' own models, for which mindtorch stands in torch's place."""

from __future__ import annotations

import ms_ce
from ms_ce.patch import causal_lm
from ms_ce.patch.engine import Patch, Seam, module_of, seam, version_of

KNOWN = ("0.5.1",)
_FUNCTIONAL = "mindtorch.nn.functional"
_LOSSES = "transformers.loss.loss_utils"
_MODELS = "transformers.modeling_utils"


def _placed(loss, input):
    """mindtorch's tensors know their device."""
    loss._device = input.device
    return loss


def cross_entropy(
    input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """`mindtorch.nn.functional.cross_entropy` by ms_ce."""
    loss = ms_ce.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return _placed(loss, input)


def nll_loss(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """`mindtorch.nn.functional.nll_loss` by ms_ce."""
    loss = ms_ce.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    return _placed(loss, input)


causal_loss = causal_lm.loss_function("mindnlp", _LOSSES, _placed)


def _call(self, *args, **keywords):
    """`PreTrainedModel.__call__`."""
    modules = module_of("mindnlp", "mindtorch.nn")
    call = modules.Module.__call__
    heads = (modules.Linear,)
    return causal_lm.without_logits(call, self, "forward", args, keywords, causal_loss, heads)


def mindnlp(
    *,
    cross_entropy: bool = True,
    nll_loss: bool = True,
    linear: bool = False,
    force: bool = False,
) -> Patch:
    """Replaces the losses of mindnlp, whose models are transformers' on mindtorch.

    Keyword Args:
        cross_entropy (bool), nll_loss (bool): those of mindtorch.nn.functional, which transformers call. Default True.
        linear (bool): language models without logits, as in `patch.mindone`. Default False.
        force (bool): replace them in a version of mindnlp that is not known too. Default False.

    Returns:
        Patch, as `patch.mindspore`.

    Raises:
        ImportError: the library is not installed.
        RuntimeError: as `patch.mindspore`.

    Example:
        >>> import ms_ce
        >>> with ms_ce.patch.mindnlp(nll_loss=False) as patched:
        ...     print(patched.replaced)
        ('mindtorch.nn.functional.cross_entropy',)
    """
    version = version_of("mindnlp", KNOWN, force)
    module_of("mindnlp", "mindnlp")  # it puts mindtorch into torch's place
    functional = module_of("mindnlp", _FUNCTIONAL)
    seams: list[Seam] = []
    for name, new, wanted in (
        ("cross_entropy", _cross_entropy, cross_entropy),
        ("nll_loss", _nll_loss, nll_loss),
    ):
        if wanted:
            seams.append(seam("mindnlp", functional, _FUNCTIONAL, name, new))
    if linear:
        seams += causal_lm.seams("mindnlp", _LOSSES, _MODELS, causal_loss, _call)
    return Patch("mindnlp", version, seams)


_cross_entropy, _nll_loss = cross_entropy, nll_loss
