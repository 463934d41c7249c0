"""mindcv: its loss looks up cross_entropy in MindSpore's module of operators, which it calls F."""

from __future__ import annotations

from ms_ce.patch import operators
from ms_ce.patch.engine import Patch, module_of, seam, version_of

KNOWN = ("0.3.0",)
_LOSS = "mindcv.loss.cross_entropy_smooth"


def mindcv(*, cross_entropy: bool = True, force: bool = False) -> Patch:
    """Replaces the cross entropy inside mindcv's loss, and nowhere else.

    What `mindcv.loss.create_loss` makes stays mindcv's own, made before or after; what it looks up as `cross_entropy`
    is ms_ce's.

    Keyword Args:
        cross_entropy (bool): of CrossEntropySmooth (`create_loss("CE")`), auxiliary logits included. Default True.
        force (bool): replace it in a version of mindcv that is not known too. Default False.

    Returns:
        Patch, as `patch.mindspore`.

    Raises:
        ImportError: the library is not installed.
        RuntimeError: as `patch.mindspore`.

    Example:
        >>> import ms_ce
        >>> with ms_ce.patch.mindcv() as patched:
        ...     print(patched.replaced)
        ('mindcv.loss.cross_entropy_smooth.F',)
    """
    version = version_of("mindcv", KNOWN, force)
    seams = []
    if cross_entropy:
        seams.append(seam("mindcv", module_of("mindcv", _LOSS), _LOSS, "F", operators))
    return Patch("mindcv", version, seams)
