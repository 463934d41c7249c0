"""Replaces the losses of MindSpore and of model libraries by those of ms_ce, where each of them makes its loss.

    with ms_ce.patch.mindspore() as patched:
        train()
    print(patched)  # what was replaced

Each function chooses its parts by keyword, may be called twice, refuses a version of the library that is not known
unless `force=True`, and returns a `Patch`. A library is imported where its function is called.
"""

from ms_ce.patch.engine import Patch
from ms_ce.patch.mindcv_losses import mindcv
from ms_ce.patch.mindformers_models import mindformers
from ms_ce.patch.mindnlp_models import mindnlp
from ms_ce.patch.mindone_models import mindone
from ms_ce.patch.mindspore_losses import mindspore

__all__ = ["Patch", "mindcv", "mindformers", "mindnlp", "mindone", "mindspore"]
