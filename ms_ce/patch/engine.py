"""What replaces attributes of a library, remembers what stood there, and puts it back."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from importlib import metadata
from typing import Any, NamedTuple

LOGGER = logging.getLogger("ms_ce.patch")
_MISSING = object()  # the name is not the owner's own: inherited, or not there


class Seam(NamedTuple):
    """A place where a library looks up its loss, and what it shall find there.

    owner: the module, class or dict that is asked. path: its dotted name. name: the attribute, or the dict's key.
    new: what it gives from now on.
    """

    owner: Any
    path: str
    name: str
    new: Any

    def __str__(self):
        place = f"{self.path}[{self.name!r}]" if isinstance(self.owner, dict) else self.dotted()
        return place

    def dotted(self) -> str:
        return f"{self.path}.{self.name}"

    def read(self):
        """What the owner itself holds now."""
        held = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        return held.get(self.name, _MISSING)

    def write(self, value) -> None:
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        elif value is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


class _Held(NamedTuple):
    """A seam that is replaced: what stood there, and the handles that want it replaced."""

    seam: Seam
    original: Any
    handles: set[Patch]


_LOCK = threading.RLock()
_HELD: dict[tuple[int, str], _Held] = {}


class Patch:
    """What a call of `ms_ce.patch` replaced. `undo()`, or the end of a `with` block, puts it back.

    Calls may be nested and repeated: a place is replaced once, and stays so until the last handle that names it is
    undone, in whatever order that is.

    Example:
        >>> import mindspore, ms_ce
        >>> patched = ms_ce.patch.mindspore(nll_loss=False)
        >>> "mindspore.ops.cross_entropy" in patched.replaced
        True
        >>> patched.undo()
        >>> patched.replaced
        ()
    """

    def __init__(self, library: str, version: str, seams: list[Seam]):
        self.library, self.version, self.seams = library, version, tuple(seams)
        self.active = True
        with _LOCK:
            done: list[Seam] = []
            try:
                for seam in self.seams:
                    _replace(seam, self)
                    done.append(seam)
            except BaseException:
                for seam in reversed(done):
                    _restore(seam, self)
                raise
        LOGGER.info("%r", self)

    @property
    def replaced(self) -> tuple[str, ...]:
        """The dotted names of what this handle holds replaced."""
        return tuple(str(seam) for seam in self.seams) if self.active else ()

    def undo(self) -> None:
        """Puts back what stood there. A second call does nothing."""
        with _LOCK:
            if not self.active:
                return
            self.active = False
            for seam in reversed(self.seams):
                _restore(seam, self)
        LOGGER.info("%r", self)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception) -> None:
        self.undo()

    def __repr__(self):
        head = f"<ms_ce.patch.{self.library} of {self.library} {self.version}"
        if not self.active:
            return f"{head}, undone>"
        return f"{head} replaces {', '.join(self.replaced)}>"


def _replace(seam: Seam, handle: Patch) -> None:
    key = (id(seam.owner), seam.name)
    held = _HELD.get(key)
    if held is None:
        _HELD[key] = _Held(seam, seam.read(), {handle})
        seam.write(seam.new)
        return
    if held.seam.new is not seam.new:
        raise ValueError(f"patch: {seam} is replaced by another call with {held.seam.new!r}; undo")
    held.handles.add(handle)


def _restore(seam: Seam, handle: Patch) -> None:
    key = (id(seam.owner), seam.name)
    held = _HELD[key]
    held.handles.discard(handle)
    if held.handles:
        return
    del _HELD[key]
    if seam.read() is seam.new:
        seam.write(held.original)
    else:
        LOGGER.warning("patch: %s was replaced once more by others, and stays as it is", seam)


def original(owner, name: str):
    """What an owner holds, or held before it was replaced."""
    held = _HELD.get((id(owner), name))
    return getattr(owner, name) if held is None else held.original


def version_of(library: str, known: tuple[str, ...], force: bool) -> str:
    """The installed version of a library whose seams we know."""
    try:
        version = metadata.version(library)
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"patch.{library}: {library} is not installed; known are its versions {', '.join(known)}"
        ) from None
    if version not in known and not force:
        raise RuntimeError(
            f"patch.{library}: {library} {version} is unknown: nothing says where it makes its losses; known are "
            f"{', '.join(known)}. force=True replaces them where those have them"
        )
    return version


def module_of(library: str, name: str):
    """A module in which a known version has its losses."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise RuntimeError(f"patch.{library}: this version has no module {name}") from error


def seam(library: str, owner, path: str, name: str, new) -> Seam:
    """The seam of a name that must be there."""
    there = name in owner if isinstance(owner, dict) else hasattr(owner, name)
    if not there:
        raise RuntimeError(f"patch.{library}: this version has no {path}.{name}")
    return Seam(owner, path, name, new)


def names_of(library: str, module: str, name: str, new) -> list[Seam]:
    """The seams of a function or class under every name that the library's imported modules hold it by.

    `from … import` makes a name of its own, which a replacement under the first one does not reach.
    """
    owner = module_of(library, module)
    seam(library, owner, module, name, new)
    value, package = original(owner, name), module.partition(".")[0]
    found = []
    for path, other in sorted(sys.modules.items()):
        if other is None or path.partition(".")[0] != package:
            continue
        for alias, held in list(vars(other).items()):
            if held is value or held is new:
                found.append(Seam(other, path, alias, new))
    return found
