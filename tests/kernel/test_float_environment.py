"""The calling thread's floating-point environment: no operation's results depend on it, and none changes it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tests.kernel.float_environment import ENVIRONMENTS, UNMASKED, changed, registers
from tests.kernel.library import (
    Library,
    cast,
    empty,
    fixed_dtypes,
    options,
    plan,
    text,
    to_float64,
)
from tests.kernel.operations import Loss
from tests.support.tolerances import check_close, tolerance

DTYPES = ("float32", "float16", "bfloat16", "float64")

# A denormal of each dtype, some binary digits above the smallest.
TINY = {"float32": 3e-40, "float16": 2e-5, "bfloat16": 3e-39, "float64": 3e-310}

# Rows enough for three and for eight threads (kMinElementsPerThread in ops/csrc/platform/thread_pool.cc).
ROWS, MANY_ROWS = 420, 1110
CLASSES, FEATURES = 950, 16

# Every operation, as often as it has ways to reduce.
BOTH = ("none", "mean")
REDUCTIONS = {
    "CrossEntropyForward": ("mean",),
    "CrossEntropyForwardRows": ("none",),
    "CrossEntropyStats": ("mean",),
    "CrossEntropyStatsRows": ("none",),
    "CrossEntropyBackward": BOTH,
    "CrossEntropyDoubleBackward": BOTH,
    "CrossEntropyTargetGrad": BOTH,
    "CrossEntropyWeightGrad": BOTH,
    "CrossEntropyTargetGradAlong": BOTH,
    "CrossEntropyWeightGradAlong": BOTH,
    "CrossEntropyValueAndGrad": ("mean",),
    "CrossEntropyValueAndGrads": ("mean",),
    "CrossEntropyPartial": ("none",),
    "CrossEntropyPartialBackward": ("none",),
    "CrossEntropyPartialTargetGrad": ("none",),
    "CrossEntropyPartialWeightGrad": ("none",),
    "TokenLogProbs": ("none",),
    "TokenLogProbsBackward": ("none",),
    "NLLForward": ("mean",),
    "NLLForwardRows": ("none",),
    "NLLBackward": BOTH,
    "LinearCrossEntropyForward": ("mean",),
    "LinearCrossEntropyForwardRows": ("none",),
    "LinearCrossEntropyStats": ("mean",),
    "LinearCrossEntropyStatsRows": ("none",),
    "LinearCrossEntropyBackward": BOTH,
    "LinearCrossEntropyBackwardInput": BOTH,
    "LinearCrossEntropyBackwardWeight": BOTH,
    "LinearCrossEntropyBackwardBias": BOTH,
    "LinearCrossEntropyTargetGrad": BOTH,
    "LinearCrossEntropyWeightGrad": BOTH,
    "LinearTokenLogProbs": ("none",),
    "LinearTokenLogProbsBackward": ("none",),
    "LinearTokenLogProbsBackwardInput": ("none",),
    "LinearTokenLogProbsBackwardWeight": ("none",),
    "LinearTokenLogProbsBackwardBias": ("none",),
    "LinearCrossEntropyValueAndGrad": ("mean",),
    "LinearCrossEntropyValueAndGradInput": ("mean",),
    "LinearCrossEntropyValueAndGradWeight": ("mean",),
    "LinearCrossEntropyValueAndGradBias": ("mean",),
    "LinearCrossEntropyRescale": ("mean",),
    "LinearDistillationForward": ("sum",),
    "LinearDistillationForwardRows": ("none",),
    "LinearDistillationBackward": ("none", "sum"),
    "LinearDistillationBackwardInput": ("none", "sum"),
    "LinearDistillationBackwardWeight": ("none", "sum"),
    "LinearDistillationBackwardBias": ("none", "sum"),
    "LinearDistillationValueAndGrad": ("sum",),
    "LinearDistillationValueAndGradInput": ("sum",),
    "LinearDistillationValueAndGradWeight": ("sum",),
    "LinearDistillationValueAndGradBias": ("sum",),
    "LinearTopKDistillationForward": ("sum",),
    "LinearTopKDistillationForwardRows": ("none",),
    "LinearTopKDistillationBackward": ("none", "sum"),
    "LinearTopKDistillationBackwardInput": ("none", "sum"),
    "LinearTopKDistillationBackwardWeight": ("none", "sum"),
    "LinearTopKDistillationBackwardBias": ("none", "sum"),
    "LinearTopKDistillationValueAndGrad": ("sum",),
    "LinearTopKDistillationValueAndGradInput": ("sum",),
    "LinearTopKDistillationValueAndGradWeight": ("sum",),
    "LinearTopKDistillationValueAndGradBias": ("sum",),
    "RefuseDerivative": ("none",),
}


@functools.lru_cache(maxsize=4)
def drawn(dtype: str, reduction: str, probabilities: bool, rows: int) -> dict[str, np.ndarray]:
    """Arguments by their names in the library's description. A third of their numbers is denormal; of the weights and
    the scalar upstream gradients, by which results are multiplied, all are."""
    random = np.random.default_rng(11)

    def draw(*shape: int, tiny: float = 1 / 3) -> np.ndarray:
        size = np.where(random.random(shape) < tiny, TINY[dtype], 1.0)
        return cast(random.normal(size=shape) * size, dtype)

    def draw_upstream() -> np.ndarray:
        return draw(rows) if reduction == "none" else draw(tiny=1.0)

    target = draw(rows, CLASSES) if probabilities else random.integers(0, CLASSES, rows)
    return {
        "logits": draw(rows, CLASSES),
        "target": target,
        "weight": cast((random.random(CLASSES) + 0.5) * TINY[dtype], dtype),
        "row_weight": random.normal(size=rows) * (random.random(rows) < 0.9),
        "direction": draw(rows, CLASSES),
        "grad_loss": draw_upstream(),
        "grad_z_loss": draw_upstream(),
        "lse": random.normal(size=rows) + 7.0,
        "direction_mean": random.normal(size=rows),
        "entropy": random.random(rows),
        "mass": random.random(rows),
        "total_weight": np.array(1.7),
        "applied": np.array(np.nan),
        "options": options(
            reduction=reduction,
            label_smoothing=0.1,
            z_loss=0.01,
            has_weight=True,
            has_row_weight=True,
            has_grad_z_loss=True,
            has_entropy=True,
            beta=0.3,
        ),
        "input": draw(rows, FEATURES),
        "linear_weight": draw(CLASSES, FEATURES),
        "linear_bias": draw(CLASSES),
        "teacher_hidden": draw(rows, 3),
        "teacher_weight": draw(CLASSES, 3),
        "teacher_bias": draw(CLASSES),
        "teacher_log_probs": cast(np.log(random.dirichlet(np.ones(4), rows)[:, :3]), dtype),
        "teacher_indices": np.argsort(random.random((rows, CLASSES)), 1)[:, :3],
        "tail": np.array(1.0),
        "plan": plan(),
        "arriving": np.zeros(()),
        "reason": text("read by nobody"),
    }


def arguments(
    name: str, dtype: str, reduction: str, probabilities: bool = False, rows: int = ROWS
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Inputs and outputs of one call, in order."""
    given = drawn(dtype, reduction, probabilities, rows)
    given = {
        **given,
        "grad_rows": given["grad_loss"],
        "grad_lse": given["grad_z_loss"],
        "grad_entropy": given["grad_z_loss"],
        "log_prob": given["logits"],
        **{f"grad_{name}": given[name] for name in ("input", "linear_weight", "linear_bias")},
    }
    shapes = {
        "scalar": (),
        "loss": (rows,) if reduction == "none" else (),
        "rows": (rows,),
        "partial": (rows, 3),
        "target": given["logits"].shape,
        **{name: given[name].shape for name in ("logits", "weight", "input")},
        **{name: given[name].shape for name in ("linear_weight", "linear_bias")},
    }
    dtypes, operation = fixed_dtypes(), Library().operations[name]
    inputs = [given[argument["name"]] for argument in operation["inputs"]]
    outputs = [
        empty(shapes[argument["extent"]], dtypes.get(argument["type"], dtype))
        for argument in operation["outputs"]
    ]
    return inputs, outputs


