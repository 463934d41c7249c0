"""What each sharded loss communicates in a training step, counted, and what that costs by the α-β model.

    python benchmarks/communication.py [--mindformers-python PYTHON] [--write]

Our exchanges and mindformers' are counted from the graphs that MindSpore's own partitioner makes for a 2×2 mesh (the
rig of tests/parallel); without an interpreter that has mindformers, its counts are those of the last run, in
benchmarks/results/communication.json. Megatron-LM's are read from its source. --write keeps the counts.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
WORKERS = REPOSITORY / "tests" / "parallel"
RESULTS = REPOSITORY / "benchmarks" / "results" / "communication.json"

VOCABULARY = 152_064
CLASS_RANKS = 8
ROWS_PER_RANK = 8_192
RANKS = (8, 64, 256, 1_024)
# Assumed, not measured: start-up of a message, and bandwidth of a rank within a host and between hosts.
START_UP = 10e-6
WITHIN_HOST, BETWEEN_HOSTS = 100e9, 25e9


@dataclass(frozen=True)
class Exchange:
    """A collective over the ranks that share rows (`classes`) or those that share classes (`rows`).

    It sends `per_row` bytes for each row of a rank plus `constant` bytes. A ReduceScatter counts what is scattered, the
    rows of the whole group.
    """

    operator: str
    over: str
    per_row: float = 0.0
    constant: float = 0.0
    phase: str = ""

    def seconds(self, ranks: int, rows: int) -> float:
        """Recursive halving and doubling: 2·log₂ p messages for an AllReduce, log₂ p for the others."""
        if ranks == 1:
            return 0.0
        size = self.per_row * rows + self.constant
        bandwidth = WITHIN_HOST if self.over == "classes" else BETWEEN_HOSTS
        share = (ranks - 1) / ranks
        moved, rounds = {
            "AllReduce": (2 * share * size, 2),
            "AllGather": ((ranks - 1) * size, 1),
            # `size` is per rank; the whole group's rows are scattered.
            "ReduceScatter": (share * size * ranks, 1),
        }[self.operator]
        return rounds * math.ceil(math.log2(ranks)) * START_UP + moved / bandwidth


FLOAT = 4
READ_FROM_SOURCES = {
    "logits gathered, bfloat16": [
        Exchange("AllGather", "classes", 2 * VOCABULARY / CLASS_RANKS),
        Exchange("ReduceScatter", "classes", 2 * VOCABULARY / CLASS_RANKS),
    ],
    "Megatron-LM": [
        *[Exchange("AllReduce", "classes", FLOAT)] * 3,
        Exchange("AllReduce", "rows", 0, 2 * FLOAT),
    ],
    "ms_ce, SPMD": [
        Exchange("AllGather", "classes", 3 * FLOAT),
        Exchange("AllReduce", "rows", 0, 2 * FLOAT),
    ],
}


def counted(exchanges: list[dict], rows: int) -> list[Exchange]:
    """Exchanges of rank 0 of a 2×2 mesh, by row: ranks 0 and 1 share rows, ranks 0 and 2 classes."""
    found = []
    for one in exchanges:
        over = "classes" if one["ranks"] == [0, 1] else "rows"
        elements = one["elements"] / (2 if one["operator"] == "ReduceScatter" else 1)
        if elements < rows:
            found.append(Exchange(one["operator"], over, constant=one["bytes"]))
        else:
            found.append(Exchange(one["operator"], over, per_row=FLOAT * elements / rows))
    return found


def run_worker(python: str, script: str, arguments: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        command = [
            python,
            str(WORKERS / script),
            *[str(result) if a == "RESULT" else a for a in arguments],
        ]
        path = f"{REPOSITORY}:{WORKERS}"
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": path,
            "GLOG_v": "4",
            "HOME": directory,
        }
        subprocess.run(command, check=True, cwd=directory, env=environment, capture_output=True)
        return json.loads(result.read_text())


def count(mindformers_python: str | None) -> dict[str, list[dict]]:
    """Exchanges of rank 0 on a 2×2 mesh with 4 rows a rank."""
    mesh = run_worker(sys.executable, "partitioner_worker.py", ["RESULT", "mesh 2x2"])
    counts = {"ms_ce, partitioned": mesh["mesh 2x2"]["exchanges"][0]}
    if mindformers_python:
        interpreter = str(
            Path(mindformers_python).absolute()
        )  # a worker runs in a folder of its own
        both = run_worker(interpreter, "mindformers_worker.py", ["partitioned", "RESULT"])
        counts["mindformers 2.1.0"] = both["theirs"]["exchanges"]
    else:
        counts["mindformers 2.1.0"] = json.loads(RESULTS.read_text())["mindformers 2.1.0"]
    return counts


def methods(counts: dict[str, list[dict]]) -> dict[str, list[Exchange]]:
    found = {name: counted(exchanges, rows=4) for name, exchanges in counts.items()}
    return {
        "logits gathered, bfloat16": READ_FROM_SOURCES["logits gathered, bfloat16"],
        "mindformers 2.1.0": found["mindformers 2.1.0"],
        "Megatron-LM": READ_FROM_SOURCES["Megatron-LM"],
        "ms_ce, partitioned": found["ms_ce, partitioned"],
        "ms_ce, SPMD": READ_FROM_SOURCES["ms_ce, SPMD"],
    }


def table(chosen: dict[str, list[Exchange]]) -> str:
    """Markdown: messages and bytes a row, then milliseconds by the number of ranks."""
    header = "| loss | collectives over classes | bytes a row | over rows | bytes a row | "
    lines = [header + " | ".join(f"{ranks:,} ranks" for ranks in RANKS) + " |"]
    lines.append("|---" * (5 + len(RANKS)) + "|")
    for name, exchanges in chosen.items():
        cells = [name]
        for over in ("classes", "rows"):
            part = [one for one in exchanges if one.over == over]
            cells += [str(len(part)), f"{sum(one.per_row for one in part):,.0f}"]
        for ranks in RANKS:
            groups = {"classes": CLASS_RANKS, "rows": ranks // CLASS_RANKS}
            seconds = sum(one.seconds(groups[one.over], ROWS_PER_RANK) for one in exchanges)
            cells.append(f"{1e3 * seconds:.2f} ms")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mindformers-python", help="interpreter that has mindformers")
    parser.add_argument("--write", action="store_true", help="keep the counts")
    arguments = parser.parse_args()
    counts = count(arguments.mindformers_python)
    if arguments.write:
        RESULTS.write_text(json.dumps(counts, indent=1) + "\n")
    print(table(methods(counts)))


if __name__ == "__main__":
    main()
