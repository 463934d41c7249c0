"""What docs/accuracy.md says of our errors, on a small part of its inputs, beside MindSpore's ops.cross_entropy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import accuracy
import accuracy_worker

DOCUMENT = accuracy.DOCUMENT.read_text()


@pytest.mark.parametrize("kind", accuracy.KINDS)
@pytest.mark.parametrize("dtype", accuracy.FORMATS)
def test_errors_are_few_roundings(dtype, kind):
    for classes in (10, 1000):
        case = accuracy.Case(dtype, classes, kind)
        logits, target = accuracy.make(case)
        expected = accuracy.right(logits, target)
        for library in accuracy.OWN:
            most = accuracy.most_roundings(library, 0)
            answer = accuracy_worker.answer(library, logits, target, dtype)
            found = accuracy.errors(dtype, expected, answer)
            for result, error in found.items():
                assert error.roundings <= most, f"{case}, {library}, {result}: {error}"


def test_a_wrong_result_is_told():
    """The measure is none that anything passes: MindSpore's loss loses the places that a common offset takes."""
    case = accuracy.Case("float64", 1000, "offset")
    logits, target = accuracy.make(case)
    expected = accuracy.right(logits, target)
    answer = accuracy_worker.answer("mindspore", logits, target, "float64")
    assert accuracy.errors("float64", expected, answer)["loss"].roundings > 1000


def test_the_truth_is_the_references():
    """On what float64 computes well: the reference's loss and gradient, to its roundings."""
    from ms_ce import reference

    logits, target = accuracy.make(accuracy.Case("float64", 10, "normal"))
    expected = accuracy.right(logits, target)
    loss = reference.cross_entropy(logits, target, reduction="none").loss
    gradient = reference.cross_entropy_grad(logits, target, reduction="sum").logits
    answer = {"loss": loss, "mean": loss.mean(), "gradient": gradient}
    for result, error in accuracy.errors("float64", expected, answer).items():
        assert error.roundings < 10, f"{result}: {error}"


def test_the_document_is_of_these_inputs():
    for library in accuracy.OWN:
        assert f"`{library}`: " in DOCUMENT
        assert f" {accuracy.most_roundings(library, 0)}" in DOCUMENT
    for dtype in accuracy.FORMATS:
        for result in accuracy.RESULTS.values():
            assert f"### {dtype}, {result}" in DOCUMENT
    for kind in accuracy.KINDS:
        for classes in accuracy.ROWS:
            assert DOCUMENT.count(f"| {kind}, C {classes} |") == len(accuracy.FORMATS) * len(
                accuracy.RESULTS
            )
