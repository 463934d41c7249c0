"""The targets of the project, each beside what this run measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from peers import (
    FLOOR,
    MINDSPORE_GRAPH,
    MINDSPORE_PYNATIVE,
    OURS,
    OURS_PYNATIVE,
    TORCH_COMPILE,
    TORCH_EAGER,
)

LANGUAGE_MODEL, LLAMA, SMALL = "2048x32000", "512x128256", "64x1000"
COUNTED = {"forward_backward": "two passes'", "two_passes": "its", "value_and_grad": "its"}
TRAINING = ("forward_backward", "two_passes")
NAMES = {
    "forward": "forward",
    "forward_backward": "forward + backward",
    "two_passes": "forward + backward in two passes",
    "value_and_grad": "value and gradient in one pass",
}


class Verdict(NamedTuple):
    """`measured` is None where the run left the case out, or a peer refused it."""

    target: str
    wanted: float
    at_least: bool  # else at most
    measured: float | None
    unit: str

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


class Figures:
    """Look-ups in a run's results; None for whatever was not measured."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.cases = {case["name"]: case for case in run["cases"]}

    def median(self, case: str, peer: str, computation: str) -> float | None:
        peers = self.cases.get(case, {}).get("peers", {})
        return peers.get(peer, {}).get(computation, {}).get("median")

    def times_faster(
        self, case: str, peer: str, computation: str, *, ours: str = OURS, with_ours: str = ""
    ) -> float | None:
        theirs = self.median(case, peer, computation)
        own = self.median(case, ours, with_ours or computation)
        return theirs / own if theirs and own else None

    def share_of_read_bandwidth(self, case: str) -> float | None:
        median = self.median(case, OURS, "forward")
        if median is None:
            return None
        record = self.cases[case]
        return 100 * record["logits_bytes"] / median / 1e9 / record["bandwidth"]["read"]

    def times_copy_limit(self, case: str, computation: str) -> float | None:
        """Time over bytes moved / copy bandwidth, a copy counted with its read and its write."""
        median = self.median(case, OURS, computation)
        if median is None:
            return None
        record = self.cases[case]
        limit = record["bytes_moved"][computation] / 1e9 / record["bandwidth"]["copy"]
        return median / limit

    def extra_memory(self, case: str, peer: str, computation: str) -> float | None:
        """Peak growth beyond the gradient, in percent of the logits."""
        record = self.cases.get(case, {})
        growth = record.get("peak_memory", {}).get(peer, {}).get(computation, {}).get("bytes")
        if growth is None:
            return None
        return 100 * (growth / record["logits_bytes"] - 1)


def _large_shapes(figures: Figures) -> Iterator[Verdict]:
    for case in (LANGUAGE_MODEL, LLAMA):
        share = figures.share_of_read_bandwidth(case)
        yield Verdict(f"{case} forward, of read bandwidth", 85, True, share, " %")
        for computation, passes in COUNTED.items():
            over = figures.times_copy_limit(case, computation)
            name = f"{case} {NAMES[computation]}, time over {passes} bytes ÷ copy bandwidth"
            yield Verdict(name, 1.25, False, over, "×")
    for computation in TRAINING:
        for case in (LANGUAGE_MODEL, LLAMA):
            for peer, wanted in ((TORCH_EAGER, 12), (TORCH_COMPILE, 8), (MINDSPORE_GRAPH, 25)):
                times = figures.times_faster(case, peer, "forward_backward", with_ours=computation)
                yield Verdict(
                    f"{case} {NAMES[computation]}, faster than {peer}", wanted, True, times, "×"
                )


