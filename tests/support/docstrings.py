"""Every example in a docstring of ms_ce, found by walking its modules; none is left out and none may be skipped."""

from __future__ import annotations

import doctest
import importlib
import io
import pkgutil

import ms_ce


def _modules() -> list[str]:
    """Every module but __main__, which runs when it is imported; the kernel beside the modules is none."""
    found = pkgutil.walk_packages(ms_ce.__path__, "ms_ce.")
    python = [one.name for one in found if one.name.split(".")[-1] not in ("__main__", "libms_ce")]
    return ["ms_ce", *python]


def _examples() -> dict[str, doctest.DocTest]:
    finder = doctest.DocTestFinder()
    tests = [test for name in _modules() for test in finder.find(importlib.import_module(name))]
    return {test.name: test for test in tests if test.examples}


EXAMPLES = _examples()
# What calls init() shows a program of several ranks: the workers of tests/parallel/test_spmd.py run it.
NEED_RANKS = [
    name
    for name, test in EXAMPLES.items()
    if any("init()" in example.source for example in test.examples)
]
# Examples that run where their library is installed, as tests/models does.
NEED_LIBRARIES = {
    "mindcv": "ms_ce.patch.mindcv_losses.mindcv",
    "mindformers": "ms_ce.patch.mindformers_models.mindformers",
    "mindnlp": "ms_ce.patch.mindnlp_models.mindnlp",
    "mindone": "ms_ce.patch.mindone_models.mindone",
}
HERE = set(EXAMPLES) - set(NEED_RANKS) - set(NEED_LIBRARIES.values())
NEEDS_MINDFORMERS = "ms_ce.parallel.registration.register_with_mindformers"


def check(name: str) -> None:
    """Runs an example; AssertionError shows where it gave something else."""
    test = EXAMPLES[name]
    skipped = [example.source for example in test.examples if doctest.SKIP in example.options]
    assert not skipped, f"{name} skips {skipped}"
    report = io.StringIO()
    result = doctest.DocTestRunner().run(test, out=report.write, clear_globs=False)
    assert result.attempted == len(test.examples)
    assert result.failed == 0, report.getvalue()
