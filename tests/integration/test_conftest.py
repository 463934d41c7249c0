"""The one graph of a test run that may be compiled twice."""

from __future__ import annotations

import pytest

from tests.integration import conftest


class Lossy:
    """A function whose graph is lost the first time."""

    def __init__(self, message=conftest._COMPILER_FAILURE):
        self.calls, self.message = 0, message

    def __call__(self):
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError(self.message)
        return self.calls


@pytest.fixture(autouse=True)
def none_lost(monkeypatch):
    monkeypatch.setattr(conftest, "_lost", [])


def test_one_lost_graph_is_compiled_again_and_told():
    with pytest.warns(UserWarning, match="compiled again"):
        assert conftest._compiled_again_once(Lossy()) == 2


def test_the_second_one_of_a_run_fails():
    with pytest.warns(UserWarning, match="compiled again"):
        conftest._compiled_again_once(Lossy())
    with pytest.raises(RuntimeError, match="is null"):
        conftest._compiled_again_once(Lossy())


def test_another_error_is_never_tried_again():
    function = Lossy("something else")
    with pytest.raises(RuntimeError, match="something else"):
        conftest._compiled_again_once(function)
    assert function.calls == 1


@pytest.mark.parametrize("run", ["jit", "graph"], indirect=True)
def test_a_graph_without_the_loop_is_never_tried_again(run, monkeypatch):
    def lost(compute):
        raise AssertionError("tried")

    monkeypatch.setattr(conftest, "_compiled_again_once", lost)

    def three():
        return 3

    assert run(three) == 3
    with pytest.raises(AssertionError, match="tried"):
        run(three, composed_loop=True)
