"""Compare ms_ce with everything else that computes a cross entropy on a CPU.

    python benchmarks/run.py                      everything, about a quarter of an hour
    python benchmarks/run.py --quick              the cases of the targets, under 2 minutes
    python benchmarks/run.py --cases '*bfloat16'  cases by shell pattern; --peers likewise
    python benchmarks/run.py --isa x86-64-v3      ms_ce as on a processor without AVX-512
    python benchmarks/run.py --list               cases and peers, and why each is there

Runs in the environment of ms_ce; torch and JAX live in .venv-benchmarks, made at the first run.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment
import plots
import report
import verdict
from bandwidth import Bandwidth
from cases import CASES, Case
from measure import peak_memory, run_case
from peers import PEERS, Peer, takes_part
from pool import Pool

RESULTS = Path(__file__).resolve().parent / "results"
PARTIAL_RESULTS = environment.ROOT / "build" / "benchmarks"  # never over those of a whole run
# A case of the targets has twice as many peers, and its figures are the ones that are quoted.
SECONDS, SECONDS_EVERY_PEER, SECONDS_QUICK = 4.0, 12.0, 2.0


def chosen(items: tuple, patterns: str | None) -> list:
    """Cases or peers whose name matches one of the comma-separated shell patterns."""
    if patterns is None:
        return list(items)
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    found = [x for x in items if any(fnmatch.fnmatch(x.name, pattern) for pattern in wanted)]
    if not found:
        raise SystemExit(
            f"benchmarks/run.py: nothing matches {patterns!r}; there is: "
            + ", ".join(item.name for item in items)
        )
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds")
    parser.add_argument("--cases", metavar="PATTERN", help="shell patterns, comma-separated")
    parser.add_argument("--peers", metavar="PATTERN", help="shell patterns, comma-separated")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: benchmarks/results for a whole run, build/benchmarks for part of one",
    )
    parser.add_argument("--peer-python", metavar="PATH", help="a Python with torch, jax and optax")
    parser.add_argument("--isa", metavar="NAME", help="instruction set of ms_ce, as MS_CE_ISA")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--list", action="store_true", help="print cases and peers, and stop")
    return parser.parse_args()


def print_list() -> None:
    for case in CASES:
        print(f"{case.name:36}{'quick' if case.quick else '':8}{case.why}")
    print()
    for peer in PEERS:
        print(peer.name)


def _progress(text: str, started: float) -> None:
    print(f"{time.monotonic() - started:5.0f} s  {text}", flush=True)


def measure_cases(
    cases: list[Case], peers: list[Peer], pool: Pool, folder: Path, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Times of every case, then the memory of those that ask for it; and the libraries' versions."""
    started = time.monotonic()
    bandwidth = Bandwidth(str(folder))
    _progress("starting the peers", started)
    pool.start([peer for peer in peers if any(takes_part(peer, case) for case in cases)])
    results = []
    try:
        for case in cases:
            _progress(case.name, started)
            seconds = SECONDS_EVERY_PEER if case.every_peer else SECONDS
            seconds = SECONDS_QUICK if options.quick else seconds
            present = [peer for peer in peers if takes_part(peer, case)]
            results.append(run_case(case, present, pool, bandwidth, folder, seconds))
    finally:
        bandwidth.close()
    versions = {name: text for p in pool.processes.values() for name, text in p.versions.items()}
    pool.close_all()
    for case, result in zip(cases, results, strict=True):
        if case.memory and not options.no_memory and not options.quick:
            _progress(f"{case.name}: peak memory", started)
            present = [peer for peer in peers if takes_part(peer, case)]
            result["peak_memory"] = peak_memory(case, present, pool, folder)
    return results, versions


def main() -> None:
    options = arguments()
    if options.list:
        print_list()
        return
    if options.isa:
        os.environ["MS_CE_ISA"] = options.isa
    cases = chosen(CASES, options.cases)
    if options.quick and options.cases is None:
        cases = [dataclasses.replace(case, composed=False) for case in cases if case.quick]
    peers = chosen(PEERS, options.peers)
    peer_python = options.peer_python
    if peer_python is None:
        needed = any(peer.own_environment for peer in peers)
        peer_python = environment.peer_python() if needed else sys.executable
    run: dict[str, Any] = {
        "command": " ".join(["python benchmarks/run.py", *sys.argv[1:]]),
        "date": environment.date(),
        "commit": environment.commit(),
        "load_average": environment.load_average(),
        "machine": environment.machine(),
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(peer_python, folder)
        try:
            run["cases"], run["versions"] = measure_cases(cases, peers, pool, Path(folder), options)
        finally:
            pool.close_all()
    run["seconds"] = time.monotonic() - started
    part = options.isa or options.quick or options.cases or options.peers or options.no_memory
    output = options.output or (PARTIAL_RESULTS if part else RESULTS)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(run, indent=1) + "\n")
    (output / "results.md").write_text(report.markdown(run))
    plots.draw(run, output)
    print()
    print(verdict.table(run))
    print(f"written: {output}/results.json, results.md and plots")


if __name__ == "__main__":
    main()
