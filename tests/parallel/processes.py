"""Start workers and never leave any of them behind."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.support import progress

HERE = Path(__file__).resolve().parent
# On a busy machine a living rank may answer late; a standstill of the launch is noticed here.
PATIENCE = {"MS_NODE_TIMEOUT": "600", "MS_RECEIVE_MSG_TIMEOUT": "600", "MS_TOPO_TIMEOUT": "1800"}

JOB = "MS_CE_TEST_JOB"  # an environment variable that marks all processes of a launch
_running: set[str] = set()


@dataclass(frozen=True)
class Finished:
    """How a launch ended: exit code (None when it had to be killed), and everything it printed."""

    code: int | None
    output: str
    job: str


def run(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    enough: Callable[[str], bool] | None = None,
) -> Finished:
    """Run to the end, to a standstill, or until what was printed is `enough`; then no process of the launch is left."""
    search_path = os.pathsep.join(map(str, [package_parent(), HERE, HERE.parents[1]]))
    # msrun starts the first "python" that it finds.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    job = uuid.uuid4().hex
    fixed = {JOB: job, "GLOG_v": "3", "PYTHONPATH": search_path, "PATH": programs}
    variables = {**os.environ, **fixed, **environment}
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
        _running.add(job)
        try:
            code = _wait(process, job, directory, enough)
        finally:
            kill_job(job)
            process.wait()
            _running.discard(job)
    return Finished(code, _everything_printed(directory), job)


def _wait(
    process: subprocess.Popen, job: str, directory: Path, enough: Callable[[str], bool] | None
) -> int | None:
    """The exit code, or None where nothing moved any more or enough was printed."""

    def ended(seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode is not None or (
            enough is not None and enough(_everything_printed(directory))
        )

    progress.wait(
        ended,
        progress.Watch(lambda: job_members(job), lambda: len(_everything_printed(directory))),
    )
    return process.returncode


def kill_job(job: str) -> None:
    """Every process of a launch. Not by group: msrun puts each worker into a session of its own."""
    while members := job_members(job):
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        time.sleep(0.05)


def kill_all_and_end(signal_number: int, frame: object) -> None:
    """For SIGTERM: the launches would outlive the test run that something ends from outside."""
    for job in list(_running):
        kill_job(job)
    os._exit(128 + signal_number)


def package_parent() -> Path:
    """Where the tests found ms_ce: the repository, or the environment where it is installed."""
    return Path(find_spec("ms_ce").origin).parents[1]


def job_members(job: str) -> list[int]:
    """Processes alive that inherited the mark of a launch."""
    mark = f"{JOB}={job}".encode()
    members = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark in variables and state != "Z":
            members.append(int(process.name))
    return members


def _everything_printed(directory: Path) -> str:
    return "\n".join(
        f"--- {log.name}\n{log.read_text(errors='replace')}"
        for log in sorted(directory.rglob("*.log"))
    )


def run_script(script: str, arguments: Sequence[str], directory: Path) -> Finished:
    """A worker in one process."""
    return run([sys.executable, str(HERE / script), *arguments], directory, {})


def free_port() -> int:
    """Below the ports that systems give to outgoing connections: none takes it while msrun starts."""
    for port in random.SystemRandom().sample(range(20000, 32000), 1000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port from 20000 to 32000 is free")


def run_msrun(
    script: Path,
    workers: int,
    arguments: Sequence[str],
    directory: Path,
    environment: Mapping[str, str] = PATIENCE,
    enough: Callable[[str], bool] | None = None,
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
    return run(command, directory, {**one_thread_each, **environment}, enough)
