"""The plots of a run, on a light ground of their own so that they read on a dark page too."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from cases import BEYOND_CACHES_BYTES, CASES
from peers import (
    MINDSPORE_GRAPH,
    MINDSPORE_PYNATIVE,
    OURS,
    OURS_PYNATIVE,
    TORCH_COMPILE,
    TORCH_EAGER,
)
from verdict import Figures

# Okabe and Ito's colours, told apart by every eye; ms_ce has the strongest.
COLOURS = {
    OURS: "#0072B2",
    OURS_PYNATIVE: "#56B4E9",
    "ms_ce composed graph": "#009E73",
    MINDSPORE_GRAPH: "#D55E00",
    MINDSPORE_PYNATIVE: "#E69F00",
    TORCH_EAGER: "#CC79A7",
    TORCH_COMPILE: "#8C5A78",
    "jax.jit optax": "#6E6E6E",
}
KEY_CASES = tuple(case.name for case in CASES if case.every_peer)
ROW_SWEEP = ("1x32000", "8x32000", "64x32000", "512x32000", "2048x32000", "16384x32000")
CLASS_SWEEP = ("1000000x2", "1000000x10", "16384x1000", "2048x32000", "512x128256", "256x262144")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(width, height), dpi=150, facecolor="#FBFBF8")
    axes.set_facecolor("#FBFBF8")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def bars(run: dict[str, Any], path: Path) -> None:
    """Forward and backward of the main shapes: time of each peer, logarithmic."""
    figures = Figures(run)
    cases = [name for name in KEY_CASES if name in figures.cases]
    if not cases:
        return
    figure, axes = _figure(9, 1.2 + 1.25 * len(cases))
    height = 0.8 / len(COLOURS)
    for row, case in enumerate(cases):
        for place, (peer, colour) in enumerate(COLOURS.items()):
            median = figures.median(case, peer, "forward_backward")
            if median is None:
                continue
            position = row + (place - (len(COLOURS) - 1) / 2) * height
            axes.barh(position, 1e3 * median, height, color=colour, label=peer if not row else None)
            axes.text(1.04e3 * median, position, f"{1e3 * median:.3g}", va="center", fontsize=6.5)
    axes.set(xscale="log", yticks=range(len(cases)), xlabel="milliseconds, forward + backward")
    axes.set_yticklabels(cases)
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4, frameon=False)
    _save(figure, path)


def bandwidth_curves(
    run: dict[str, Any], names: tuple[str, ...], axis: int, along: str, path: Path
) -> None:
    """Forward GB/s along a sweep, beside what a plain read of as many bytes reaches."""
    figures = Figures(run)
    names = tuple(name for name in names if name in figures.cases)
    if len(names) < 2:
        return
    figure, axes = _figure(8, 4.2)
    places = [figures.cases[name]["shape"][axis] for name in names]
    read = [
        case["bandwidth"]["read"]
        for case in figures.cases.values()
        if case["logits_bytes"] >= BEYOND_CACHES_BYTES
    ]
    if read:
        label = "reading memory, two threads"
        axes.axhline(statistics.median(read), color="#333333", linestyle="--", label=label)
    for peer, colour in COLOURS.items():
        points = [
            (place, figures.cases[name]["bytes_moved"]["forward"] / median / 1e9)
            for place, name in zip(places, names, strict=True)
            if (median := figures.median(name, peer, "forward")) is not None
        ]
        if len(points) > 2:
            axes.plot(
                *zip(*points, strict=True), color=colour, marker="o", markersize=4, label=peer
            )
    axes.set(xscale="log", yscale="log", xlabel=along, ylabel="GB/s of logits and targets")
    axes.set_xticks(places, [f"{place:,}" for place in places], fontsize=8)
    axes.minorticks_off()
    axes.grid(axis="y", color="#DDDDDD")
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def memory_bars(run: dict[str, Any], path: Path) -> None:
    """Peak memory of forward and backward at the language model's shape."""
    case = Figures(run).cases.get("2048x32000", {})
    growth = {
        peer: record["forward_backward"]["bytes"] / 1e9
        for peer, record in case.get("peak_memory", {}).items()
        if "bytes" in record.get("forward_backward", {})
    }
    if not growth:
        return
    figure, axes = _figure(8, 1.2 + 0.32 * len(growth))
    for row, (peer, size) in enumerate(growth.items()):
        axes.barh(row, size, 0.7, color=COLOURS.get(peer, "#009E73"))
        axes.text(size, row, f" {size:.2f}", va="center", fontsize=8)
    axes.axvline(case["logits_bytes"] / 1e9, color="#333333", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(growth)), list(growth), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GB of peak memory, 2048x32000 float32 (dashed: the gradient itself)")
    _save(figure, path)


def draw(run: dict[str, Any], folder: Path) -> None:
    bars(run, folder / "time.png")
    bandwidth_curves(run, ROW_SWEEP, 0, "rows, 32,000 classes, float32", folder / "rows.png")
    bandwidth_curves(run, CLASS_SWEEP, 1, "classes, float32", folder / "classes.png")
    memory_bars(run, folder / "memory.png")
