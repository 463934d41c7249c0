"""ComputeTiling: its pieces fit the unified buffer, cover the problem and reach copies of 16 KB."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.expected import OPTIONS, Options, check_gradient, check_loss
from tests.ascend.host_model import CORES, UB_BYTES, HostModel
from tests.ascend.operators import Run, backward, decode, forward, forward_grad
from tests.ascend.problems import make

# What docs/ascend.md states, in classes: how long a row may be that MsCeForwardGrad keeps between its two passes, how
# long one that it keeps as exponentials in float32, without label smoothing and with it, and how many weights stay in
# the unified buffer where label smoothing needs them all.
RESIDENT = {"bfloat16": 54528, "float32": 38144}
EXPONENTIALS = {
    ("bfloat16", 0.0): 37888,
    ("bfloat16", 0.1): 36416,
    ("float32", 0.0): 38144,
    ("float32", 0.1): 36672,
}
KEPT = {
    ("forward", "bfloat16"): 32512,
    ("backward", "bfloat16"): 35392,
    ("forward_grad", "bfloat16"): 28288,
    ("forward", "float32"): 36096,
    ("backward", "float32"): 38464,
    ("forward_grad", "float32"): 31872,
}
# Vector cores by the platform query: 910B1 and 910B2, 910B3 and 910B4. The unified buffer is the same on every chip of
# ascend910b and ascend910_93.
CHIP_CORES = (48, 40)


def tiling(kind, dtype, rows, classes, **options):
    machine = HostModel(dtype)
    return machine.tiling(machine.problem(kind, rows, classes, **options))


@pytest.mark.parametrize("cores", CHIP_CORES)
@pytest.mark.parametrize("dtype", RESIDENT)
def test_residency_is_what_the_documents_say(dtype, cores):
    for classes, resident in ((RESIDENT[dtype], 1), (RESIDENT[dtype] + 1, 0)):
        assert tiling("forward_grad", dtype, 96, classes, cores=cores).resident == resident


@pytest.mark.parametrize("cores", CHIP_CORES)
@pytest.mark.parametrize(("dtype", "smoothing"), EXPONENTIALS)
def test_rows_of_exponentials_are_what_the_documents_say(dtype, smoothing, cores):
    longest, chip = EXPONENTIALS[dtype, smoothing], {"labelSmoothing": smoothing, "cores": cores}
    for classes, stays in ((longest, 1), (longest + 1, 0)):
        assert tiling("forward_grad", dtype, 96, classes, **chip).keepsRow == stays
    weighted = tiling("forward_grad", dtype, 96, 20000, **chip, hasWeight=1)
    assert weighted.keepsRow == (smoothing == 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_longest_row_of_exponentials_fits(dtype):
    """With the records of 64 cores, the most that there may be."""
    for smoothing in (0.0, 0.1):
        classes, options = EXPONENTIALS[dtype, smoothing], Options(label_smoothing=smoothing)
        problem, logits, target = make((64, classes, 64), dtype, options)
        problem.grad_loss = np.float64(1.0)
        both, _ = forward_grad(
            logits, target, None, dtype, run=Run(cores=64), **options.attributes()
        )
        check_gradient(problem, decode(both["grad_logits"], dtype), dtype)


@pytest.mark.parametrize("cores", CHIP_CORES)
@pytest.mark.parametrize(("kind", "dtype"), KEPT)
def test_weights_that_stay_are_what_the_documents_say(kind, dtype, cores):
    smoothed = {"labelSmoothing": 0.1, "hasWeight": 1, "cores": cores}
    for classes, stays in ((KEPT[kind, dtype], 1), (KEPT[kind, dtype] + 1, 0)):
        assert tiling(kind, dtype, 96, classes, **smoothed).keepsWeights == stays


@pytest.mark.parametrize("ub_bytes", [131_072, UB_BYTES, 253_952])
@pytest.mark.parametrize(
    "shape", [(40, 30, 2), (40, 600, 2), (9, 5000, 2), (5, 70000, 1), (2, 70000, 7)], ids=str
)
def test_other_sizes_of_unified_buffer(shape, ub_bytes):
    """The host reads the size from the platform; every kernel must fit whatever it says."""
    options = OPTIONS["mean-smooth-weight"]
    problem, logits, target = make(shape, "float32", options)
    chip = {"ubBytes": ub_bytes, "run": Run(cores=shape[2]), **options.attributes()}
    out, _ = forward(logits, target, problem.weight, "float32", **chip)
    check_loss(problem, out["loss"])
    problem.grad_loss = np.float64(1.0)
    gradient, _ = backward(
        np.ones(1),
        logits,
        target,
        problem.weight,
        out["lse"],
        out["total_weight"],
        "float32",
        **chip,
    )
    check_gradient(problem, decode(gradient, "float32"), "float32")
    both, _ = forward_grad(logits, target, problem.weight, "float32", **chip)
    check_gradient(problem, decode(both["grad_logits"], "float32"), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "kind", ["forward", "backward", "prob_forward", "prob_backward", "partial", "forward_grad"]
)
def test_pieces_cover_the_problem(kind, dtype):
    machine = HostModel(dtype)
    for rows in (0, 1, 3, 47, 48, 1000, 100_000):
        for classes in (1, 63, 64, 1000, 1024, 1025, 32000, 262_144, 1_000_000):
            for cores in (1, 7, 40, CORES):
                tiling = machine.tiling(machine.problem(kind, rows, classes, cores=cores))
                assert 1 <= tiling.usedCores <= cores
                assert (
                    tiling.slices * tiling.sliceCols
                    >= classes
                    > (tiling.slices - 1) * tiling.sliceCols
                )
                assert tiling.tilesPerRow * tiling.tileCols >= tiling.sliceCols
                assert tiling.tilePitch >= tiling.tileCols
                assert tiling.tilePitch * machine.problem(kind, 1, 1).logitsBytes % 32 == 0
                assert tiling.slices == 1 or tiling.usedCores == rows * tiling.slices


def test_few_rows_use_every_core():
    machine = HostModel("bfloat16")
    assert machine.tiling(machine.problem("forward", 4, 128256)).usedCores == CORES
    assert (
        machine.tiling(machine.problem("backward", 1, 262144)).usedCores >= 30
    )  # 16 KB a core are worth more than cores


def test_small_problems_leave_cores_idle():
    machine = HostModel("float32")
    assert machine.tiling(machine.problem("forward", 64, 64)).usedCores == 1
