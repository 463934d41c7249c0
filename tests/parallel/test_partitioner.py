"""The drop-in under MindSpore's own partitioner, for whole meshes: numbers, and every collective that is inserted.

partitioner_worker.py compiles and interprets in processes of its own; the tests read what it wrote.
"""

import json
import math

import pytest

from tests.parallel.partitioner_cases import CASES, CLASSES_PER_RANK, ROWS_PER_RANK
from tests.parallel.processes import run_script
from tests.parallel.rig.target import PIN, WHY_PINNED

pytestmark = pytest.mark.mindspore(PIN, reason=WHY_PINNED, run=False)
LOSS_TOLERANCE = GRADIENT_TOLERANCE = 2e-6
# The gradient of 16-bit logits is rounded to 16 bits: half a unit of the last of 11 bits, and gradients are below 0.5.
HALF_GRADIENT_TOLERANCE = 0.5 * 2**-11


CELLS = [
    "sharded cell, mean",
    "sharded cell, sum",
    "sharded cell, divisor from outside",
    "fused sharded cell, mean",
]
WEIGHTS = [
    "weights, gradients summed",
    "weights, gradients averaged",
    "fused weights, gradients summed",
]
WRONG_LABELS = ["wrong label", "fused wrong label"]
EXTRAS = [
    *CELLS,
    *WEIGHTS,
    *WRONG_LABELS,
    "refusal",
    "refusal of copies",
    "check after the step",
    "choice",
]


# Each rank takes a second: `make test` leaves these out.
RARE = {"mesh 16x8", "mesh 2x4", "mesh 8x1", "fused, mesh 1x4"}


def marked(names):
    rare = pytest.mark.rare(part=1)
    return [pytest.param(name, marks=rare) if name in RARE else name for name in names]


@pytest.fixture(scope="module")
def results(tmp_path_factory, asked_for):
    """results(name): what the worker wrote of a case; one launch for all that is asked for."""
    wanted = {case.get("name") for case in asked_for}
    names = [name for name in CASES if name in wanted] + EXTRAS
    directory = tmp_path_factory.mktemp("partitioner")
    finished = run_script("partitioner_worker.py", ["results.json", *names], directory)
    assert finished.code == 0, finished.output
    return json.loads((directory / "results.json").read_text()).__getitem__


@pytest.mark.parametrize("name", marked(CASES))
def test_loss_equals_the_reference_on_every_rank(results, name):
    result = results(name)
    assert len(result["losses"]) == CASES[name].ranks
    assert result["losses"] == pytest.approx(
        [result["expected_loss"]] * CASES[name].ranks, rel=LOSS_TOLERANCE
    )
    assert result["loss_shapes"] == [[1]] * CASES[name].ranks


@pytest.mark.parametrize("name", marked(CASES))
def test_gradients_equal_the_reference(results, name):
    bound = (
        GRADIENT_TOLERANCE if CASES[name].dtype.__name__ == "float32" else HALF_GRADIENT_TOLERANCE
    )
    errors = results(name)["gradient_errors"]
    assert ("label" in errors) == CASES[name].probabilities
    assert all(error <= bound for error in errors.values()), errors


def summary(exchange):
    return (
        exchange["operator"],
        exchange["reduction"],
        exchange["elements"],
        tuple(exchange["ranks"]),
    )


@pytest.mark.parametrize("name", marked(name for name in CASES if "mesh" in name))
def test_a_step_exchanges_three_numbers_a_row_and_one_pair(results, name):
    rows, classes = results(name)["mesh"]
    for rank, exchanges in enumerate(results(name)["exchanges"]):
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


@pytest.mark.parametrize("name", marked(CASES))
def test_nothing_wider_than_a_row_statistic_is_communicated(results, name):
    assert ROWS_PER_RANK < CLASSES_PER_RANK < ROWS_PER_RANK * CLASSES_PER_RANK
    for exchanges in results(name)["exchanges"]:
        assert all(exchange["operator"] == "AllReduce" for exchange in exchanges)
        assert max(exchange["elements"] for exchange in exchanges) <= ROWS_PER_RANK
        assert all(exchange["bytes"] == 4 * exchange["elements"] for exchange in exchanges)


@pytest.mark.parametrize("name", marked(CASES))
def test_the_fused_kernel_is_called_once_each_way_where_it_was_chosen(results, name):
    fused = CASES[name].backend == "ascend"
    assert results(name)["kernel_calls"] == (2 * CASES[name].ranks if fused else 0)


def test_what_auto_takes_is_said_openly(results):
    installed, not_installed = results("choice")
    assert installed.startswith("'ascend': the fused kernel for class indices")
    assert not_installed.startswith("'composed': primitives")
    assert "since 'ascend' cannot be used: the operators are not installed" in not_installed


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_get_the_gradient_of_the_mean_over_the_whole_batch(results, name):
    assert len(results(name)["gradient_errors"]) == 4
    assert max(results(name)["gradient_errors"]) <= GRADIENT_TOLERANCE


def test_sizes_that_the_mesh_does_not_divide_are_refused(results):
    assert (
        "classes of logits must be divisible by 2 (model_parallel), got logits of shape (4, 7)"
        in (results("refusal"))
    )


def test_more_devices_than_the_mesh_needs_are_refused_where_they_would_give_wrong_numbers(results):
    assert "must be the number of devices (of a pipeline stage), got 2 times 2 on 8 devices" in (
        results("refusal of copies")
    )


def test_the_host_raises_after_a_step_naming_the_rank(results):
    raised = results("check after the step")
    for step, what in (("bad", "the local loss"), ("bad gradient", "the gradient of logits")):
        for rank in (0, 1):
            assert f"rank {rank}: {what} is not finite" in raised[step][rank]
        assert raised[step][2:] == ["", ""]
    assert raised["good"] == raised["good gradient"] == [""] * 4


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_a_label_out_of_range_makes_the_loss_nan_on_every_rank(results, name):
    assert len(results(name)) == 4
    assert all(map(math.isnan, results(name)))


@pytest.mark.parametrize("name", CELLS)
def test_the_ordinary_cell_with_every_option(results, name):
    result = results(name)
    assert result["losses"] == pytest.approx([result["expected_loss"]] * 4, rel=LOSS_TOLERANCE)
    assert result["gradient_error"] <= GRADIENT_TOLERANCE
    for exchanges in result["exchanges"]:
        assert max(exchange["elements"] for exchange in exchanges) <= ROWS_PER_RANK
