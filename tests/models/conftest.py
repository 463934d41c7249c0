"""The libraries need environments of their own; `make test-models` makes them and names their folder."""

import os

_here = os.environ.get("MS_CE_MODELS_ONLY", "mindformers").split()
collect_ignore = [] if os.environ.get("MS_CE_MODELS") else ["test_models.py"]
if not os.environ.get("MS_CE_MODELS") or "mindformers" not in _here:
    collect_ignore.append("test_mindformers_seams.py")
