"""What is launched ends with the tests, and computes only what they ask for."""

import signal

import pytest

from tests.parallel.processes import kill_all_and_end


def pytest_configure(config):
    signal.signal(signal.SIGTERM, kill_all_and_end)


@pytest.fixture(scope="module")
def asked_for(request):
    """The parameters of this file's tests that run: what a launch need not compute, it leaves out."""
    return [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
