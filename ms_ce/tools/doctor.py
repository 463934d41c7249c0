"""What a bug report needs: versions, the kernel, which backends can be used and why the others cannot."""

from __future__ import annotations

import platform

import mindspore
import numpy

from ms_ce import __version__, _versions, available_backends
from ms_ce.backend import partitioned
from ms_ce.ops import eager
from ms_ce.ops.cpu import library


def support_table() -> str:
    """The backends as Markdown, as README.md shows them."""
    lines = ["| backend | device | input dtypes | made of |", "|---|---|---|---|"]
    for row in available_backends():
        lines.append(
            f"| `{row.name}` | {row.device} | {', '.join(row.dtypes)} | {row.description} |"
        )
    return "\n".join(lines)


def _kernel() -> str:
    if library.problem() is not None:
        return f"none: {library.problem()}"
    sets = ", ".join(library.instruction_sets())
    try:
        return f"{library.instruction_set()} (here run: {sets}; MS_CE_ISA chooses)"
    except ValueError as error:
        return f"none: {error}"


def describe() -> None:
    """Prints what a bug report needs."""
    print(
        f"ms_ce {__version__}, mindspore {mindspore.__version__}, numpy {numpy.__version__}, "
        f"python {platform.python_version()}, {platform.machine()}"
    )
    print(f"{_versions.state(_versions.MINDSPORE)}; tested are {', '.join(_versions.TESTED)}")
    for each in _versions.differences(_versions.MINDSPORE):
        print(f"  differs ({each.versions}): {each.fact}")
    print(f"kernel: {_kernel()}")
    print(f"PyNative: {eager.description()}")
    print("backends, in the order in which 'auto' chooses:")
    for row in available_backends():
        state = "usable" if row.reason is None else f"not usable: {row.reason}"
        print(f"  {row.name:10} {row.device:8} {', '.join(row.dtypes)}")
        print(f"             {row.description}; {state}")
    print("a partitioned graph (semi_auto_parallel, auto_parallel, AutoParallel) would take")
    print(f"  {partitioned()}")
