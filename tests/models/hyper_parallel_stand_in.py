"""A stand-in for hyper_parallel, which mindformers' PyNative mode imports and which no package index has.

Every name that is imported from it is a class that does nothing: on one device no tensor is an instance of one.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "hyper_parallel"


class _Module(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        members = {"__module__": self.__name__, "__init__": _take_anything}
        made = type(name, (), members)
        setattr(self, name, made)
        return made


def _take_anything(self, *arguments, **keywords):
    pass


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != NAME:
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module) -> None:
        pass


def install() -> None:
    sys.meta_path.append(_Finder())
