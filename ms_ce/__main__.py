"""`python -m ms_ce`: versions, instruction set, the table of backends; `build-ascend` builds the Ascend operators."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys

import mindspore
import numpy

from ms_ce import __version__, _versions, available_backends
from ms_ce.backend import partitioned
from ms_ce.ops import ascend, eager
from ms_ce.ops.cpu import library


def support_table() -> str:
    """The backends as Markdown, as README.md shows them."""
    lines = ["| backend | device | input dtypes | made of |", "|---|---|---|---|"]
    for row in available_backends():
        lines.append(
            f"| `{row.name}` | {row.device} | {', '.join(row.dtypes)} | {row.description} |"
        )
    return "\n".join(lines)


def describe() -> None:
    """Prints what a bug report needs."""
    print(
        f"ms_ce {__version__}, mindspore {mindspore.__version__}, numpy {numpy.__version__}, "
        f"python {platform.python_version()}, {platform.machine()}"
    )
    print(f"{_versions.state(_versions.MINDSPORE)}; tested are {', '.join(_versions.TESTED)}")
    for each in _versions.differences(_versions.MINDSPORE):
        print(f"  differs ({each.versions}): {each.fact}")
    if library.problem() is None:
        sets = ", ".join(library.instruction_sets())
        print(f"kernel: {library.instruction_set()} (here run: {sets}; MS_CE_ISA chooses)")
    else:
        print(f"kernel: none: {library.problem()}")
    print(f"PyNative: {eager.description()}")
    print("backends, in the order in which 'auto' chooses:")
    for row in available_backends():
        state = "usable" if row.reason is None else f"not usable: {row.reason}"
        print(f"  {row.name:10} {row.device:8} {', '.join(row.dtypes)}")
        print(f"             {row.description}; {state}")
    print("a partitioned graph (semi_auto_parallel, auto_parallel, AutoParallel) would take")
    print(f"  {partitioned()}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ms_ce", description=__doc__)
    parser.add_argument(
        "command", nargs="?", choices=("info", "table", "build-ascend"), default="info"
    )
    parser.add_argument("--version", action="version", version=f"ms_ce {__version__}")
    command = parser.parse_args().command
    if command == "build-ascend":
        if platform.system() != "Linux":
            parser.error("build-ascend needs CANN, which is there on Linux only")
        return subprocess.run(["bash", str(ascend.PROJECT / "build.sh")], check=False).returncode
    if command == "table":
        print(support_table())
    else:
        describe()
    return 0


if __name__ == "__main__":
    sys.exit(main())
