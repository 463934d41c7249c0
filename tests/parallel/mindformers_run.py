"""mindformers' numbers, shapes and dtypes from our drop-in, right ones where those are wrong: `make test-mindformers`.

MS_CE_MINDFORMERS_PYTHON names the interpreter of an environment with mindspore and mindformers_requirements.txt.
"""

import json
import math
import os

import numpy as np
import pytest

from tests.parallel.processes import HERE, run

TOLERANCE = 2e-6
# Their gradient comes from exp of MindSpore's CPU engine, which is good to about 1e-5 relative.
GRADIENT_TOLERANCE = 1e-5
CASES = ("default", "per token", "sequence pipeline", "float16", "nothing counts")


def results_of(part, directory):
    command = [
        os.environ["MS_CE_MINDFORMERS_PYTHON"],
        str(HERE / "mindformers_worker.py"),
        part,
        "results.json",
    ]
    finished = run(command, directory, {"GLOG_v": "4"})
    assert finished.code == 0, finished.output
    return json.loads((directory / "results.json").read_text())


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return results_of("local", tmp_path_factory.mktemp("mindformers"))


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory):
    return results_of("partitioned", tmp_path_factory.mktemp("mindformers"))


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("case", CASES)
def test_same_numbers_shapes_and_dtypes(local, mode, case):
    theirs, ours = local[mode][case]["theirs"], local[mode][case]["ours"]
    assert len(theirs["outputs"]) == len(ours["outputs"])
    for one, other in zip(ours["outputs"], theirs["outputs"], strict=True):
        assert (one["shape"], one["dtype"]) == (other["shape"], other["dtype"])
        assert one["values"] == pytest.approx(other["values"], rel=TOLERANCE, abs=TOLERANCE)
    assert ours["gradient_dtype"] == theirs["gradient_dtype"]
    largest = np.abs(theirs["gradient"]).max(initial=1.0)
    tolerance = GRADIENT_TOLERANCE if case != "float16" else 2.0**-11
    np.testing.assert_allclose(
        ours["gradient"], theirs["gradient"], rtol=0, atol=tolerance * largest
    )


def test_build_loss_makes_ours_by_name(local):
    assert local["built"] == "ms_ce.parallel.loss.CrossEntropyLoss"


def test_an_infinite_logit_is_nan_there_and_right_here(local):
    case = local["failures"]["infinite logit"]
    assert math.isnan(case["theirs"])
    assert case["ours"] == pytest.approx(case["right"], rel=TOLERANCE)


def test_a_bool_mask_is_wrong_there_and_right_here(local):
    case = local["failures"]["bool mask"]
    assert case["theirs"] != pytest.approx(case["right"], rel=0.05)
    assert case["ours"] == pytest.approx(case["right"], rel=TOLERANCE)


def test_a_label_out_of_range_is_silent_there_and_an_error_here(local):
    case = local["failures"]["label out of range"]
    assert 0 < case["theirs"] < case["right"]
    assert "target 15 at position (0,) is outside [0, 12)" in case["ours"]


def test_same_numbers_on_a_mesh(partitioned):
    assert partitioned["ours"]["losses"] == pytest.approx(
        partitioned["theirs"]["losses"], rel=TOLERANCE
    )
    np.testing.assert_allclose(
        partitioned["ours"]["gradient"], partitioned["theirs"]["gradient"], rtol=0, atol=TOLERANCE
    )


def test_two_numbers_cross_the_data_parallel_ranks_where_theirs_sends_rows(partitioned):
    def over_rows(loss):
        return [
            (one["operator"], one["elements"])
            for one in partitioned[loss]["exchanges"]
            if one["ranks"] == [0, 2]
        ]

    assert over_rows("theirs") == [("AllGather", 4), ("ReduceScatter", 8)]
    assert over_rows("ours") == [("AllReduce", 2)]
