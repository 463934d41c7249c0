"""Everything public says the types of its arguments and of what it returns."""

from __future__ import annotations

import inspect

import pytest

import ms_ce
import ms_ce.parallel
import ms_ce.patch

MODULES = (ms_ce, ms_ce.ops, ms_ce.parallel, ms_ce.patch)
HANDED_ON = ("self", "exception")
# Steps of a Cell that no user calls.
INTERNAL = ("bprop", "check", "losses", "transformed", "make")


def _public(module):
    for name in module.__all__:
        value = getattr(module, name)
        if getattr(value, "__module__", "").split(".")[0] == "ms_ce":
            yield f"{module.__name__}.{name}", value


def _functions():
    for module in MODULES:
        for path, value in _public(module):
            if not inspect.isclass(value):
                if inspect.isfunction(value):
                    yield path, value
                continue
            for name, method in vars(value).items():
                named = name in ("__init__", "__enter__") or not name.startswith("_")
                if inspect.isfunction(method) and named:
                    yield f"{path}.{name}", method


FUNCTIONS = {
    path: function for path, function in _functions() if path.rpartition(".")[2] not in INTERNAL
}


@pytest.mark.parametrize("path", FUNCTIONS)
def test_types_are_said(path):
    signature = inspect.signature(FUNCTIONS[path])
    untyped = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in HANDED_ON
    ]
    assert not untyped
    if not path.endswith("__init__"):
        assert signature.return_annotation is not signature.empty
