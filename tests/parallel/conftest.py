"""The comparison with mindformers needs an environment of its own; `make test-mindformers` makes one and names it."""

import os

collect_ignore = [] if os.environ.get("MS_CE_MINDFORMERS_PYTHON") else ["test_mindformers.py"]
