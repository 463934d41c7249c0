"""A run as Markdown: machine, verdicts, a table for each case, and who refused what."""

from __future__ import annotations

from typing import Any

import verdict
from cases import BEYOND_CACHES_BYTES, FORMULAS

TITLES = {
    "forward": "forward",
    "forward_backward": "forward + backward",
    "two_passes": "forward + backward, gradient_in_forward=False",
    "value_and_grad": "cross_entropy_value_and_grad",
    "floor": "value_and_grad of ReduceMean",
}


def _beyond_caches(case: dict[str, Any]) -> bool:
    return case["logits_bytes"] >= BEYOND_CACHES_BYTES


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _cells(record: dict[str, Any], case: dict[str, Any], computation: str) -> list[str]:
    """Median, middle half, GB/s, share of the read bandwidth, error."""
    if "median" not in record:
        return [record.get("refused", "not measured"), "", "", "", ""]
    share = record["gigabytes_per_second"] / case["bandwidth"]["read"]
    error = f"{max(record['error'].values()):.0e}" if record["error"] else ""
    return [
        _milliseconds(record["median"]),
        f"{_milliseconds(record['p25'])} – {_milliseconds(record['p75'])}",
        f"{record['gigabytes_per_second']:.3g}",
        f"{100 * share:.0f} %" if computation == "forward" and _beyond_caches(case) else "",
        error,
    ]


def _case_table(case: dict[str, Any]) -> list[str]:
    size = case["logits_bytes"] / 1e6
    bandwidth = case["bandwidth"]
    shape = "×".join(map(str, case["shape"]))
    text = f"{case['why']}; logits {shape} {case['dtype']}, {size:.4g} MB"
    if _beyond_caches(case):
        text += f"; reading {bandwidth['read']:.3g} GB/s, copying {bandwidth['copy']:.3g} GB/s"
    lines = [
        f"### {case['name']}",
        "",
        f"{text[0].upper()}{text[1:]}.",
        "",
        "| peer | computation | ms | middle half | GB/s | of read | error |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for computation, title in TITLES.items():
        records = {
            name: by_computation[computation]
            for name, by_computation in case["peers"].items()
            if computation in by_computation
        }
        order = sorted(records, key=lambda name: records[name].get("median", float("inf")))
        for name in order:
            cells = _cells(records[name], case, computation)
            lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    return [*lines, ""]


def _summary(cases: list[dict[str, Any]], computation: str) -> list[str]:
    """One row a case, one column a peer; the fastest in bold, so that a loss is seen at once."""
    peers = list(dict.fromkeys(name for case in cases for name in case["peers"]))
    lines = [f"| case | {' | '.join(peers)} |", "|---|" + "---:|" * len(peers)]
    for case in cases:
        medians = {}
        for name in peers:
            record = case["peers"].get(name, {}).get(computation, {})
            if "median" in record:
                medians[name] = record["median"]
        best = min(medians.values(), default=None)
        cells = []
        for name in peers:
            text = _milliseconds(medians[name]) if name in medians else "–"
            if name not in medians and name in case["peers"]:
                text = "refused"
            cells.append(f"**{text}**" if medians.get(name) == best and best else text)
        lines.append(f"| {case['name']} | {' | '.join(cells)} |")
    return lines


def _memory_table(cases: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| case | peer | computation | growth, MB | times the logits |",
        "|---|---|---|---:|---:|",
    ]
    for case in cases:
        for name, by_computation in case.get("peak_memory", {}).items():
            for computation, record in by_computation.items():
                head = f"| {case['name']} | {name} | {TITLES[computation]} "
                if "bytes" not in record:
                    lines.append(f"{head}| {record['refused']} | |")
                    continue
                times = record["bytes"] / case["logits_bytes"]
                lines.append(f"{head}| {record['bytes'] / 1e6:.0f} | {times:.2f} |")
    return lines


def markdown(run: dict[str, Any]) -> str:
    """Everything that a reader needs to judge the figures, on one page."""
    facts = {**run["machine"], **run["versions"]}
    lines = [
        "# Benchmark results",
        "",
        f"{run['command']}, {run['date']}, commit {run['commit']}, {run['seconds']:.0f} s, "
        f"load average {run['load_average']:.1f} at the start.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "Medians over all rounds, peers in turn; mean reduction, int32 targets (torch: int64). GB/s counts the "
        "least a computation must move, whatever a peer moves: "
        + "; ".join(f"{TITLES[name]}: {text}" for name, text in FORMULAS.items())
        + ". The share of the read bandwidth is given where the logits do not fit into a cache. "
        "The error is the larger of the loss's and the gradient's, as a share of the loss and of "
        "the largest gradient, against float64.",
        "",
        "## Targets",
        "",
        verdict.table(run),
    ]
    for computation in ("forward", "forward_backward"):
        lines += [
            f"## Milliseconds, {TITLES[computation]}",
            "",
            *_summary(run["cases"], computation),
            "",
        ]
    if any("peak_memory" in case for case in run["cases"]):
        lines += [
            "## Peak memory",
            "",
            "Growth beyond the loaded inputs; the gradient is 1.00.",
            "",
        ]
        lines += [*_memory_table(run["cases"]), ""]
    lines += ["## Cases", ""]
    for case in run["cases"]:
        lines += _case_table(case)
    return "\n".join(lines)