def _other_shapes(figures: Figures) -> Iterator[Verdict]:
    for case in ("segmentation", "1000000x10"):
        for computation in ("forward", "forward_backward"):
            times = figures.times_faster(case, TORCH_EAGER, computation)
            yield Verdict(
                f"{case} {NAMES[computation]}, faster than torch eager", 2, True, times, "×"
            )
    for ours, theirs in ((OURS, MINDSPORE_GRAPH), (OURS_PYNATIVE, MINDSPORE_PYNATIVE)):
        for computation in ("forward", "forward_backward"):
            times = figures.times_faster(SMALL, theirs, computation, ours=ours)
            yield Verdict(
                f"{SMALL} {NAMES[computation]}, faster than {theirs}", 1, True, times, "×"
            )
    median = figures.median(SMALL, OURS_PYNATIVE, "forward")
    milliseconds = None if median is None else 1e3 * median
    yield Verdict(f"{SMALL} forward, pynative median", 0.5, False, milliseconds, " ms")
    none_ignored = figures.median(LANGUAGE_MODEL, OURS, "forward")
    most_ignored = figures.median(f"{LANGUAGE_MODEL} ignored 99%", OURS, "forward")
    times = none_ignored / most_ignored if none_ignored and most_ignored else None
    yield Verdict("99 % ignored forward, faster than 0 % ignored", 20, True, times, "×")
    for dtype in ("float16", "bfloat16"):
        half = figures.median(f"{LANGUAGE_MODEL} {dtype}", OURS, "forward")
        times = none_ignored / half if none_ignored and half else None
        yield Verdict(f"{LANGUAGE_MODEL} {dtype} forward, faster than float32", 2, True, times, "×")


def _pynative(figures: Figures) -> Iterator[Verdict]:
    """PyNative beside graph mode, and beside the gradient of one operator."""
    wanted = {
        f"{case}{dtype}": 1.3 for case in (LANGUAGE_MODEL, LLAMA) for dtype in ("", " bfloat16")
    }
    wanted["1024x32000 probabilities"] = 1.4
    for case, limit in wanted.items():
        faster = figures.times_faster(
            case, OURS_PYNATIVE, "forward_backward", with_ours="forward_backward"
        )
        yield Verdict(f"{case} forward + backward, PyNative over graph", limit, False, faster, "×")
    floor = figures.median(SMALL, OURS_PYNATIVE, FLOOR)
    own = figures.median(SMALL, OURS_PYNATIVE, "forward_backward")
    over = own / floor if own and floor else None
    yield Verdict(
        f"{SMALL} forward + backward, PyNative over MindSpore's floor", 1.2, False, over, "×"
    )


def _first_release(figures: Figures) -> Iterator[Verdict]:
    for peer, wanted in ((TORCH_EAGER, 8), (MINDSPORE_GRAPH, 20)):
        times = figures.times_faster(LANGUAGE_MODEL, peer, "forward_backward")
        yield Verdict(
            f"{LANGUAGE_MODEL} forward + backward, faster than {peer}", wanted, True, times, "×"
        )
    for peer in (OURS, OURS_PYNATIVE):
        extra = figures.extra_memory(LANGUAGE_MODEL, peer, "forward_backward")
        name = f"{LANGUAGE_MODEL} {peer}, peak memory beyond the gradient, of the logits"
        yield Verdict(name, 1, False, extra, " %")


def verdicts(run: dict[str, Any]) -> dict[str, list[Verdict]]:
    """By the stage of the project that set the targets."""
    figures = Figures(run)
    return {
        "PyNative": list(_pynative(figures)),
        "Tuned kernel": [*_large_shapes(figures), *_other_shapes(figures)],
        "First release": list(_first_release(figures)),
    }


def table(run: dict[str, Any]) -> str:
    """Markdown, also fit for a terminal."""
    lines = []
    for stage, rows in verdicts(run).items():
        lines += [f"**{stage}**", "", "| target | wanted | measured | met |", "|---|---|---|---|"]
        for row in rows:
            sign = "≥" if row.at_least else "≤"
            measured = "not measured" if row.measured is None else f"{row.measured:.3g}{row.unit}"
            met = {True: "yes", False: "**no**", None: "–"}[row.met]
            lines.append(f"| {row.target} | {sign} {row.wanted:g}{row.unit} | {measured} | {met} |")
        lines.append("")
    return "\n".join(lines)
