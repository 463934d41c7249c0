"""Long-lived worker processes, of which only the one that is asked runs.

A waiting process is stopped by a signal: MindSpore's and other libraries' idle threads spin, and
would take the processor from the peer that is being timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers import Peer

WORKER = Path(__file__).resolve().with_name("worker.py")
TIMEOUT_SECONDS = 150.0


class PeerError(Exception):
    """The peer refused, crashed or did not answer; the message is the reason for the tables."""


class Process:
    """One worker."""

    def __init__(self, peer: Peer, python: str, log_folder: str) -> None:
        self.peer = peer
        self.log = Path(log_folder) / f"{peer.name.replace(' ', '_')}.log"
        environment = {"GLOG_v": "3", **os.environ}  # MindSpore: errors only
        # In this process: pools of compiler processes would live on beside the measurement.
        environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        if peer.threads is not None:
            environment["OMP_NUM_THREADS"] = str(peer.threads)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, str(WORKER), json.dumps(peer.settings())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=log_folder,  # MindSpore writes folders where it runs
                env=environment,
            )
        self.versions: dict[str, Any] = {}

    def wait_until_ready(self) -> None:
        """The first answer is the versions of the libraries; PeerError where they do not load."""
        self.versions = self._answer(TIMEOUT_SECONDS)
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][-200:] if lines else "no message"

    def _answer(self, timeout: float) -> dict[str, Any]:
        end = time.monotonic() + timeout
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise PeerError(f"no answer in {timeout:.0f} s")
                chunk = os.read(self.process.stdout.fileno(), 1 << 16)
                if not chunk:
                    code = self.process.wait()
                    raise PeerError(f"process ended with code {code}: {self._log_tail()}")
                received += chunk
        return json.loads(received)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Run one command of worker.Worker; PeerError with the reason where it fails."""
        self._signal(signal.SIGCONT)
        try:
            message = json.dumps({"do": do, **arguments}) + "\n"
            self.process.stdin.write(message.encode())
            self.process.stdin.flush()
            answer = self._answer(TIMEOUT_SECONDS)
        except BrokenPipeError:
            raise PeerError(f"process is gone: {self._log_tail()}") from None
        finally:
            self._signal(signal.SIGSTOP)
        if "error" in answer:
            raise PeerError(first_sentence(answer["error"]))
        return answer

    def resident_bytes(self) -> int:
        if self.process.poll() is not None:
            return 0
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # of a command that it did not live to read
            self.process.stdin.close()
        self.process.stdout.close()


def first_sentence(text: str) -> str:
    """A library's message without the stack that it carries along."""
    return " ".join(text.split("\n\n")[0].split())[:220]


class Pool:
    """The processes by peer, started when first asked for."""

    def __init__(self, peer_python: str, log_folder: str) -> None:
        self.pythons = {True: peer_python, False: sys.executable}
        self.log_folder = log_folder
        self.processes: dict[str, Process] = {}

    def new(self, peer: Peer) -> Process:
        return Process(peer, self.pythons[peer.own_environment], self.log_folder)

    def start(self, peers: list[Peer]) -> None:
        """Start those that do not run, two at a time: imports take seconds of one processor."""
        with ThreadPoolExecutor(2) as executor:
            list(executor.map(self._try_to_start, peers))

    def _try_to_start(self, peer: Peer) -> None:
        with contextlib.suppress(PeerError):  # `get` tries again and tells the reason
            self.get(peer)

    def get(self, peer: Peer) -> Process:
        process = self.processes.get(peer.name)
        if process is None or process.process.poll() is not None:
            process = self.new(peer)
            try:
                process.wait_until_ready()
            except PeerError:
                process.close()
                raise
            self.processes[peer.name] = process
        return process

    def resident_bytes(self, peer: Peer) -> int:
        process = self.processes.get(peer.name)
        return process.resident_bytes() if process else 0

    def close(self, peer_name: str) -> None:
        process = self.processes.pop(peer_name, None)
        if process:
            process.close()

    def close_all(self) -> None:
        for name in list(self.processes):
            self.close(name)