def computed(library: Library, name: str, call: tuple[list, list]) -> list[bytes]:
    """The results; some operations write to what they are given."""
    inputs, outputs = ([array.copy() for array in arrays] for arrays in call)
    library.call(name, inputs, outputs)
    return [array.tobytes() for array in (*inputs, *outputs)]


@contextmanager
def within(library: Library, bits: int) -> Iterator[None]:
    """Operations find these bits of the control register the other way round, and must leave all as they found it."""

    @contextmanager
    def around() -> Iterator[None]:
        with changed(bits):
            before = registers()
            yield
            assert registers() == before

    library.around = around
    try:
        yield
    finally:
        del library.around


def test_every_operation_is_tested() -> None:
    assert list(Library().operations) == list(REDUCTIONS)


def takes_probabilities_only(name: str) -> bool:
    return any(each["type"] == "P" for each in Library().operations[name]["inputs"])


_WITHOUT_PROBABILITIES = ("NLL", "TokenLogProbs", "Distillation", "Rescale", "Refuse")


def calls() -> list[object]:
    kinds = []
    for name, reductions in REDUCTIONS.items():
        for reduction in reductions:
            if not takes_probabilities_only(name):
                kinds.append(pytest.param(name, reduction, False, id=f"{name}-{reduction}"))
            if not any(part in name for part in _WITHOUT_PROBABILITIES):
                kinds.append(
                    pytest.param(name, reduction, True, id=f"{name}-{reduction}-probabilities")
                )
    return kinds


