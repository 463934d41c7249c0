"""OPERATORS of ops/ascend/operators.py describes every operator once. What CANN and MindSpore need in other
forms is held to it: OpDef and tiling in op_host, registration, entry point of the kernel, shape inference.
Calls are held to it in test_real_calls.py, the aclnn functions that op_build makes of OpDef in check_toolchain.py."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ms_ce.ops.ascend import cells as ascend_cells
from ms_ce.ops.ascend import operators as ascend
from tests.ascend.host_model import (
    CORES,
    PROJECT,
    UB_BYTES,
    HostModel,
    compile_library,
    enum_values,
    kernel_name,
)
from tests.ascend.problems import SHAPES

TYPES = {0: "float32", 1: "float16", 3: "int32", 9: "int64", 27: "bfloat16"}
CODES = {name: code for code, name in TYPES.items()}
NAMES = tuple(ascend.OPERATORS)
DEFINED = {"int": "int", "double": "float", "bool": "bool"}  # aclnn's type of an attribute: OpDef's
KINDS = {
    "MsCeForward": "forward",
    "MsCeForwardGrad": "forward_grad",
    "MsCeBackward": "backward",
    "MsCeProbForward": "prob_forward",
    "MsCeProbBackward": "prob_backward",
    "MsCePartial": "partial",
    "MsCeNllForward": "nll_forward",
    "MsCeNllBackward": "nll_backward",
}


@functools.cache
def host():
    library = compile_library(PROJECT / "host_model" / "operators.cpp", ["-std=c++11"], "-O1")
    loaded = ctypes.CDLL(str(library))
    loaded.operators_describe.restype = ctypes.c_char_p
    return loaded


@functools.cache
def definitions() -> dict:
    return json.loads(host().operators_describe())


def test_every_operator_is_described_everywhere():
    kernels = {p.stem for p in (PROJECT / "op_kernel").glob("*.cpp")}
    assert set(definitions()) == set(NAMES)
    assert kernels == {kernel_name(name) for name in NAMES}


def test_reductions_have_the_kernels_numbers():
    assert enum_values("MsCeReduction") == ascend_cells.REDUCTIONS


@pytest.mark.parametrize("name", NAMES)
def test_registration_matches_definition(name):
    definition, info = definitions()[name], ascend.registration(name)
    for side in ("inputs", "outputs"):
        assert [t["name"] for t in definition[side]] == [t["name"] for t in info[side]]
        assert all(t["required"] for t in definition[side])
        assert all(t["paramType"] == "required" for t in info[side])
    assert definition["attributes"] == [[a["name"], DEFINED[a["type"]]] for a in info["attr"]]
    columns = [
        [TYPES[code] for code in t["types"]] for t in definition["inputs"] + definition["outputs"]
    ]
    assert {len(c) for c in columns} == {
        t["formats"] for t in definition["inputs"] + definition["outputs"]
    }
    assert sorted(zip(*columns, strict=True)) == sorted(ascend.combinations(name))
    assert definition["configs"] == ["ascend910b", "ascend910_93"]


@pytest.mark.parametrize("name", NAMES)
def test_kernel_takes_the_same_tensors(name):
    source = (PROJECT / "op_kernel" / f"{kernel_name(name)}.cpp").read_text()
    signature = re.search(rf"__aicore__ void {kernel_name(name)}\((.*?)\)", source, re.S).group(1)
    parameters = re.findall(r"GM_ADDR (\w+)", signature)
    operator = ascend.OPERATORS[name]
    assert parameters == [n for n, _ in operator.inputs + operator.outputs] + [
        "workspace",
        "tiling",
    ]


def run_host(name, shape, dtype, target, attributes, cores=CORES, ub_bytes=UB_BYTES, weight=1):
    """Output shapes and dtypes, tiling data and launch of one call, as op_host works them out."""
    operator = ascend.OPERATORS[name]
    rows, classes = shape
    scalars = {"grad_loss": 1, "total_weight": 1, "weight": weight}
    dims, ranks, types = [], [], []
    for argument, kind in operator.inputs:
        if kind == "F":
            own = [rows, classes]
        elif kind == "C" or argument in ("lse", "mass"):
            own = [rows]
        else:
            own = [scalars[argument]]
        dims += own
        ranks.append(len(own))
        types.append(CODES[{"F": dtype, "C": target, "W": "float32"}[kind]])
    values = [float(attributes.get(n, 0)) for n, _ in operator.attributes]
    outputs = len(operator.outputs)
    out_dims, out_ranks, out_types = (
        (ctypes.c_int64 * 16)(),
        (ctypes.c_int32 * 8)(),
        (ctypes.c_int32 * 8)(),
    )
    tiling, launch = model().Tiling(), (ctypes.c_int64 * 3)()
    status = host().operators_run(
        name.encode(),
        (ctypes.c_int64 * len(dims))(*dims),
        (ctypes.c_int32 * len(ranks))(*ranks),
        (ctypes.c_int32 * len(types))(*types),
        (ctypes.c_double * max(len(values), 1))(*values),
        ctypes.c_uint32(cores),
        ctypes.c_uint64(ub_bytes),
        out_dims,
        out_ranks,
        out_types,
        ctypes.byref(tiling),
        launch,
    )
    flat = iter(out_dims)
    shapes = [tuple(itertools.islice(flat, r)) for r in out_ranks[:outputs]]
    return status, shapes, [TYPES[t] for t in out_types[:outputs]], tiling, list(launch)


@functools.cache
def model() -> HostModel:
    return HostModel("float32")


def expected_shapes(name, rows, classes, reduction):
    lengths = {"loss": rows if reduction == 0 else 1, "total_weight": 1, "error": 8}
    outputs = ascend.OPERATORS[name].outputs
    return [(rows, classes) if kind == "F" else (lengths.get(n, rows),) for n, kind in outputs]


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_inference_and_tiling(name, dtype, reduction):
    if name == "MsCeForwardGrad":
        reduction = max(reduction, 1)  # it returns one loss; the test below has it refuse 'none'
    for rows, classes, cores in SHAPES:
        attributes = {
            "reduction": reduction,
            "ignore_index": -7,
            "label_smoothing": 0.5,
            "z_loss": 0.25,
            "has_weight": 1,
            "class_offset": 3,
            "total_classes": classes + 5,
        }
        kind = KINDS[name]
        given = {n for n, _ in ascend.OPERATORS[name].attributes}
        total = classes + 5 if "total_classes" in given else classes
        status, shapes, dtypes, tiling, launch = run_host(
            name, (rows, classes), dtype, "int64", attributes, cores, weight=total
        )
        assert status == 0
        assert shapes == expected_shapes(name, rows, classes, reduction)
        assert dtypes == [
            {"F": dtype, "W": "float32", "E": "int32"}[k] for _, k in ascend.OPERATORS[name].outputs
        ]
        problem = model().problem(
            kind,
            rows,
            classes,
            cores=cores,
            logitsBytes=4 if dtype == "float32" else 2,
            targetBytes=8 if "Prob" not in name else (4 if dtype == "float32" else 2),
            reduction=reduction if "reduction" in given else 0,
            ignoreIndex=-7 if "ignore_index" in given else -100,
            labelSmoothing=0.5 if "label_smoothing" in given else 0.0,
            zLoss=0.25 if "z_loss" in given else 0.0,
            hasWeight=1,
            classOffset=3 if "class_offset" in given else 0,
            totalClasses=total,
        )
        assert bytes(tiling) == bytes(model().tiling(problem))
        assert launch[0] == tiling.usedCores <= cores
        assert launch[1] == 1  # schedule mode: all cores start together, as SyncAll needs
        assert launch[2] == tiling.workspaceBytes + 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a weight of another length", {"weight": 9, "attributes": {"has_weight": 1}}),
        (
            "a block outside the vocabulary",
            {"attributes": {"class_offset": 5, "total_classes": 10}},
        ),
        ("no classes", {"shape": (4, 0)}),
    ],
)
def test_tiling_refuses(what, change):
    arguments = {
        "shape": (4, 10),
        "dtype": "float32",
        "target": "int32",
        "attributes": {},
        **change,
    }
    assert run_host("MsCeBackward", **arguments)[0] == 2, what


def test_loss_with_gradient_refuses_a_loss_per_row():
    assert run_host("MsCeForwardGrad", (4, 10), "float32", "int32", {"reduction": 0})[0] == 2


@functools.cache
def infer_library(per_row: bool) -> Path:
    return compile_library(
        PROJECT / "infer" / ("ms_ce_ascend_rows.cc" if per_row else "ms_ce_ascend_reduced.cc"),
        [],
        "-O1",
    )


@functools.cache
def harness():
    return ctypes.CDLL(
        str(compile_library(Path(__file__).with_name("infer_harness.cpp"), [], "-O1"))
    )


@pytest.mark.parametrize("dims", [(6, 40), (-1, 40), (6, -1), (-2,)], ids=str)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_inference_for_mindspore(name, per_row, dims):
    """-1 for a dimension that is not known yet, whatever the operator; a rank that is not known gives two of them."""
    inputs = ascend.OPERATORS[name].inputs
    arrays = [np.array(dims if kind == "F" else (6,), np.int64) for _, kind in inputs]
    pointers = (ctypes.POINTER(ctypes.c_int64) * len(arrays))(
        *[a.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)) for a in arrays]
    )
    ndims = (ctypes.c_int * len(arrays))(*[len(a) for a in arrays])
    out_dims, out_ranks = (ctypes.c_int64 * 16)(), (ctypes.c_int32 * 8)()
    library = str(infer_library(per_row)).encode()
    outputs, function = len(ascend.OPERATORS[name].outputs), f"aclnn{name}InferShape".encode()
    count = harness().infer_shapes(library, function, outputs, ndims, pointers, out_dims, out_ranks)
    flat = iter(out_dims)
    shapes = [tuple(itertools.islice(flat, r)) for r in out_ranks[:count]]
    rows, classes = dims if len(dims) == 2 else (-1, -1)
    assert shapes == expected_shapes(
        name, rows, classes, 0 if per_row and name != "MsCeForwardGrad" else 1
    )
