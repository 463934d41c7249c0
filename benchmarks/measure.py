"""One case: every peer checked, then timed in turn, round after round."""

from __future__ import annotations

import dataclasses
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import inputs
import numpy as np
from bandwidth import Bandwidth
from cases import IGNORE_INDEX, PASSES, Case
from peers import FLOOR, OURS, Peer, computations
from pool import PeerError, Pool, Process

PROCESS_BYTES = 450e6  # a process that has loaded MindSpore or torch, without logits
SLICE_SECONDS = 0.06  # what a peer is given in a round
SLOW_SECONDS = 0.4  # calls of this length are timed in the first rounds only,
VERY_SLOW_SECONDS = 1.5  # and of this length in the first
WARM_UP_SECONDS = 0.02
MINIMUM_ROUNDS, MAXIMUM_ROUNDS = 3, 12

Results = dict[str, dict[str, Any]]


def available_bytes() -> float:
    """Memory that can still be taken, 19 of 20 parts of what the kernel says."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 0.95 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable")) * 1024


def _peak_bytes(pool: Pool, peer: Peer, case: Case) -> float:
    """What the peer is likely to hold in this case. Allocators give little back."""
    # Peers that convert half precision to float32 need more; with two inputs, one more copy.
    size = case.logits_bytes * (1 if case.dtype == "float32" else 1.5)
    extra = size if case.target == "probability" else 0
    return max(PROCESS_BYTES + peer.memory * size + extra, pool.resident_bytes(peer))


def heats(pool: Pool, peers: list[Peer], case: Case) -> tuple[list[list[Peer]], dict[str, str]]:
    """Groups that fit into the memory side by side, each with ms_ce; and who does not fit alone."""
    memory = available_bytes() + sum(pool.resident_bytes(peer) for peer in peers)
    need = {peer.name: _peak_bytes(pool, peer, case) for peer in peers}
    ours = [peer for peer in peers if peer.name == OURS]
    rest = sorted((peer for peer in peers if peer not in ours), key=lambda peer: need[peer.name])
    base = sum(need[peer.name] for peer in ours)
    groups, excluded, used = [list(ours)], {}, base
    for peer in rest:
        if base + need[peer.name] > memory:
            excluded[peer.name] = f"not run: needs about {need[peer.name] / 1e9:.0f} GB"
            continue
        if used + need[peer.name] > memory:
            groups.append(list(ours))
            used = base
        groups[-1].append(peer)
        used += need[peer.name]
    return [group for group in groups if group], excluded


@dataclasses.dataclass
class Entrant:
    """A peer in a heat, its answers checked, with the samples it has collected."""

    peer: Peer
    process: Process
    call_seconds: dict[str, float]
    seconds: dict[str, list[float]]

    def rounds(self, computation: str) -> int:
        """Those that the computation takes part in."""
        call = self.call_seconds[computation]
        if call > VERY_SLOW_SECONDS:
            return 1
        return MINIMUM_ROUNDS if call > SLOW_SECONDS else MAXIMUM_ROUNDS


class CaseRun:
    """The inputs of one case on disk, its right answer, and the results as they come."""

    def __init__(self, case: Case, pool: Pool, folder: Path) -> None:
        self.case, self.pool, self.folder = case, pool, folder
        logits, target = inputs.make(case)
        self.expected = inputs.expected(case, logits, target)
        np.save(folder / "logits.npy", logits)
        np.save(folder / "target.npy", target)
        np.save(folder / "rows.npy", self.expected.rows)
        self.results: Results = {}

    def load(self, process: Process) -> None:
        process.ask(
            "load",
            folder=str(self.folder),
            case=dataclasses.asdict(self.case),
            ignore_index=IGNORE_INDEX,
        )

    def _check(self, process: Process, computation: str) -> dict[str, Any]:
        """How far the answer is off; PeerError where that is too far to be timed."""
        answer = process.ask("answer", computation=computation, folder=str(self.folder))
        gradient = np.load(self.folder / "gradient.npy") if answer["has_gradient"] else None
        off = inputs.errors(self.case, answer["loss"], gradient, self.expected)
        wrong = inputs.what_is_wrong(self.case, off)
        if wrong:
            loss = f"loss {answer['loss']:.6g}, right is {self.expected.loss:.6g}"
            raise PeerError(f"wrong: {wrong} ({loss})")
        return off

    def _enter(self, peer: Peer) -> Entrant | None:
        """Load and check; whatever fails is recorded as the peer's result."""
        wanted = computations(peer)
        try:
            process = self.pool.get(peer)
            self.load(process)
        except PeerError as failure:
            self.results[peer.name] = {name: {"refused": str(failure)} for name in wanted}
            return None
        entrant = Entrant(peer, process, {}, {})
        for name in wanted:
            record = self.results.setdefault(peer.name, {}).setdefault(name, {})
            try:
                record["error"] = {} if name == FLOOR else self._check(process, name)
                seconds = process.ask("time", computation=name, warm_up=0, seconds=0)["seconds"]
                entrant.call_seconds[name] = seconds[0]
                entrant.seconds[name] = seconds if seconds[0] > VERY_SLOW_SECONDS else []
            except PeerError as failure:
                record["refused"] = str(failure)
        return entrant if entrant.seconds else None

    def _time(self, entrant: Entrant, computation: str) -> None:
        # A stopped process finds cold caches; a slow call warms itself up.
        warm_up = 0.0 if entrant.call_seconds[computation] > SLICE_SECONDS else WARM_UP_SECONDS
        seconds = entrant.process.ask(
            "time", computation=computation, warm_up=warm_up, seconds=SLICE_SECONDS
        )["seconds"]
        entrant.seconds[computation] += seconds
        entrant.call_seconds[computation] = statistics.median(seconds)

    def heat(self, peers: list[Peer], seconds: float, bandwidth: Bandwidth) -> None:
        """Rounds of A, B, C, A, B, C … until the time is used up."""
        entrants = [entrant for peer in peers if (entrant := self._enter(peer))]
        end = time.monotonic() + seconds
        for number in range(MAXIMUM_ROUNDS):
            if number >= MINIMUM_ROUNDS and time.monotonic() > end:
                break
            bandwidth.sample(self.case.logits_bytes, 3)
            for computation in PASSES:
                for entrant in entrants:
                    if computation in entrant.seconds and number < entrant.rounds(computation):
                        self._time_or_record(entrant, computation)
        for entrant in entrants:
            for computation, samples in entrant.seconds.items():
                record = self.results[entrant.peer.name][computation]
                record.setdefault("samples", []).extend(samples)

    def _time_or_record(self, entrant: Entrant, computation: str) -> None:
        try:
            self._time(entrant, computation)
        except PeerError as failure:
            self.results[entrant.peer.name][computation]["refused"] = str(failure)
            del entrant.seconds[computation]

    def summary(self) -> Results:
        """Quantiles of the samples, and bytes moved over the median."""
        for by_computation in self.results.values():
            for computation, record in by_computation.items():
                samples = record.pop("samples", [])
                if not samples or "refused" in record:
                    continue
                quantiles = np.quantile(samples, (0.1, 0.25, 0.5, 0.75, 0.9))
                names = ("p10", "p25", "median", "p75", "p90")
                record.update(zip(names, map(float, quantiles), strict=True))
                record["calls"] = len(samples)
                moved = self.case.bytes_moved(computation)
                record["gigabytes_per_second"] = moved / record["median"] / 1e9
        return self.results


