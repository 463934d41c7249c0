"""What `ms_ce.patch` promises of any library: replaced once, put back in any order, refused where nothing is known."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

from ms_ce.patch import engine
from ms_ce.patch.engine import Patch, Seam


def _theirs():
    return "theirs"


def _ours():
    return "ours"


class Base:
    def loss(self):
        return "inherited"


class Model(Base):
    pass


@pytest.fixture
def library(monkeypatch) -> ModuleType:
    """A library whose loss stands under two names, one of them in another of its modules."""
    modules = {name: ModuleType(name) for name in ("lossy", "lossy.losses", "lossy_other")}
    for module in modules.values():
        module.loss = _theirs
    modules["lossy"].alias = _theirs
    modules["lossy"].table = {"loss": _theirs}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["lossy"]


def _patch(library) -> Patch:
    return Patch("lossy", "1.0", engine.names_of("lossy", "lossy", "loss", _ours))


def test_every_name_of_the_library_and_no_other(library):
    handle = _patch(library)
    assert handle.replaced == ("lossy.loss", "lossy.alias", "lossy.losses.loss")
    assert (library.loss, library.alias, sys.modules["lossy.losses"].loss) == (_ours,) * 3
    assert sys.modules["lossy_other"].loss is _theirs
    handle.undo()
    assert (library.loss, library.alias, sys.modules["lossy.losses"].loss) == (_theirs,) * 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_stays_until_the_last_handle_is_undone(library, order):
    handles = _patch(library), _patch(library)
    assert handles[0].replaced == handles[1].replaced
    handles[order[0]].undo()
    handles[order[0]].undo()
    assert library.loss is _ours
    handles[order[1]].undo()
    assert library.loss is _theirs


def test_a_with_block_puts_back_also_after_an_exception(library):
    handle = _patch(library)

    def fails():
        with handle:
            assert library.loss is _ours
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert library.loss is _theirs
    assert handle.replaced == ()
    assert "undone" in repr(handle)


def test_says_what_it_replaced(library, caplog):
    with caplog.at_level(logging.INFO, "ms_ce.patch"):
        handle = _patch(library)
    assert "lossy 1.0" in repr(handle)
    assert all(name in repr(handle) for name in handle.replaced)
    assert repr(handle) in caplog.text
    handle.undo()


def test_entries_of_a_dict(library):
    seam = engine.seam("lossy", library.table, "lossy.table", "loss", _ours)
    with Patch("lossy", "1.0", [seam]) as handle:
        assert library.table == {"loss": _ours}
        assert handle.replaced == ("lossy.table['loss']",)
    assert library.table == {"loss": _theirs}


def test_an_inherited_method_is_inherited_again():
    with Patch("lossy", "1.0", [Seam(Model, "Model", "loss", lambda self: "ours")]):
        assert (Model().loss(), Base().loss()) == ("ours", "inherited")
    assert "loss" not in vars(Model)
    assert Model().loss() == "inherited"


def test_what_others_put_there_since_stays(library, caplog):
    handle = _patch(library)
    library.loss = others = object()
    handle.undo()
    assert library.loss is others
    assert library.alias is _theirs
    assert "lossy.loss was replaced once more" in caplog.text


def test_two_replacements_of_one_place_are_refused_and_leave_nothing(library):
    first = Seam(library, "lossy", "alias", _ours)
    other = Seam(library, "lossy", "loss", _ours)
    clash = Seam(library, "lossy", "alias", lambda: None)
    with Patch("lossy", "1.0", [first]):
        with pytest.raises(ValueError, match=r"lossy\.alias is replaced by another call"):
            Patch("lossy", "1.0", [other, clash])
        assert (library.loss, library.alias) == (_theirs, _ours)
    assert library.alias is _theirs


def test_the_original_is_known_while_it_is_replaced(library):
    assert engine.original(library, "loss") is _theirs
    with _patch(library):
        assert engine.original(library, "loss") is _theirs


def test_a_version_that_is_not_known(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "3.0")
    with pytest.raises(RuntimeError, match=r"lossy 3\.0 is unknown.*1\.0, 2\.0.*force=True"):
        engine.version_of("lossy", ("1.0", "2.0"), False)
    assert engine.version_of("lossy", ("1.0", "2.0"), True) == "3.0"
    assert engine.version_of("lossy", ("3.0",), False) == "3.0"


def test_a_library_that_is_not_installed():
    with pytest.raises(ImportError, match=r"no_such_library is not installed.*1\.0"):
        engine.version_of("no_such_library", ("1.0",), True)


def test_a_place_that_is_not_there(library):
    with pytest.raises(RuntimeError, match=r"no lossy\.missing"):
        engine.names_of("lossy", "lossy", "missing", _ours)
    with pytest.raises(RuntimeError, match=r"no module lossy\.nowhere"):
        engine.module_of("lossy", "lossy.nowhere")


def test_import_ms_ce_does_not_import_it():
    code = (
        "import sys, ms_ce; assert 'ms_ce.patch' not in sys.modules; ms_ce.patch.mindspore;"
        "assert 'ms_ce.patch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
