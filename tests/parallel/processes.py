"""Start a worker in a process group of its own and never leave any of it behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
# With these a lost rank is noticed in seconds, not in half a minute. Only for tests of exactly that: on a busy machine
# a living rank may answer late.
EARLY_DETECTION = {"MS_NODE_TIMEOUT": "6", "MS_RECEIVE_MSG_TIMEOUT": "8"}


@dataclass(frozen=True)
class Finished:
    """How a launch ended: exit code (None when it had to be killed), seconds, everything it printed."""

    code: int | None
    seconds: float
    output: str


def run(
    command: Sequence[str], directory: Path, seconds: float, environment: Mapping[str, str]
) -> Finished:
    """Run to the end, or kill the whole process group after `seconds`."""
    search_path = os.pathsep.join(map(str, [package_parent(), HERE, HERE.parents[1]]))
    # msrun starts the first "python" that it finds.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    fixed = {"GLOG_v": "3", "PYTHONPATH": search_path, "PATH": programs}
    variables = {**os.environ, **fixed, **environment}
    started = time.monotonic()
    log = directory / "launcher.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=variables,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            kill_group(process)
    return Finished(code, time.monotonic() - started, _everything_printed(directory))


def package_parent() -> Path:
    """Where the tests found ms_ce: the repository, or the environment where it is installed."""
    return Path(find_spec("ms_ce").origin).parents[1]


def kill_group(process: subprocess.Popen) -> None:
    """The session leader's number is that of its group, which may outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def group_members(group: int) -> list[int]:
    """Processes alive in a process group."""
    members = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group_id = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group_id) == group and state != "Z":
            members.append(int(status.parent.name))
    return members


def _everything_printed(directory: Path) -> str:
    return "\n".join(
        f"--- {log.name}\n{log.read_text(errors='replace')}"
        for log in sorted(directory.rglob("*.log"))
    )


def run_script(script: str, arguments: Sequence[str], directory: Path, seconds: float) -> Finished:
    """A worker in one process."""
    return run([sys.executable, str(HERE / script), *arguments], directory, seconds, {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_msrun(
    script: Path,
    workers: int,
    arguments: Sequence[str],
    directory: Path,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """A worker under msrun, with `workers` ranks on this machine."""
    msrun = Path(sys.executable).with_name("msrun")
    command = [
        str(msrun),
        f"--worker_num={workers}",
        f"--local_worker_num={workers}",
        f"--master_port={free_port()}",
        f"--log_dir={directory / 'logs'}",
        "--join=True",
        str(script),
        *arguments,
    ]
    one_thread_each = {"OMP_NUM_THREADS": "1"}
    return run(command, directory, seconds, {**one_thread_each, **(environment or {})})
