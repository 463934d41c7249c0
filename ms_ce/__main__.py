"""`python -m ms_ce`: the tools by name. Without one it is the doctor."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from pathlib import Path

from ms_ce import __version__
from ms_ce.ops import ascend
from ms_ce.tools import bench, doctor

OK, FAILED = 0, 1  # argparse ends with 2 for arguments that do not fit


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ms_ce",
        description="Tools of ms_ce. Without a command: doctor.",
        epilog="Exit codes: 0 done, 1 something failed and was named, 2 arguments that do not fit.",
    )
    parser.add_argument("--version", action="version", version=f"ms_ce {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, tells in (
        (
            "doctor",
            "versions, kernel, and which backends can be used here: what a bug report needs",
        ),
        ("table", "the backends as Markdown"),
        ("build-ascend", "build and install the Ascend operators; needs CANN's environment"),
    ):
        commands.add_parser(name, help=tells, description=tells[0].upper() + tells[1:] + ".")
    bench.add_arguments(commands.add_parser("bench", help=bench.HELP, description=bench.__doc__))
    return parser


def _build_ascend(parser: argparse.ArgumentParser) -> int:
    if platform.system() != "Linux":
        parser.error("build-ascend needs CANN, which is there on Linux only")
    script = Path(ascend.PROJECT) / "build.sh"
    print(f"building {script.parent}: minutes", file=sys.stderr)
    return subprocess.run(["bash", str(script)], check=False).returncode and FAILED


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.command == "bench":
        try:
            return bench.run(arguments)
        except bench.RefusedError as error:
            parser.error(f"bench: {error}")
    if arguments.command == "build-ascend":
        return _build_ascend(parser)
    if arguments.command == "table":
        print(doctor.support_table())
    else:
        doctor.describe()
    return OK


if __name__ == "__main__":
    sys.exit(main())
