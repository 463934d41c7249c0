"""ms_ce reaches for nothing but its arguments: no network, no environment, no files, no code from data."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ms_ce import _versions
from tests.packaging import archives

PROGRAM = Path(__file__).with_name("sealed_program.py")
SOURCES = [name for name in archives.tracked("ms_ce", "ops") if name.endswith(".py")]

# Modules that reach the network, other processes or files, or make code of data.
REACHING = {
    "aiohttp", "asyncio", "code", "codeop", "dill", "ftplib", "glob", "http", "marshal", "multiprocessing", "pickle",
    "requests", "runpy", "shelve", "shutil", "smtplib", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "urllib",
    "yaml", "zipimport",
}  # fmt: skip
# What a user asks for by name: build-ascend starts a build, a deployment copies its library; and g++ is looked for.
ALLOWED = {
    ("ms_ce/__main__.py", "subprocess"),
    ("ms_ce/deployment.py", "shutil"),
    ("ops/ascend/operators.py", "shutil"),
}
CODE_FROM_DATA = {"eval", "exec", "compile", "__import__", "execfile"}


def run(tmp_path, *arguments: str) -> str:
    settings = {**archives.CLEAN, "PYTHONPATH": str(archives.ROOT), "GLOG_v": "3"}
    return archives.run(sys.executable, PROGRAM, *arguments, cwd=tmp_path, env=settings)


def test_nothing_is_written_sent_or_set(tmp_path):
    assert run(tmp_path).strip() == ""


@pytest.mark.parametrize(
    ("act", "told"),
    [
        ("open('written', 'w')", "open "),
        ("import socket; socket.getaddrinfo('localhost', 1)", "socket.getaddrinfo"),
        ("import os; os.system('true')", "os.system"),
    ],
)
def test_the_watch_sees(tmp_path, act, told):
    """Of code that passes for a file of ms_ce."""
    assert run(tmp_path, act).startswith(told)


def test_the_watch_sees_the_environment(tmp_path):
    with pytest.raises(AssertionError, match="MS_CE_PRETENDED"):
        run(tmp_path, "import os; os.environ['MS_CE_PRETENDED'] = '1'")


@pytest.mark.parametrize("name", SOURCES)
def test_sources_reach_for_nothing(name):
    tree = ast.parse((archives.ROOT / name).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in CODE_FROM_DATA, f"{name}:{node.lineno}: {node.func.id}"
    assert {module for module in found & REACHING if (name, module) not in ALLOWED} == set()


def test_the_kernel_calls_nothing_of_the_kind():
    """Of the C library it takes memory, threads, text, and the environment as the process was started with."""
    table = subprocess.run(
        ["nm", "-D", "--undefined-only", archives.ROOT / "ops/libms_ce.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    called = {line.split()[-1].partition("@")[0] for line in table.splitlines()}
    assert {"dlsym", "pthread_create", "posix_memalign"} & called, table
    refused = (
        "accept", "bind", "connect", "exec", "fork", "getaddrinfo", "mkdir", "open", "popen", "putenv", "recv",
        "remove", "rename", "send", "setenv", "socket", "system", "unlink", "unsetenv", "vfork", "write",
    )  # fmt: skip
    assert not [name for name in called if name.startswith(refused)]
    assert not [name for name in called if "ofstream" in name]


def test_dependencies_are_those_whose_ends_are_tested():
    """`make test-versions` has the oldest and the newest MindSpore, `make test-wheels` of the oldest the lowest of the
    others too; the newest come by themselves."""
    text = (archives.ROOT / "pyproject.toml").read_text()
    declared = ast.literal_eval(re.search(r"^dependencies = (\[.*\])$", text, re.MULTILINE)[1])
    oldest = ".".join(str(part) for part in _versions.OLDEST.release[:2])
    assert declared == [f"mindspore>={oldest}", "numpy>=1.21,<2", "packaging>=20"]
    lowest = {
        name: version for name, _, version in (each.partition("==") for each in archives.LOWEST)
    }
    for each in declared[1:]:
        requirement = Requirement(each)
        least = next(s.version for s in requirement.specifier if s.operator == ">=")
        assert lowest[requirement.name].startswith(least + "."), each
