"""Precision of the Ascend operators in the vendor's own terms, from the host model against the float64 reference.

    python benchmarks/ascend_precision.py [--markdown]

MERE is the mean and MARE the largest of |actual - expected| / (|expected| + 1e-7) over all elements of an output. The
vendor's standard asks for MERE < T and MARE < 10·T with T = 2⁻¹³ for float32, 2⁻¹⁰ for float16 and 2⁻⁷ for bfloat16.
The worst of two shapes and two sets of options is shown, beside what the exact value has that is rounded to the
output's dtype: no operator can do better. The line "exact from lse" is the gradient by exact arithmetic from a
log-sum-exp in float32, which is all that a backward operator is given. The host model's exp is right to about one unit
in the last place; the chip's is not known.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.ascend.expected import OPTIONS, Problem, reference
from tests.ascend.operators import (
    Run,
    backward,
    decode,
    encode,
    forward,
    forward_grad,
    nll_backward,
    nll_forward,
    partial,
)
from tests.ascend.problems import make

THRESHOLD = {"float32": 2.0**-13, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SHAPES = ((64, 1000, 8), (8, 32000, 4))
CHOICES = ("none", "none-all")
Outputs = dict[tuple[str, str], tuple[np.ndarray, np.ndarray, str]]


def exact_from_lse(problem: Problem) -> np.ndarray:
    """The gradient by exact arithmetic, but for lse, which float32 rounds."""
    lse, kept = problem.result().lse[:, None], problem.kept()[:, None]
    weight = np.ones(problem.logits.shape[1]) if problem.weight is None else problem.weight
    mass = (weight * problem.target_rows()).sum(1, keepdims=True)
    slope = problem.grad_loss[:, None] * (mass + 2 * problem.options.z_loss * lse)
    lost = np.expm1(lse - lse.astype(np.float32).astype(np.float64))
    return problem.gradient() + np.where(kept, slope * np.exp(problem.logits - lse) * lost, 0.0)


def class_targets(shape, dtype: str, name: str) -> Outputs:
    """Of the operators with class targets: actual, expected and the output's dtype, by operator and output."""
    options = OPTIONS[name]
    problem, logits, target = make(shape, dtype, options)
    given, run = options.attributes(), Run(cores=shape[2])
    out, _ = forward(logits, target, problem.weight, dtype, reduction="none", run=run, **given)
    expected = problem.result()
    saved = (out["lse"], out["total_weight"])
    call = (problem.grad_loss, logits, target, problem.weight)
    gradient, _ = backward(*call, *saved, dtype, reduction="none", run=run, **given)
    block, _ = partial(logits, target, problem.weight, dtype, run=run, **given)
    one = OPTIONS["mean-all" if name == "none-all" else "mean"]
    whole, coded, chosen = make(shape, dtype, one)
    whole.grad_loss = np.float64(1.0)
    both, _ = forward_grad(coded, chosen, whole.weight, dtype, run=run, **one.attributes())
    rounded = {
        ("exact from lse", "grad_logits"): (exact_from_lse(problem), problem.gradient(), dtype)
    }
    return (rounded if dtype == "float32" else {}) | {
        ("MsCeForward", "loss"): (out["loss"], expected.loss, "float32"),
        ("MsCeForward", "lse"): (out["lse"], expected.lse, "float32"),
        ("MsCePartial", "lse"): (block["lse"], expected.lse, "float32"),
        ("MsCeBackward", "grad_logits"): (decode(gradient, dtype), problem.gradient(), dtype),
        ("MsCeForwardGrad", "loss"): (both["loss"], whole.result().loss, "float32"),
        ("MsCeForwardGrad", "grad_logits"): (
            decode(both["grad_logits"], dtype),
            whole.gradient(),
            dtype,
        ),
    }


def probabilities(shape, dtype: str, name: str) -> Outputs:
    options = OPTIONS[name]
    problem, logits, target = make(shape, dtype, options, probabilities=True)
    given, run = options.attributes(), Run(cores=shape[2])
    call = (logits, target, problem.weight)
    out, _ = forward(*call, dtype, reduction="none", run=run, **given)
    saved = (out["lse"], out["total_weight"])
    gradient, _ = backward(
        problem.grad_loss,
        *call,
        *saved,
        dtype,
        mass=out["mass"],
        reduction="none",
        run=run,
        **given,
    )
    return {
        ("MsCeProbForward", "loss"): (out["loss"], problem.result().loss, "float32"),
        ("MsCeProbBackward", "grad_logits"): (decode(gradient, dtype), problem.gradient(), dtype),
    }


def log_probabilities(shape, dtype: str, name: str) -> Outputs:
    options = OPTIONS[name]
    problem, log_prob, target = make(shape, dtype, options)
    choice = {"reduction": "none", "ignoreIndex": options.ignore_index, "run": Run(cores=shape[2])}
    out, _ = nll_forward(log_prob, target, problem.weight, dtype, **choice)
    call = (problem.grad_loss, log_prob, target, problem.weight, out["total_weight"])
    gradient, _ = nll_backward(*call, dtype, **choice)
    given = (problem.logits, target, problem.weight, options.ignore_index, "none")
    loss, _ = reference.nll_loss(*given)
    expected = reference.nll_loss_grad(*given, grad_loss=problem.grad_loss).logits
    return {
        ("MsCeNllForward", "loss"): (out["loss"], loss, "float32"),
        ("MsCeNllBackward", "grad_log_prob"): (decode(gradient, dtype), expected, dtype),
    }


def relative(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """MERE and MARE."""
    error = np.abs(actual - expected) / (np.abs(expected) + 1e-7)
    return np.array([error.mean(), error.max()])


def errors() -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray, float]]:
    """MERE and MARE, those of the rounded exact value, and T, by operator, output and dtype of the logits."""
    worst: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray, float]] = {}
    for dtype in THRESHOLD:
        for shape in SHAPES:
            for name in CHOICES:
                for outputs in (class_targets, probabilities, log_probabilities):
                    for key, (actual, expected, kind) in outputs(shape, dtype, name).items():
                        exact = np.asarray(expected)
                        kept = np.isfinite(exact)
                        exact = exact[kept]
                        found = relative(np.asarray(actual, np.float64)[kept], exact)
                        coded = decode(encode(exact.astype(np.float32), kind), kind)
                        rounded = relative(coded, exact)
                        before = worst.get((*key, dtype), (found, rounded, 0.0))
                        worst[(*key, dtype)] = (
                            np.maximum(before[0], found),
                            np.maximum(before[1], rounded),
                            THRESHOLD[kind],
                        )
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="as docs/ascend.md shows it")
    markdown = parser.parse_args().markdown
    titles = ("operator", "output", "logits", "MERE / T", "MARE / 10·T", "exact value's", "", "")
    if markdown:
        print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for key, (found, rounded, threshold) in sorted(errors().items()):
        limits = np.array([threshold, 10 * threshold])
        verdict = "kept" if (found < limits).all() else "**not kept**"
        numbers = [f"{v:.2g}" for v in (*(found / limits), *(rounded / limits))]
        line = (*key, *numbers, verdict)
        print("| " + " | ".join(line) + " |" if markdown else "  ".join(line))


if __name__ == "__main__":
    main()
