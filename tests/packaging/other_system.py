"""python other_system.py SYSTEM: what a user of macOS or Windows gets, told apart by what Python says of the system.

MindSpore is the one of this machine. Modules and functions that only POSIX systems have are taken away first.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import platform
import subprocess
import sys

import mindspore as ms
import numpy as np

NOT_THERE = ("fcntl", "grp", "posix", "pwd", "resource", "readline", "syslog", "termios", "tty")
FUNCTIONS = (
    "fork",
    "geteuid",
    "getuid",
    "killpg",
    "sched_getaffinity",
    "sched_setaffinity",
    "uname",
)
import_module = builtins.__import__


def refuse(*arguments, **_):
    raise AssertionError(f"the import starts a program: {arguments}")


def without_posix(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("ms_ce") and name.partition(".")[0] in NOT_THERE:
        raise ModuleNotFoundError(f"No module named {name!r}")
    return import_module(name, globals, locals, fromlist, level)


def main(system: str) -> None:
    platform.system = lambda: system
    sys.platform = {"Darwin": "darwin", "Windows": "win32"}[system]
    builtins.__import__ = without_posix
    for name in FUNCTIONS:
        delattr(os, name)
    subprocess.Popen = os.system = refuse
    import ms_ce
    from ms_ce import __main__ as command_line
    from ms_ce import reference
    from ms_ce.tools import doctor

    logits, target = np.float32([[2, 0, 1], [0, 2, -1]]), np.int32([0, 0])
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        value, grad = ms.value_and_grad(ms_ce.CrossEntropyLoss())(
            ms.Tensor(logits), ms.Tensor(target)
        )
        np.testing.assert_allclose(
            float(value), reference.cross_entropy(logits, target).loss, rtol=2e-5
        )
        expected = reference.cross_entropy_grad(logits, target).logits
        np.testing.assert_allclose(grad.asnumpy(), expected, atol=2e-6)
    doctor.describe()
    sys.argv = ["ms_ce", "build-ascend"]
    with contextlib.suppress(SystemExit):  # an error, before bash is asked for
        command_line.main()


if __name__ == "__main__":
    main(sys.argv[1])
