"""mindone: the models of mindone.transformers, which make their loss in mindone/transformers/loss/loss_utils.py."""

from __future__ import annotations

from mindspore import mint, nn

from ms_ce.patch import causal_lm, mindspore_losses
from ms_ce.patch.engine import Patch, Seam, version_of

KNOWN = ("0.5.0",)
_LOSSES = "mindone.transformers.loss.loss_utils"
_MODELS = "mindone.transformers.modeling_utils"
_HEADS = (nn.Dense, mint.nn.Linear)


causal_loss = causal_lm.loss_function("mindone", _LOSSES)


def _call(self, *args, **keywords):
    """`PreTrainedModel.__call__`; a graph that is being compiled does not come here."""
    return causal_lm.without_logits(
        nn.Cell.__call__, self, "construct", args, keywords, causal_loss, _HEADS
    )


def mindone(*, cross_entropy: bool = True, linear: bool = False, force: bool = False) -> Patch:
    """Replaces the losses of mindone's models.

    Keyword Args:
        cross_entropy (bool): mindone's losses and the models that make one themselves take mint.nn.CrossEntropyLoss and
            nn.CrossEntropyLoss, so that these are replaced as `patch.mindspore(nll_loss=False)` does. Default True.
        linear (bool): language models of `ms_ce.patch.causal_lm.FAMILIES` (Llama, Mistral, Qwen3, …), while they train
            in PyNative and are given labels, compute their loss from the hidden states in front of `lm_head`: no
            logits exist, and the output's logits are None. Otherwise they are made as before. A model whose
            `loss_function` or `lm_head` is not the library's keeps its own. Default False.
        force (bool): replace them in a version of mindone that is not known too. Default False.

    Returns:
        Patch, as `patch.mindspore`.

    Raises:
        ImportError: the library is not installed.
        RuntimeError: as `patch.mindspore`.

    Example:
        >>> import ms_ce
        >>> with ms_ce.patch.mindone(linear=True) as patched:
        ...     print(patched.replaced[-1])
        mindone.transformers.modeling_utils.PreTrainedModel.__call__
    """
    version = version_of("mindone", KNOWN, force)
    seams: list[Seam] = []
    if cross_entropy:
        seams += mindspore_losses.seams("cross_entropy")
    if linear:
        seams += causal_lm.seams("mindone", _LOSSES, _MODELS, causal_loss, _call)
    return Patch("mindone", version, seams)