# What a thread may have set, and on how many threads the operation then runs.
MIXED = (("flushed down", 3), ("flushed up", 2), ("flushed to zero", 1))
SINGLE = tuple((name, threads) for name in ENVIRONMENTS for threads in (1, 8))


def bits_of(names: str) -> int:
    return sum(bits for name, bits in ENVIRONMENTS.items() if name in names)


def check_bits(library: Library, name: str, call: tuple[list, list], environments: tuple) -> None:
    library.set_threads(1)
    with within(library, 0):
        expected = computed(library, name, call)
    for environment, threads in environments:
        library.set_threads(threads)
        with within(library, bits_of(environment)):
            results = computed(library, name, call)
        assert results == expected, f"{environment}, {threads} threads"


@pytest.mark.parametrize(("name", "reduction", "probabilities"), calls())
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_it(
    isa_library: Library, name: str, reduction: str, probabilities: bool, dtype: str
) -> None:
    check_bits(isa_library, name, arguments(name, dtype, reduction, probabilities), MIXED)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_results_of_many_threads_do_not_depend_on_it(
    library: Library, name: str, dtype: str
) -> None:
    probabilities = takes_probabilities_only(name)
    call = arguments(name, dtype, REDUCTIONS[name][0], probabilities, MANY_ROWS)
    check_bits(library, name, call, SINGLE)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_error_leaves_it_alone(library: Library, environment: str) -> None:
    logits, target = np.zeros((3, 5), np.float32), np.array([0, 5, 1])
    with (
        within(library, bits_of(environment)),
        pytest.raises(RuntimeError, match=r"outside \[0, 5\)"),
    ):
        Loss(library, logits, target).forward()


def test_unmasked_exceptions_do_not_end_the_process(library: Library) -> None:
    """Nearly every result is inexact, which a thread may have asked to hear of."""
    call = arguments("CrossEntropyForward", "float32", "mean")
    expected = computed(library, "CrossEntropyForward", call)
    with within(library, UNMASKED):
        assert computed(library, "CrossEntropyForward", call) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("environment", ["", *ENVIRONMENTS])
def test_denormal_logits_count(isa_library: Library, environment: str, dtype: str) -> None:
    """Scaled up to ordinary size, they make an ordinary loss."""
    random = np.random.default_rng(3)
    scale = {"float16": 3e4, "float64": 1e308}.get(dtype, 1e38)
    logits = cast(random.normal(size=(40, 70)) * TINY[dtype], dtype)
    weight = cast(random.random(70), dtype)
    loss = Loss(
        isa_library, logits, random.integers(0, 70, 40), weight, logit_scale=scale, reduction="none"
    )
    upstream = cast(random.normal(size=40) * TINY[dtype], dtype)
    bound = tolerance("cpu", dtype)
    with within(isa_library, bits_of(environment)):
        value, grad = loss.forward()[0], loss.backward(upstream)
    check_close(to_float64(value), loss.reference().loss, dtype, bound, "loss")
    expected = loss.reference_grad(upstream).logits
    check_close(to_float64(grad), expected, dtype, bound, "grad_logits")
