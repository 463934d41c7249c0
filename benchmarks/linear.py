"""The linear loss: time, peak memory and GFLOP/s, beside torch, MindSpore's MatMul and the bare products.

    python benchmarks/linear.py                   the cases of the README
    python benchmarks/linear.py --case small      one of them
    python benchmarks/linear.py --tokens          log-probabilities and entropies of tokens
    python benchmarks/linear.py --distillation    from a teacher's hidden states
    python benchmarks/linear.py --top-k           from a teacher's log-probabilities of 64 classes
    python benchmarks/linear.py --large           16 GB of logits on this machine, ms_ce alone

Every entrant first computes the loss and all gradients of a few rows, which are compared with a float64 computation;
one whose answer is wrong is not timed. Then all are timed in turn, round after round, in processes of their own of
which only one runs, and so are the processor's multiply-adds (arithmetic.cc). Peak memory is that of the first call in
a fresh process. Torch is taken from .venv-benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import environment
import numpy as np
from linear_cases import CASES, LARGE, TRUTHS, Case

WORKER = Path(__file__).resolve().with_name("linear_worker.py")
ARITHMETIC = Path(__file__).resolve().with_name("arithmetic.cc")
RESULTS = Path(__file__).resolve().parent / "results"
CHECKED_ROWS = 24
CHECK_BOUND = 3e-5  # of the largest gradient: float32 sums of up to 128,256 products
TIMEOUT_SECONDS = 900.0
OURS, TORCH, TORCH_CHUNKED = "ms_ce", "torch", "torch chunked"
OURS_LARGE = "ms_ce, chunks of 64 MiB"
PRODUCTS = ("MindSpore MatMul x3", "torch matmul x3")  # of the sizes of a step, and nothing else
OURS_TOKENS, TORCH_TOKENS = "ms_ce tokens", "torch tokens"
TOKENS = (
    OURS_TOKENS,
    "ms_ce tokens, chunks of 64 MiB",
    "ms_ce tokens, PyNative",
    TORCH_TOKENS,
    *PRODUCTS,
)
OURS_DISTILLATION, TORCH_DISTILLATION = "ms_ce distillation", "torch distillation"
DISTILLATION = (OURS_DISTILLATION, "ms_ce distillation, PyNative", TORCH_DISTILLATION)
COMPOSED = ("ms_ce distillation, composed",)  # when asked for: minutes
OURS_TOP_K, TORCH_TOP_K = "ms_ce top-k", "torch top-k"
TOP_K = (OURS_TOP_K, "ms_ce top-k, PyNative", TORCH_TOP_K)
ENTRANTS = (
    OURS,
    OURS_LARGE,
    "ms_ce PyNative",
    "ms_ce two sweeps",
    "MindSpore MatMul + ms_ce.cross_entropy",
    TORCH,
    TORCH_CHUNKED,
    *PRODUCTS,
)


class WorkerError(Exception):
    """The entrant refused or died; the text is for the table."""


class Worker:
    """One entrant's process, stopped while it is not asked."""

    def __init__(self, name: str, folder: str) -> None:
        python = environment.peer_python() if name.startswith("torch") else sys.executable
        root = str(environment.ROOT)
        # Left to itself, glibc raises the size from which on freed memory is given back to that of the largest array
        # that has been freed, the hidden states say: a peak would be larger by what has gone before it.
        variables = {"GLOG_v": "3", "MALLOC_MMAP_THRESHOLD_": str(1 << 20), **os.environ}
        variables["PYTHONPATH"] = root
        self.process = subprocess.Popen(
            [str(python), str(WORKER), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,  # MindSpore writes folders where it runs
            env=variables,
        )
        self._answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write((json.dumps(request) + "\n").encode())
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"ended with {self.process.wait()}") from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(TIMEOUT_SECONDS):
                self.close()
                raise WorkerError(f"no answer in {TIMEOUT_SECONDS:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"ended with {self.process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"].splitlines()[0])
        self.process.send_signal(signal.SIGSTOP)
        return reply

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def kind_of(name: str) -> str:
    """What an entrant computes, by its name."""
    return next(kind for kind in TRUTHS if kind in name)


def error_of(worker: Worker, case: Case, folder: str, right) -> float:
    """Largest error of loss and gradients, relative to the largest value of each."""
    few = case._replace(rows=CHECKED_ROWS)
    file = Path(folder) / "gradients.npz"
    loss = worker.ask(few.request("check", file=str(file)))["loss"]
    wanted = right(few)
    with np.load(file) as gradients:
        errors = [
            np.abs(actual - expected).max() / np.abs(expected).max()
            for actual, expected in zip(gradients.values(), wanted[1:], strict=True)
        ]
    return float(max(abs(loss - wanted[0]) / wanted[0], *errors))


def checked(name: str, case: Case, folder: str) -> tuple[Worker | None, dict[str, Any]]:
    """A worker fit to be timed, and its record."""
    try:
        worker = Worker(name, folder)
        if name in PRODUCTS:  # no loss, nothing to compare
            return worker, {}
        error = error_of(worker, case, folder, TRUTHS[kind_of(name)])
    except WorkerError as failure:
        return None, {"refused": str(failure)}
    if error > CHECK_BOUND:
        worker.close()
        return None, {"refused": f"wrong by {error:.1e}"}
    return worker, {"error": error}


def growth(name: str, case: Case, folder: str) -> int | None:
    worker = Worker(name, folder)
    try:
        return worker.ask(case.request("memory"))["growth"]
    except WorkerError:
        return None
    finally:
        worker.close()


def run_case(case: Case, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    records: dict[str, dict[str, Any]] = {}
    workers, arithmetic = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{case.name}: {name} …", flush=True)
            worker, records[name] = checked(name, case, folder)
            if worker is not None:
                records[name]["loss"] = worker.ask(case.request("time"))["loss"]
                records[name]["samples"], records[name]["forward"] = [], []
                workers[name] = worker
        program = environment.compiled(ARITHMETIC, folder)
        for _ in range(rounds):
            arithmetic.append(float(subprocess.check_output([program])))
            for name, worker in workers.items():
                records[name]["samples"].append(worker.ask(case.request("time"))["seconds"])
                if kind_of(name) in ("tokens", "distillation"):
                    seconds = worker.ask(case.request("forward"))["seconds"]
                    records[name]["forward"].append(seconds)
        for worker in workers.values():
            worker.close()
        for name in workers:
            records[name]["growth"] = growth(name, case, folder)
    for name in workers:
        records[name]["seconds"] = statistics.median(records[name]["samples"])
    peak = statistics.median(arithmetic)
    return {"case": case._asdict(), "entrants": records, "peak": peak}


def row(name: str, record: dict[str, Any], case: Case) -> str:
    if "seconds" not in record:
        return f"| {name} | {record['refused']} | | | | |"
    samples = record["samples"]
    cells = [
        name,
        f"{record['seconds']:.2f}",
        f"{min(samples):.2f} – {max(samples):.2f}",
        f"{case.flops / record['seconds'] / 1e9:.0f}",
    ]
    if record["growth"] is None:
        cells += ["", ""]
    else:
        beyond = record["growth"] - case.gradient_bytes
        logits = case.logits_bytes * (2 if kind_of(name) == "distillation" else 1)  # of both models
        cells += [f"{record['growth'] / 1e6:.0f}", f"{100 * beyond / logits:.1f} %"]
    return "| " + " | ".join(cells) + " |"


def table(result: dict[str, Any]) -> list[str]:
    case = Case(**result["case"])
    lines = [
        f"### {case.name}: N={case.rows}, H={case.features}, V={case.classes}, "
        f"{100 * case.ignored:.0f} % ignored",
        "",
        f"Logits {case.logits_bytes / 1e6:.0f} MB, gradients {case.gradient_bytes / 1e6:.0f} MB; one step needs "
        f"{case.flops / 1e9:.0f} GFLOP. Two threads' multiply-adds in registers: {result['peak']:.0f} GFLOP/s.",
        "",
        "| forward + backward | median s | range s | GFLOP/s | peak growth MB | beyond gradients, of the logits |",
        "|---|---|---|---|---|---|",
    ]
    lines += [row(name, record, case) for name, record in result["entrants"].items()]
    seconds = {k: v["seconds"] for k, v in result["entrants"].items() if "seconds" in v}
    for peer in (TORCH, TORCH_CHUNKED, *PRODUCTS):
        for ours in (OURS, OURS_LARGE):
            if ours in seconds and peer in seconds:
                ratio = seconds[ours] / seconds[peer]
                lines += ["", f"{ours} takes {ratio:.2f} × the time of {peer}."]
    for products in PRODUCTS:
        if TORCH in seconds and products in seconds:
            ratio = seconds[products] / seconds[TORCH]
            lines += ["", f"{products} alone takes {ratio:.2f} × the time of {TORCH}."]
    for pair in ((OURS_TOKENS, TORCH_TOKENS), (OURS_DISTILLATION, TORCH_DISTILLATION)):
        if pair[0] not in seconds or pair[1] not in seconds:
            continue
        ours, torch = (result["entrants"][name] for name in pair)
        ratio = ours["seconds"] / torch["seconds"]
        forward = [statistics.median(each["forward"]) for each in (ours, torch)]
        lines += [
            "",
            f"{pair[0]} takes {ratio:.2f} × the time of {pair[1]}, forward alone {forward[0]:.2f} s beside "
            f"{forward[1]:.2f} s.",
        ]
    return [*lines, ""]


def report(results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    lines = ["# Linear cross-entropy", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", f"`python {shlex.join(sys.argv)}` made this file.", ""]
    for result in results:
        lines += table(result)
    by_name = {result["case"]["name"]: result["entrants"] for result in results}
    whole, half = (by_name.get(name, {}).get(OURS, {}) for name in ("32k", "32k half ignored"))
    if "seconds" in whole and "seconds" in half:
        ratio = whole["seconds"] / half["seconds"]
        lines += [f"With half the rows ignored {OURS} is {ratio:.2f} × faster.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument(
        "--entrant",
        action="append",
        choices=dict.fromkeys(ENTRANTS + TOKENS + DISTILLATION + COMPOSED + TOP_K),
    )
    parser.add_argument("--tokens", action="store_true", help="linear_token_log_probs")
    parser.add_argument(
        "--distillation", action="store_true", help="linear_distillation_loss, beside both logits"
    )
    parser.add_argument("--top-k", action="store_true", help="linear_top_k_distillation_loss")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--large", action="store_true", help=f"{LARGE.rows} rows of {LARGE.classes}"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    entrants = {"tokens": TOKENS, "distillation": DISTILLATION, "top_k": TOP_K}
    kind = next((each for each in entrants if getattr(arguments, each)), "")
    of_kind = entrants.get(kind, ENTRANTS)
    names = tuple(arguments.entrant or of_kind)
    chosen = arguments.case or (["32k"] if kind else [case.name for case in CASES])
    cases = [case for case in CASES if case.name in chosen]
    if arguments.large:
        names, cases = (OURS,), [LARGE]
    facts = {"date": environment.date(), "commit": environment.commit(), **environment.machine()}
    facts["load average at the start"] = environment.load_average()
    name = "linear" + ("_large" if arguments.large else f"_{kind}" if kind else "")
    arguments.output.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for case in cases:  # each is in the files as soon as it is known
        results.append(run_case(case, 1 if arguments.large else arguments.rounds, names))
        facts["load average at the end"] = environment.load_average()
        (arguments.output / f"{name}.md").write_text(report(results, facts))
        record = json.dumps({"facts": facts, "results": results}, indent=1)
        (arguments.output / f"{name}.json").write_text(record + "\n")
    print(report(results, facts))


if __name__ == "__main__":
    main()
