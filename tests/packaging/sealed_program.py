"""python sealed_program.py: imports ms_ce and computes losses in both modes while what it must not do is refused.

MindSpore is imported before. Prints, one a line, what code of ms_ce did that leaves a trace: files opened for writing,
variables of the environment, processes, sockets.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import traceback

import mindspore as ms
import numpy as np

_CHANGES = (
    "ftplib.", "http.", "os.exec", "os.fork", "os.link", "os.mkdir", "os.posix_spawn", "os.putenv", "os.remove",
    "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "os.unsetenv", "pickle.", "shutil.",
    "smtplib.", "socket.", "subprocess.", "tempfile.", "urllib.", "webbrowser.",
)  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PACKAGE = importlib.util.find_spec("ms_ce").submodule_search_locations[0] + os.sep
seen: set[str] = set()


def _of_ms_ce() -> str | None:
    """The innermost line of ms_ce on the stack."""
    frames = reversed(traceback.extract_stack())
    return next(
        (f"{f.filename}:{f.lineno}" for f in frames if f.filename.startswith(PACKAGE)), None
    )


def watch(event: str, arguments: tuple) -> None:
    if event == "open":
        path, _, flags = arguments
        told = isinstance(flags, int) and flags & _WRITES and "__pycache__" not in str(path)
    else:
        told = event.startswith(_CHANGES)
    if told and (where := _of_ms_ce()) is not None:
        seen.add(f"{event} {arguments!r:.200} from {where}")


def environment() -> list[bytes]:
    """As the C library has it."""
    entries, found = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ"), []
    while entries[len(found)] is not None:
        found.append(entries[len(found)])
    return found


def main() -> None:
    before = environment()
    sys.addaudithook(watch)
    import ms_ce
    import ms_ce.parallel
    import ms_ce.patch

    if len(sys.argv) > 1:  # of the test: what is refused is told
        exec(compile(sys.argv[1], PACKAGE + "pretended.py", "exec"))
    assert environment() == before, set(environment()) ^ set(before)
    logits, hidden = np.eye(6, 9, dtype=np.float32), np.eye(6, 4, dtype=np.float32)
    target, table = ms.Tensor([0, 1, 2, 3, 4, 5]), ms.Tensor(np.eye(9, 4, dtype=np.float32))
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        for backend in ("cpu", "composed"):
            ms.value_and_grad(ms_ce.CrossEntropyLoss(backend=backend))(ms.Tensor(logits), target)[
                0
            ].asnumpy()
        rows, states = ms.Tensor(logits), ms.Tensor(hidden)
        ms_ce.nll_loss(rows, target).asnumpy()
        ms_ce.token_log_probs(rows, target).asnumpy()
        ms_ce.linear_cross_entropy(states, table, target).asnumpy()
        ms_ce.linear_token_log_probs(states, table, target).asnumpy()
        ms_ce.linear_distillation_loss(states, table, states, table).asnumpy()
        ms_ce.LinearCrossEntropyLoss(4, 9)(states, target).asnumpy()
    assert environment() == before, set(environment()) ^ set(before)
    print(*sorted(seen), sep="\n")


if __name__ == "__main__":
    main()
