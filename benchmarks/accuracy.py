"""python benchmarks/accuracy.py: how far losses and gradients are from float64, into docs/accuracy.md.

ms_ce on its backends cpu and composed, MindSpore's own ops.cross_entropy, and torch, all on the same inputs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import environment
import numpy as np

DOCUMENT = environment.ROOT / "docs" / "accuracy.md"
WORKER = Path(__file__).with_name("accuracy_worker.py")
LIBRARIES = ("ms_ce-cpu", "ms_ce-composed", "mindspore", "torch")
OWN, PEERS = LIBRARIES[:2], LIBRARIES[2:]
ROWS = {10: 512, 1000: 64, 32000: 8, 262144: 4}  # by the number of classes
RESULTS = {"loss": "loss of each row", "mean": "mean loss", "gradient": "gradient"}
# Bits after the point, smallest normal exponent, and the vendor's threshold T: MERE < T and MARE < 10 T.
FORMATS = {
    "float64": (52, -1022, None),
    "float32": (23, -126, 2.0**-13),
    "float16": (10, -14, 2.0**-10),
    "bfloat16": (7, -126, 2.0**-7),
}


class Case(NamedTuple):
    dtype: str
    classes: int
    kind: str

    @property
    def name(self) -> str:
        return "_".join(str(part).replace(" ", "-") for part in self)


class Error(NamedTuple):
    """Of one result: in ulp, the largest and the mean; relative, the mean (MERE) and the largest (MARE); and the
    largest in roundings of what the result is a sum of."""

    largest: float
    mean: float
    mere: float
    mare: float
    roundings: float


def _normal(x, target, dtype):
    return 2 * x


def _offset(x, target, dtype):
    """A common offset that leaves float32 eight units between neighbours; float16 ends at 65504."""
    return x * 50 + (3e4 if dtype == "float16" else 1e8)


def _dominant(x, target, dtype):
    """A class that is no target lies 100 above the others: losses are near 100."""
    x = x.copy()
    x[np.arange(len(x)), (target + 1) % x.shape[1]] += 100
    return x


def _uniform(x, target, dtype):
    return np.full_like(x, 0.7)


def _cancelling(x, target, dtype):
    """The target lies far above all others: lse is nearly its logit, and its probability nearly 1."""
    x = x.copy()
    x[np.arange(len(x)), target] = 12 + np.log(x.shape[1])
    return x


# A rounding of what is computed in, which for 16 bits is float32.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-24, "bfloat16": 2.0**-24}

KINDS = {
    "normal": _normal,
    "offset": _offset,
    "dominant class": _dominant,
    "uniform": _uniform,
    "cancelling": _cancelling,
}


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """To numbers of a dtype, as float64."""
    if dtype != "bfloat16":
        return values.astype(dtype).astype(np.float64)
    bits = values.astype(np.float32).view(np.uint32)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)).astype(
        np.float64
    )


def ulp(values: np.ndarray, dtype: str) -> np.ndarray:
    bits, smallest, _ = FORMATS[dtype]
    exponent = np.frexp(np.abs(values).astype(np.float64))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, smallest) - bits)


def error(actual: np.ndarray, expected: np.ndarray, terms: np.ndarray, dtype: str) -> Error:
    """Where both are infinite or nan alike there is none; one alone is an infinite error. `terms` are the sizes of what
    the result is a sum of."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual - expected)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    difference = np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))
    ulps, relative = difference / ulp(expected, dtype), difference / (np.abs(expected) + 1e-7)
    # What lies below the smallest normal number of the type that is computed in may be 0.
    least = 2.0 ** FORMATS["float64" if dtype == "float64" else "float32"][1]
    allowed = UNIT[dtype] * terms + least
    of_terms = np.maximum(difference - ulp(expected, dtype) / 2, 0.0) / allowed
    found = (ulps.max(), ulps.mean(), relative.mean(), relative.max(), of_terms.max())
    return Error(*(float(each) for each in found))


def make(case: Case) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(list(case.name.encode()))
    shape = (ROWS[case.classes], case.classes)
    target = random.integers(0, case.classes, shape[0])
    return rounded(
        KINDS[case.kind](random.standard_normal(shape), target, case.dtype), case.dtype
    ), target


