"""Which MindSpore ms_ce was tested with is one fact; another MindSpore, or numpy 2, is named at the import, once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ms_ce import _versions
from ms_ce.tools import doctor
from tests import versions

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()


def python(code: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOG_v": "2"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def said_at_import(before: str) -> list[str]:
    """What `import ms_ce` prints to stderr, besides MindSpore's own, after some lines of Python."""
    code = f"{before}\nimport ms_ce, ms_ce.parallel\nprint(ms_ce.available_backends()[-1].name)"
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "composed"
    return [line for line in result.stderr.splitlines() if "ms_ce" in line or "mindspore" in line]


def test_a_tested_version_is_imported_in_silence():
    assert said_at_import("import mindspore") == []


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (
            "import mindspore; mindspore.__version__ = '2.99.1'",
            r"mindspore 2\.99\.1 is newer than 2\.10\.0, ",
        ),
        (
            "import mindspore; mindspore.__version__ = '2.6.0'",
            r"mindspore 2\.6\.0 is older than 2\.7\.0, ",
        ),
        (
            "import mindspore, numpy; numpy.__version__ = '2.4.6'",
            r"numpy 2\.4\.6 is installed, .*; install 'numpy<2'",
        ),
    ],
)
def test_what_was_not_tested_is_named_once(before, sentence):
    [line] = [line for line in said_at_import(before) if "UserWarning" in line]
    assert re.search(f"UserWarning: ms_ce: {sentence}", line), line


def test_numpy_2_is_named_before_mindspore_fails_under_it():
    broken = "import sys, numpy; numpy.__version__ = '2.4.6'; sys.modules['mindspore'] = None"
    result = python(f"{broken}\nimport ms_ce")
    assert "ModuleNotFoundError: import of mindspore halted" in result.stderr
    assert "UserWarning: ms_ce: numpy 2.4.6 is installed" in result.stderr


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("2.7.0", "is tested"),
        ("2.7.2", "lies between"),
        ("2.10.3", "lies between"),
        ("2.11.0", "is newer"),
        ("2.10.0rc1", "is tested"),
        ("2.11.0.dev20260801", "is newer"),
        ("2.6.0", "is older"),
    ],
)
def test_how_well_a_version_is_known(version, says):
    assert says in _versions.state(Version(version))


def test_differences_name_versions_that_exist():
    for each in _versions.DIFFERENCES:
        holds = [
            version in SpecifierSet(each.versions) for version in (*_versions.TESTED, "2.11.0")
        ]
        assert any(holds), each
        assert not all(holds), each


def test_the_metadata_ask_for_what_is_tested():
    requirements = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, re.findall(r'"(.*?)"', _line("dependencies")))
    }
    assert all(version in requirements["mindspore"] for version in _versions.TESTED)
    assert "2.6.0" not in requirements["mindspore"]
    assert "2.99" in requirements["mindspore"]
    assert "1.26.4" in requirements["numpy"]
    assert "2.0.0" not in requirements["numpy"]
    pythons = {python for each in _versions.TESTED.values() for python in each}
    lowest = SpecifierSet(_line("requires-python").strip('"'))
    classified = set(re.findall(r"Python :: (3\.\d+)", PROJECT))
    assert pythons == classified
    assert all(python in lowest for python in pythons)
    assert "3.9" not in lowest


def _line(key: str) -> str:
    found = re.search(rf"^{key} = (.*)$", PROJECT, re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_command_says_which_versions_are_tested(capsys):
    doctor.describe()
    printed = capsys.readouterr().out
    assert _versions.state(_versions.MINDSPORE) in printed
    assert ", ".join(_versions.TESTED) in printed
    for each in _versions.differences(_versions.MINDSPORE):
        assert each.fact in printed


def test_every_file_that_meets_mindspore_is_in_one_part():
    files = versions.files()
    parts = [versions.part_of(files, f"{number}/8") for number in range(1, 9)]
    assert sorted(file for part in parts for file in part) == files
    assert all(parts)
    names = {str(file.relative_to(ROOT / "tests")) for file in files}
    assert {"integration/test_losses.py", "parallel/test_spmd.py", "ascend/test_calls.py"} <= names
    assert not [name for name in names if name.startswith("kernel/")]


REPORT = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"/>
<testcase name="c"><failure message="x"/></testcase><testcase name="d"><error message="x"/></testcase>
<testcase name="e"><skipped type="pytest.xfail" message="MindSpore &gt;=2.8: a reason"/></testcase>
<testcase name="f"><skipped type="pytest.skip" message="no compiler"/></testcase>
</testsuite></testsuites>"""


def test_results_are_counted_with_their_reasons(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    result = versions.read(tmp_path / "report.xml")
    assert result.counts == {"passed": 2, "failed": 2, "known to fail": 1, "skipped": 1}
    assert result.reasons == {"MindSpore >=2.8: a reason": 1, "no compiler": 1}


def test_a_report_of_more_tests_counts_those_of_the_files(tmp_path):
    """`make test` runs the kernel's tests too."""
    module = "tests.unit.test_versions"
    report = REPORT.replace('name="a"', f'classname="{module}" name="a"')
    report = report.replace('name="b"', f'classname="{module}.TestClass" name="b"')
    (tmp_path / "report.xml").write_text(report)
    result = versions.read(tmp_path / "report.xml", [Path(__file__)])
    assert result == versions.Result(Counter({"passed": 2}), Counter())


def test_the_table_keeps_what_was_not_run_again():
    document = f"text\n{versions.BEGIN}\n{versions.END}\nmore\n"
    first = versions.Result(Counter({"passed": 7}), Counter())
    second = versions.Result(Counter({"passed": 8, "skipped": 2}), Counter({"a | b": 2}))
    for name, result in (("2.7.0", first), ("2.9.0", second)):
        (python,) = _versions.TESTED[name]
        document = versions.table(document, {(name, python): versions.row(name, python, result)})
    assert "\n| 2.7.0 | 3.10 | 7 | 0 | 0 | 0 |  |\n" in document
    assert "\n| 2.9.0 | 3.11 | 8 | 0 | 0 | 2 | 2: a \\| b |\n" in document
    assert document.count("not run") == len(sum(_versions.TESTED.values(), ())) - 2
    assert document.startswith("text\n")
    assert document.endswith("\nmore\n")


def test_the_document_has_a_line_for_every_environment():
    document = versions.DOCUMENT.read_text()
    assert versions.table(document, {}) == document
