"""The drop-in under MindSpore's own partitioner, for whole meshes: numbers, and every collective that is inserted.

partitioner_worker.py compiles and interprets in processes of its own; the tests read what it wrote.
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.parallel.partitioner_cases import CASES, CLASSES_PER_RANK, ROWS_PER_RANK
from tests.parallel.processes import run_script

# Against a hang; two idle cores take about 60 seconds, busy ones have taken ten times that.
SECONDS = 1200
LOSS_TOLERANCE = GRADIENT_TOLERANCE = 2e-6
# The gradient of 16-bit logits is rounded to 16 bits: half a unit of the last of 11 bits, and gradients are below 0.5.
HALF_GRADIENT_TOLERANCE = 0.5 * 2**-11


LARGEST = "mesh 16x8"
EXTRAS = [
    "sharded cell, mean",
    "sharded cell, sum",
    "weights, gradients summed",
    "weights, gradients averaged",
    "refusal",
    "wrong label",
]


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """The 128 ranks of the largest mesh take as long as everything else: two processes."""
    halves = [[LARGEST], [name for name in CASES if name != LARGEST] + EXTRAS]
    directories = [tmp_path_factory.mktemp("partitioner") for _ in halves]

    def compile_and_run(names, directory):
        return run_script("partitioner_worker.py", ["results.json", *names], directory, SECONDS)

    with ThreadPoolExecutor() as pool:
        finished = list(pool.map(compile_and_run, halves, directories))
    assert [one.code for one in finished] == [0, 0], "\n".join(one.output for one in finished)
    parts = [json.loads((directory / "results.json").read_text()) for directory in directories]
    return parts[0] | parts[1]


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_the_reference_on_every_rank(results, name):
    result = results[name]
    assert len(result["losses"]) == CASES[name].ranks
    assert result["losses"] == pytest.approx(
        [result["expected_loss"]] * CASES[name].ranks, rel=LOSS_TOLERANCE
    )
    assert result["loss_shapes"] == [[1]] * CASES[name].ranks


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_reference(results, name):
    bound = (
        GRADIENT_TOLERANCE if CASES[name].dtype.__name__ == "float32" else HALF_GRADIENT_TOLERANCE
    )
    errors = results[name]["gradient_errors"]
    assert ("label" in errors) == CASES[name].probabilities
    assert all(error <= bound for error in errors.values()), errors


def summary(exchange):
    return (
        exchange["operator"],
        exchange["reduction"],
        exchange["elements"],
        tuple(exchange["ranks"]),
    )


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("mesh")])
def test_a_step_exchanges_three_numbers_a_row_and_one_pair(results, name):
    rows, classes = results[name]["mesh"]
    for rank, exchanges in enumerate(results[name]["exchanges"]):
        row_group = tuple(range(rank // classes * classes, (rank // classes + 1) * classes))
        mesh_column = tuple(range(rank % classes, rows * classes, classes))
        over_classes = [
            ("AllReduce", reduction, ROWS_PER_RANK, row_group)
            for reduction in ("max", "sum", "sum")
        ]
        # Numerator and denominator; nothing on the way back.
        over_rows = [("AllReduce", "sum", 2, mesh_column)]
        expected = (over_classes if classes > 1 else []) + (over_rows if rows > 1 else [])
        assert [summary(exchange) for exchange in exchanges] == expected


@pytest.mark.parametrize("name", CASES)
def test_nothing_wider_than_a_row_statistic_is_communicated(results, name):
    assert ROWS_PER_RANK < CLASSES_PER_RANK < ROWS_PER_RANK * CLASSES_PER_RANK
    for exchanges in results[name]["exchanges"]:
        assert all(exchange["operator"] == "AllReduce" for exchange in exchanges)
        assert max(exchange["elements"] for exchange in exchanges) <= ROWS_PER_RANK
        assert all(exchange["bytes"] == 4 * exchange["elements"] for exchange in exchanges)


@pytest.mark.parametrize("name", ["weights, gradients summed", "weights, gradients averaged"])
def test_weights_get_the_gradient_of_the_mean_over_the_whole_batch(results, name):
    assert len(results[name]["gradient_errors"]) == 4
    assert max(results[name]["gradient_errors"]) <= GRADIENT_TOLERANCE


def test_sizes_that_the_mesh_does_not_divide_are_refused(results):
    assert (
        "classes of logits must be divisible by 2 (model_parallel), got logits of shape (4, 7)"
        in (results["refusal"])
    )


def test_a_label_out_of_range_makes_the_loss_nan_on_every_rank(results):
    assert len(results["wrong label"]) == 4
    assert all(map(math.isnan, results["wrong label"]))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_ordinary_cell_with_every_option(results, reduction):
    result = results[f"sharded cell, {reduction}"]
    assert result["losses"] == pytest.approx([result["expected_loss"]] * 4, rel=LOSS_TOLERANCE)
    assert result["gradient_error"] <= GRADIENT_TOLERANCE
    for exchanges in result["exchanges"]:
        assert max(exchange["elements"] for exchange in exchanges) <= ROWS_PER_RANK


def test_the_partitioner_takes_a_fused_kernel_as_local_and_its_gradient_is_exact(tmp_path):
    finished = run_script("fused_worker.py", ["result.json"], tmp_path, SECONDS)
    assert finished.code == 0, finished.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["losses"] == pytest.approx([result["expected_loss"]] * 4, rel=LOSS_TOLERANCE)
    assert result["gradient_error"] <= GRADIENT_TOLERANCE
    rows = [("AllReduce", reduction, 4, (0, 1)) for reduction in ("max", "sum", "sum")]
    # The sum of this small network is MindSpore's own, whose derivative sends the upstream gradient once more.
    scalars = [("AllReduce", "sum", 1, (0, 2))] * 2
    assert [summary(exchange) for exchange in result["exchanges"]] == rows + scalars
