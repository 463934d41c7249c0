"""The comparison with mindformers needs an environment of its own; `make test-mindformers` makes one and names it."""

import os
import signal

from tests.parallel.processes import kill_all_and_end

collect_ignore = [] if os.environ.get("MS_CE_MINDFORMERS_PYTHON") else ["test_mindformers.py"]


def pytest_configure(config):
    signal.signal(signal.SIGTERM, kill_all_and_end)