def right(logits: np.ndarray, target: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Losses of the rows, their mean, and the gradient of their sum, in eleven bits more than float64 has; each with
    the sizes of its terms.

    From the target's logit, so that nothing cancels: with S = Σ exp(x_c - x_y) over the other classes the loss is
    log(1 + S), and the gradient is exp(x_c - x_y) / (1 + S), -S / (1 + S) at the target.
    """
    if np.finfo(np.longdouble).nmant < 63:
        raise SystemExit("benchmarks/accuracy.py: long double must have 64 bits, as on x86-64")
    rows, x = np.arange(len(target)), logits.astype(np.longdouble)
    terms = np.exp(x - x[rows, target][:, None])
    terms[rows, target] = 0.0
    others = terms.sum(-1)
    gradient = terms / (1 + others)[:, None]
    gradient[rows, target] = -others / (1 + others)
    loss = np.log1p(others)
    # A sum of exponentials near 1 is rounded before its logarithm is taken, p before 1 is subtracted, and the exponent
    # of p before it is raised.
    p = np.abs(gradient)
    p[rows, target] = 1 / (1 + others)
    distance = np.where(p > 0, loss[:, None] - (x - x[rows, target][:, None]), 0.0)
    of_gradient = p * (1 + np.abs(distance))
    of_gradient[rows, target] += 1
    return {
        "loss": (loss, 1 + loss),
        "mean": (loss.mean(), 1 + loss.mean() * len(target)),
        "gradient": (gradient, of_gradient),
    }


def errors(dtype: str, expected: dict, answer: dict) -> dict[str, Error] | str:
    """By result, or why a library does not take the case."""
    if "refused" in answer:
        return str(answer["refused"])
    return {name: error(answer[name], *expected[name], dtype) for name in RESULTS}


def errors_of_files(case: Case, folder: Path) -> dict[str, dict[str, Error] | str]:
    """The same of each library, whose worker has answered."""
    given = np.load(folder / f"{case.name}.npz")
    expected = right(given["logits"], given["target"])
    answers = {name: np.load(folder / f"{case.name}.{name}.npz") for name in LIBRARIES}
    return {name: errors(case.dtype, expected, answer) for name, answer in answers.items()}


def _figure(value: float) -> str:
    return "∞" if np.isinf(value) else f"{value:.2g}" if value < 100 else f"{value:.1e}"


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def ulp_table(found: dict, dtype: str, result: str) -> list[str]:
    lines = [_row("input", list(LIBRARIES)), "|---|" + "---:|" * len(LIBRARIES)]
    for case, of_case in found.items():
        if case.dtype != dtype:
            continue
        cells = [
            "refused"
            if isinstance(each, str)
            else f"{_figure(each[result].largest)} ({_figure(each[result].mean)})"
            for each in of_case.values()
        ]
        lines.append(_row(f"{case.kind}, C {case.classes}", cells))
    return lines


def vendor_table(found: dict) -> list[str]:
    """The worst of all inputs."""
    lines = [
        _row("dtype, result", [f"{name}: MERE, MARE" for name in LIBRARIES]),
        "|---|" + "---:|" * len(LIBRARIES),
    ]
    for dtype, (_, _, threshold) in FORMATS.items():
        for result in RESULTS:
            cells = []
            for library in LIBRARIES:
                each = [
                    of_case[library][result]
                    for case, of_case in found.items()
                    if case.dtype == dtype and not isinstance(of_case[library], str)
                ]
                if not each:
                    cells.append("refused")
                    continue
                mere, mare = max(e.mere for e in each), max(e.mare for e in each)
                met = (
                    ""
                    if threshold is None
                    else " ✓"
                    if mere < threshold and mare < 10 * threshold
                    else " ✗"
                )
                cells.append(f"{_figure(mere)}, {_figure(mare)}{met}")
            lines.append(_row(f"{dtype}, {result}", cells))
    return lines


def behind(found: dict, library: str) -> list[tuple[str, bool]]:
    """Where another library's largest error is smaller, and whether ours has its reason."""
    lines = []
    for case, of_case in found.items():
        own = of_case[library]
        for result in RESULTS:
            peers = {
                p: of_case[p][result].largest for p in PEERS if not isinstance(of_case[p], str)
            }
            least = min(peers, key=peers.__getitem__, default=None)
            if least is not None and peers[least] < own[result].largest:
                roundings = own[result].roundings
                text = f"{_figure(own[result].largest)} ulp, {least} {_figure(peers[least])}"
                text += f"; {_figure(roundings)} roundings"
                name = f"{case.dtype}, {case.kind}, C {case.classes}, {result}"
                explained = roundings <= most_roundings(library, case.classes)
                lines.append((f"{name}: {text}", explained))
    return lines


def without_reason(found: dict) -> list[str]:
    """Where a peer is ahead by more than ours may be off."""
    return [
        f"{library}: {line}"
        for library in OWN
        for line, explained in behind(found, library)
        if not explained
    ]


def document(found: dict, versions: dict[str, str]) -> str:
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [
        "# Accuracy",
        "",
        *INTRODUCTION.splitlines(),
        "",
        f"Measured {environment.date()} with {used}.",
        "",
        "## By Ascend's standard",
        "",
        "The worst of all inputs, then of all but *cancelling*: a sum in float32 has few places of a loss near 1e-5.",
        "Numbers of float16 end at 6e-8: 1e-7 and rounding there make the relative error of its gradients.",
        "",
        *vendor_table(found),
        "",
        *vendor_table({case: each for case, each in found.items() if case.kind != "cancelling"}),
        "",
        "## Where a peer's largest error is smaller",
        "",
    ]
    for library in OWN:
        lines = behind(found, library)
        parts += [f"`{library}`: {len(lines)} of {sum(len(RESULTS) for _ in found)} rows.", ""]
        parts += [f"- {line}" for line, _ in lines] + ([""] if lines else [])
    parts += [*REASONS.splitlines(), "", "## In ulp: largest (mean)", ""]
    for dtype in FORMATS:
        for result, text in RESULTS.items():
            parts += [f"### {dtype}, {text}", "", *ulp_table(found, dtype, result), ""]
    return "\n".join(parts)


INTRODUCTION = """\
Written by `python benchmarks/accuracy.py`; do not edit. How far losses and gradients of class targets are from float64
(`ms_ce/reference.py`) on the same inputs, which are numbers of the dtype. `mindspore` is `ops.cross_entropy`, in
PyNative as all of them; `refused` is what it does not take on CPU.

- **ulp**: the distance of the dtype's neighbours at the right value, not below its smallest normal number. Who rounds
  the right result once is at most 0.5 ulp away.
- **MERE, MARE**: the mean and the largest of |y - r| / (|r| + 1e-7). Ascend's standard asks MERE < T and MARE < 10 T
  with T = 2⁻¹³ (float32), 2⁻¹⁰ (float16), 2⁻⁷ (bfloat16); ✓ says that all inputs meet it.
- **Inputs**: *normal*, of deviation 2; an *offset* of 1e8 (float16: 3e4) common to a row; a *dominant class* 100 above
  the others, not the target; *uniform*, all logits equal; *cancelling*, the target 12 + log C above the others, where
  lse - x and p - 1 lose their leading digits."""

REASONS = """\
The reason of each of these rows is one of two. *Rounding*: what the result is a sum of was rounded as its dtype is, a
few times, and of two such errors either may be the smaller. Where a sum near 1 has its logarithm taken, or 1 is
subtracted from a probability near 1, nearly all places of the result are lost whoever computes it. `roundings` says
how many of them the largest error is: half a place of the terms 1 + loss for a loss, p (1 + |log p|) for a gradient and
1 more at the target, 1 + n·mean for the mean of n rows, beyond the result's own half place. The kernel promises 40
(2e-6 in float32). Up to 20 come from what its exponentials are relative to: a logit up to 20 below the maximum, by
which it reads a row only once ([kernel.md](kernel.md)).

*MindSpore's exp and sum*, for `ms_ce-composed`: its exp is good to 1.1e-5 in float32, 185 roundings, and 0 where the
result is no normal number; its sum adds the classes of a row one after another, and may round each time. The script
fails where a row has neither reason."""


def most_roundings(library: str, classes: int) -> int:
    """What `roundings` may be: docs/backends.md, and the errors of MindSpore's exp and sum."""
    return 40 if library == "ms_ce-cpu" else 185 + classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=max(ROWS), help="classes at most")
    parser.add_argument(
        "--print", action="store_true", help="print the document instead of writing it"
    )
    given = parser.parse_args()
    cases = [
        Case(dtype, classes, kind)
        for dtype in FORMATS
        for kind in KINDS
        for classes in ROWS
        if classes <= given.largest
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in cases:
            logits, target = make(case)
            np.savez(folder / f"{case.name}.npz", logits=logits, target=target, dtype=case.dtype)
        for library in LIBRARIES:
            python = environment.peer_python() if library == "torch" else sys.executable
            subprocess.run([python, WORKER, library, folder], check=True)
        found = {case: errors_of_files(case, folder) for case in cases}
        versions = {library: (folder / f"{library}.version").read_text() for library in LIBRARIES}
    text = document(found, versions)
    if given.print:
        print(text)
    else:
        DOCUMENT.write_text(text)
    unexplained = without_reason(found)
    if unexplained:
        raise SystemExit("\n".join(["without a reason:", *unexplained]))


if __name__ == "__main__":
    main()
