"""Every MindSpore that ms_ce supports, with the Pythons it is tested with: `make test-versions`.

Each gets an environment of its own and runs the tests that meet MindSpore; the others would say the same in each, and
`make test` runs them. The results of whole runs go into the table of docs/versions.md.

python -m tests.versions [--version 2.7.0] [--python 3.10] [--part 1/8] [-- pytest arguments]

With --report the run is one that has been: `PYTEST_ADDOPTS=--junit-xml=build/report.xml make test`, say, whose tests of
these files are a whole run of the MindSpore and the Python of .venv.

Five environments take 14 GB in .venv-versions and some minutes each to make, the first time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ms_ce._versions import OLDEST, TESTED

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv-versions"
DOCUMENT = ROOT / "docs" / "versions.md"
FOLDERS = ("unit", "integration", "parallel")
NOT_HERE = ("test_layout.py",)  # needs the tools of `make lint`
ALL_TESTS = ("-n", "2", "--dist", "loadgroup", "-m", "not rare")
BEGIN, END = "<!-- make test-versions -->", "<!-- end -->"


class Result(NamedTuple):
    """The counts of a run, and why tests were skipped or are known to fail there: reason to number of tests."""

    counts: Counter[str]
    reasons: Counter[str]


def files() -> list[Path]:
    """The test files that meet MindSpore, in an order that spreads the folders over the parts."""
    paths = sorted((ROOT / "tests").glob("*/test_*.py"))
    found = [path for path in paths if path.parent.name in FOLDERS or _imports_mindspore(path)]
    return [path for path in found if path.name not in NOT_HERE]


def _imports_mindspore(path: Path) -> bool:
    return re.search(r"^(import|from) mindspore\b", path.read_text(), re.MULTILINE) is not None


def part_of(paths: list[Path], part: str) -> list[Path]:
    """Part '2/8' is every eighth file from the second on."""
    number, _, parts = part.partition("/")
    return paths[int(number) - 1 :: int(parts)]


def interpreter(version: str) -> str:
    """A Python of that version: on the PATH, or one of pyenv's."""
    name = f"python{version}"
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(name), *sorted(root.glob(f"versions/{version}.*/bin/{name}"))]
    for each in candidates:
        if (
            each
            and subprocess.run([each, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return str(each)
    sys.exit(
        f"test-versions needs Python {version}: no {name} on the PATH that runs, none of pyenv's"
    )


def environment(mindspore: str, python: str) -> Path:
    """The Python of an environment with that MindSpore, made where it is missing. The kernel is that of ops/."""
    folder = ENVIRONMENTS / f"mindspore-{mindspore}-python-{python}"
    made, program = folder / "made", folder / "bin" / "python"
    wanted = (ROOT / "pyproject.toml").read_text()
    if made.exists() and made.read_text() == wanted:
        return program
    subprocess.run([interpreter(python), "-m", "venv", "--clear", folder], check=True)
    # No compiler: the kernel neither depends on the version nor should be built for each.
    without_compiler = {**os.environ, "CXX": "no-such-compiler"}
    install = [program, "-m", "pip", "install", "--quiet", f"mindspore=={mindspore}", "--editable"]
    subprocess.run([*install, ".[demo,test]"], cwd=ROOT, env=without_compiler, check=True)
    made.write_text(wanted)
    return program


def run(mindspore: str, python: str, paths: list[Path], arguments: list[str]) -> Result:
    """The tests in the environment; what they print goes to the terminal."""
    program = environment(mindspore, python)
    report = program.parents[1] / "report.xml"
    report.unlink(missing_ok=True)
    command = [program, "-m", "pytest", *ALL_TESTS, f"--junit-xml={report}", *arguments, *paths]
    variables = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    print(f"--- MindSpore {mindspore}, Python {python}", flush=True)
    ended = subprocess.run(command, cwd=ROOT, env=variables, check=False)
    if not report.exists():
        sys.exit(f"MindSpore {mindspore}, Python {python}: pytest ended with {ended.returncode}")
    return read(report)


def read(report: Path, paths: list[Path] | None = None) -> Result:
    """What pytest wrote of a run; of these files alone, where they are given."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths or []]
    for case in ElementTree.parse(report).iter("testcase"):
        owner = f"{case.get('classname')}."  # a module, or a class of it
        if paths is not None and not any(owner.startswith(f"{each}.") for each in modules):
            continue
        kinds = {child.tag: child for child in case}
        if kinds.keys() & {"failure", "error"}:
            counts["failed"] += 1
        elif "skipped" in kinds:
            skipped = kinds["skipped"]
            expected = skipped.get("type") == "pytest.xfail"
            counts["known to fail" if expected else "skipped"] += 1
            reasons[skipped.get("message", "")] += 1
        else:
            counts["passed"] += 1
    return Result(counts, reasons)


def row(mindspore: str, python: str, result: Result) -> str:
    """A line of the table."""
    counts, reasons = result
    numbers = [str(counts[kind]) for kind in ("passed", "failed", "known to fail", "skipped")]
    why = "<br>".join(f"{count}: {reason}" for reason, count in sorted(reasons.items())).replace(
        "|", "\\|"
    )
    return f"| {mindspore} | {python} | {' | '.join(numbers)} | {why} |"


def table(document: str, rows: dict[tuple[str, str], str]) -> str:
    """The document with these lines in its table, beside those of other environments that it has."""
    before, _, rest = document.partition(BEGIN)
    old, _, after = rest.partition(END)
    lines = {
        (cells[1], cells[2]): line
        for line in old.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) > 2
    }
    wanted = [(version, python) for version, pythons in TESTED.items() for python in pythons]
    body = [
        (lines | rows).get(each, f"| {each[0]} | {each[1]} | not run | | | | |") for each in wanted
    ]
    head = "| MindSpore | Python | passed | failed | known to fail | skipped | why |\n|---|---|---:|---:|---:|---:|---|"
    return f"{before}{BEGIN}\n{head}\n" + "\n".join(body) + f"\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("--version", choices=(*TESTED, "oldest"), help="one MindSpore only")
    parser.add_argument("--python", help="one Python only")
    parser.add_argument("--report", type=Path, help="what pytest wrote of a run that has been")
    parser.add_argument("--part", help="2/8: every eighth file from the second on")
    parser.add_argument("arguments", nargs="*", help="for pytest, after --")
    given = parser.parse_args()
    paths = files() if given.part is None else part_of(files(), given.part)
    version = str(OLDEST) if given.version == "oldest" else given.version
    chosen = [
        (mindspore, python)
        for mindspore, pythons in TESTED.items()
        for python in pythons
        if version in (None, mindspore) and given.python in (None, python)
    ]
    if given.report is None:
        results = {each: run(*each, paths, given.arguments) for each in chosen}
    elif len(chosen) == 1:
        results = {chosen[0]: read(given.report, paths)}
    else:
        parser.error("--report is of one --version and, where it has several, one --python")
    rows = {each: row(*each, result) for each, result in results.items()}
    if given.part is None and not given.arguments:
        DOCUMENT.write_text(table(DOCUMENT.read_text(), rows))
    print(*rows.values(), sep="\n")
    return int(any(result.counts["failed"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
