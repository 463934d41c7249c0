"""Times ms_ce's loss beside MindSpore's on your shape and your machine: two minutes, a table and a picture."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import mindspore as ms

from ms_ce import __version__
from ms_ce.backend import choose
from ms_ce.ops.cpu import library
from ms_ce.tools.measure import MODES, PASSES, TOLERANCE, Entry, Problem, measure

HELP = "time ms_ce's loss beside MindSpore's on your shape: a table and a picture"
# Arrays of logits' size that MindSpore's loss was seen to hold at once (benchmarks/results/results.md), and the inputs.
_COPIES = 24
_BYTES = 4  # the most that an element of any of them takes


class RefusedError(ValueError):
    """Arguments that fit by themselves and cannot be served here."""


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not 2 <= len(shape) <= 7 or min(shape) < 1:
        raise argparse.ArgumentTypeError(
            f"must be rows,classes or N,C,d1,…,d5, each at least 1, as in 2048,32000; got {text!r}"
        )
    return shape


def _share(text: str) -> float:
    return _number(text, 0.0, 1.0, "between 0 and 1")


def _seconds(text: str) -> float:
    return _number(text, 1.0, 3600.0, "from 1 to 3600")


def _number(text: str, low: float, high: float, range_name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be a number {range_name}, got {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shape", type=_shape, default=(2048, 32000), help="of the logits; default 2048,32000")
    add("--dtype", choices=tuple(TOLERANCE), default="float32", help="default float32")
    add("--mode", choices=(*MODES, "both"), default="both", help="default both")
    add("--label-smoothing", type=_share, default=0.0, metavar="SHARE", help="default 0")
    add("--ignored", type=_share, default=0.0, metavar="SHARE", help="of the rows; default 0")
    add("--seconds", type=_seconds, default=60.0, help="of timing, after the checks; default 60")
    add("--json", action="store_true", help="print JSON instead of the table")
    add("--picture", type=Path, metavar="FILE", help="default ms_ce_bench.png, where matplotlib is")


def _free_bytes() -> int | None:
    """Linux's estimate of the memory that can be had."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line), None)


def _picture_path(arguments: argparse.Namespace) -> Path | None:
    """Where the picture goes; None where nobody can draw it and nobody asked for it."""
    wanted: Path | None = arguments.picture
    if importlib.util.find_spec("matplotlib") is None:
        if wanted is not None:
            raise RefusedError("--picture needs matplotlib: pip install matplotlib")
        return None
    path = wanted or Path("ms_ce_bench.png")
    if not path.absolute().parent.is_dir() or path.suffix not in (".png", ".svg", ".pdf"):
        raise RefusedError(
            f"--picture must be a .png, .svg or .pdf in a folder that exists, got {path}"
        )
    return path


def _check(arguments: argparse.Namespace) -> Path | None:
    needed, free = _COPIES * _BYTES * math.prod(arguments.shape), _free_bytes()
    if free is not None and needed > free:
        raise RefusedError(
            f"--shape {arguments.shape}: MindSpore's loss may take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
            "are free; choose fewer rows"
        )
    return _picture_path(arguments)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _machine() -> dict[str, str | int]:
    return {
        "ms_ce": __version__,
        "mindspore": ms.__version__,
        "device": ms.get_context("device_target"),
        "backend": choose("bench"),
        "instruction set": library.instruction_set() if library.problem() is None else "none",
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
    }


def _times_as_fast(entries: list[Entry], ours: Entry) -> str:
    """MindSpore's median over ours for the same mode and pass."""
    for other in entries:
        same = (other.mode, other.computation) == (ours.mode, ours.computation)
        if same and other is not ours and other.milliseconds and ours.loss == "ms_ce":
            return f"{other.quartiles[1] / ours.quartiles[1]:.1f}"
    return ""


def _shown(milliseconds: float) -> str:
    """Three digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def table(entries: list[Entry]) -> str:
    lines = [
        "| mode | pass | loss | ms | middle half | times as fast |",
        "|---|---|---|---:|---|---:|",
    ]
    for entry in entries:
        where = f"| {entry.mode} | {entry.computation} | {entry.loss} |"
        if entry.milliseconds:
            first, median, third = entry.quartiles
            factor = _times_as_fast(entries, entry)
            lines.append(f"{where} {_shown(median)} | {_shown(first)}–{_shown(third)} | {factor} |")
        else:
            lines.append(f"{where} {entry.problem} | | |")
    return "\n".join(lines)


def _as_json(problem: Problem, machine: dict, entries: list[Entry]) -> str:
    results = []
    for entry in entries:
        row: dict[str, Any] = {"mode": entry.mode, "pass": entry.computation, "loss": entry.loss}
        numbers = {}
        if entry.milliseconds:
            numbers = dict(zip(("p25_ms", "median_ms", "p75_ms"), entry.quartiles, strict=True))
        results.append(row | numbers | {"calls": len(entry.milliseconds), "problem": entry.problem})
    return json.dumps({"machine": machine, "problem": vars(problem), "results": results}, indent=2)


def draw(path: Path, title: str, entries: list[Entry]) -> None:
    """Bars of medians with their middle half, a panel for each pass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axis, computation in zip(figure.subplots(1, len(PASSES)), PASSES, strict=True):
        shown = [e for e in entries if e.computation == computation and e.milliseconds]
        for place, entry in enumerate(shown):
            first, median, third = entry.quartiles
            spread = [[median - first], [third - median]]
            colour = "C0" if entry.loss == "ms_ce" else "C7"
            axis.barh(place, median, xerr=spread, color=colour)
            axis.text(median, place, f" {_shown(median)}", va="bottom", fontsize=8)
        axis.set_yticks(range(len(shown)), [f"{e.loss}\n{e.mode}" for e in shown], fontsize=8)
        axis.invert_yaxis()
        axis.set(xlabel="ms", title=computation)
        axis.margins(x=0.15)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)


def run(arguments: argparse.Namespace) -> int:
    """0 where ours was timed in every row; 1 where it was not."""
    path = _check(arguments)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {text}", file=sys.stderr, flush=True)

    problem = Problem(
        arguments.shape, arguments.dtype, arguments.label_smoothing, arguments.ignored
    )
    modes = tuple(MODES) if arguments.mode == "both" else (arguments.mode,)
    machine = _machine()
    entries = measure(problem, modes, arguments.seconds, say)
    title = f"{arguments.shape} {arguments.dtype}, {machine['processor']}, {machine['processors']} processors"
    if arguments.json:
        print(_as_json(problem, machine, entries))
    else:
        print(f"{title}\n" + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
        print(table(entries))
    if path is None:
        say("no picture: matplotlib is not installed")
    else:
        draw(path, title, entries)
        say(f"the picture is {path}")
    return 0 if all(entry.milliseconds for entry in entries if entry.loss == "ms_ce") else 1