def run_case(
    case: Case, peers: list[Peer], pool: Pool, bandwidth: Bandwidth, folder: Path, seconds: float
) -> dict[str, Any]:
    """Everything about one case except its memory."""
    bandwidth.start_case()
    run = CaseRun(case, pool, folder)
    groups, excluded = heats(pool, peers, case)
    if excluded or len(groups) > 1:  # start again with all the memory there is
        pool.close_all()
        groups, excluded = heats(pool, peers, case)
    for name, reason in excluded.items():
        pool.close(name)
        run.results[name] = {
            "forward": {"refused": reason},
            "forward_backward": {"refused": reason},
        }
    for group in groups:
        names = {peer.name for peer in group}
        for name in [name for name in pool.processes if len(groups) > 1 and name not in names]:
            pool.close(name)
        pool.start(group)
        run.heat(group, seconds / len(groups), bandwidth)
    return {
        **dataclasses.asdict(case),
        "logits_bytes": case.logits_bytes,
        "bytes_moved": {name: case.bytes_moved(name) for name in PASSES},
        "bandwidth": bandwidth.result(case.logits_bytes),
        "peers": run.summary(),
    }


def peak_memory(case: Case, peers: list[Peer], pool: Pool, folder: Path) -> dict[str, Any]:
    """Growth of each peer's resident memory in a fresh process, one that has run a small problem.

    Libraries and compilers take memory of their own at the first call; two rows get that out of
    the way. Two processes run side by side: no time is taken here.
    """
    small = dataclasses.replace(case, shape=(2, case.shape[1], *(8 for _ in case.shape[2:])))
    runs = []
    for name, part in (("small", small), ("whole", case)):
        (folder / name).mkdir(exist_ok=True)
        runs.append(CaseRun(part, pool, folder / name))

    def measure(job: tuple[Peer, str]) -> dict[str, Any]:
        peer, computation = job
        process = pool.new(peer)
        try:
            process.wait_until_ready()
            for run in runs:
                run.load(process)
                answer = process.ask("peak_memory", computation=computation)
            return answer
        except PeerError as failure:
            return {"refused": str(failure)}
        finally:
            process.close()

    jobs = [
        (peer, name)
        for peer in peers
        for name in computations(peer)
        if name not in ("forward", FLOOR)
    ]
    with ThreadPoolExecutor(2) as executor:
        measured = list(executor.map(measure, jobs))
    results: dict[str, Any] = {}
    for (peer, computation), answer in zip(jobs, measured, strict=True):
        results.setdefault(peer.name, {})[computation] = answer
    return results
