"""The operators of custom_aicore/ as MindSpore sees them: names, order, dtypes, attributes, and whether they are there.

tests/ascend/test_op_host.py holds this table and the C++ definitions together.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mindspore import dtype as mstype
from mindspore import get_context, jit, ops
from mindspore.ops import CustomRegOp

PROJECT = Path(__file__).resolve().parents[2] / "custom_aicore"
VENDOR = "ms_ce"
SOCS = ("ascend910b", "ascend910_93")
JIT_LEVEL = "O0"  # one kernel after another: the level that launches aclnn operators

_LOGITS = ("float16", "bfloat16", "float32")
_CLASSES = ("int32", "int64")


class Operator(NamedTuple):
    """One operator as custom_aicore/op_host defines it. A tensor is (name, kind): F logits' dtype, C class indices,
    W float32, E int32. Attributes follow the tensors in a call, in this order, with the types of the aclnn functions:
    what op_host calls a float they take as a double."""

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    attributes: tuple[tuple[str, str], ...]


_FLAGS = (
    ("reduction", "int"),
    ("ignore_index", "int"),
    ("label_smoothing", "double"),
    ("z_loss", "double"),
)
_WEIGHTED = (("has_weight", "bool"),)
_BLOCK = (("class_offset", "int"), ("total_classes", "int"))
_SMOOTH = (("reduction", "int"), ("label_smoothing", "double"), ("z_loss", "double"), *_WEIGHTED)
_NLL = (("reduction", "int"), ("ignore_index", "int"), *_WEIGHTED)
_CLASS_INPUTS = (("logits", "F"), ("target", "C"), ("weight", "W"))
_ERROR = ("error", "E")
_SUMS = (("loss", "W"), ("total_weight", "W"))

OPERATORS = {
    "MsCeForward": Operator(_CLASS_INPUTS, (*_SUMS, ("lse", "W"), _ERROR), _FLAGS + _WEIGHTED),
    "MsCeForwardGrad": Operator(
        _CLASS_INPUTS, (*_SUMS, ("lse", "W"), ("grad_logits", "F"), _ERROR), _FLAGS + _WEIGHTED
    ),
    "MsCeBackward": Operator(
        (("grad_loss", "W"), *_CLASS_INPUTS, ("lse", "W"), ("total_weight", "W")),
        (("grad_logits", "F"),),
        _FLAGS + _WEIGHTED + _BLOCK,
    ),
    "MsCeProbForward": Operator(
        (("logits", "F"), ("target", "F"), ("weight", "W")),
        (*_SUMS, ("lse", "W"), ("mass", "W")),
        _SMOOTH,
    ),
    "MsCeProbBackward": Operator(
        (
            ("grad_loss", "W"),
            ("logits", "F"),
            ("target", "F"),
            ("weight", "W"),
            ("lse", "W"),
            ("mass", "W"),
            ("total_weight", "W"),
        ),
        (("grad_logits", "F"),),
        _SMOOTH,
    ),
    "MsCePartial": Operator(
        _CLASS_INPUTS,
        (("lse", "W"), ("dot", "W"), ("mass", "W"), _ERROR),
        (("ignore_index", "int"), ("label_smoothing", "double"), *_WEIGHTED, *_BLOCK),
    ),
    "MsCeNllForward": Operator((("log_prob", "F"), *_CLASS_INPUTS[1:]), (*_SUMS, _ERROR), _NLL),
    "MsCeNllBackward": Operator(
        (("grad_loss", "W"), ("log_prob", "F"), *_CLASS_INPUTS[1:], ("total_weight", "W")),
        (("grad_log_prob", "F"),),
        _NLL,
    ),
}


# ops.Custom reads the first, CANN's libraries and build.sh the second.
VARIABLES = ("ASCEND_OPP_PATH", "ASCEND_HOME_PATH")


def probe() -> str | None:
    """Why the backend cannot be used here, or None."""
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        return (
            f"CANN is not set up: {' and '.join(missing)} {verb} not set; source CANN's set_env.sh"
        )
    if installed_library() is None:
        return (
            "the operators are not installed: no vendors/ms_ce under ASCEND_CUSTOM_OPP_PATH or ASCEND_OPP_PATH; "
            "run python -m ms_ce build-ascend"
        )
    if shutil.which("g++") is None:
        return "MindSpore compiles the call of an operator where it is used, and g++ was not found; install it"
    if get_context("device_target") == "Ascend":
        soc = _soc_version()
        if soc not in SOCS:
            return f"the kernels are written for {' and '.join(SOCS)}, and this chip is {soc}"
    return None


def installed_library() -> Path | None:
    """The installed operators' API library, where CANN looks for it."""
    folders = [Path(p) for p in os.environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(":") if p]
    if os.environ.get("ASCEND_OPP_PATH"):
        folders.append(Path(os.environ["ASCEND_OPP_PATH"]) / "vendors" / VENDOR)
    libraries = (
        folder / "op_api" / "lib" / "libcust_opapi.so"
        for folder in folders
        if folder.name == VENDOR
    )
    return next((library for library in libraries if library.exists()), None)


def _soc_version() -> str:
    from mindspore._c_expression import MSContext

    return MSContext.get_instance().get_ascend_soc_version()


def registration(name: str) -> dict:
    """Registration info of an operator, for every combination of dtypes that its definition accepts."""
    operator = OPERATORS[name]
    info = CustomRegOp(f"aclnn{name}")
    for index, (argument, _) in enumerate(operator.inputs):
        info = info.input(index, argument, "required")
    for index, (result, _) in enumerate(operator.outputs):
        info = info.output(index, result, "required")
    for attribute, kind in operator.attributes:
        info = info.attr(attribute, "required", kind)
    for combination in combinations(name):
        info = info.dtype_format(*[(dtype, "DefaultFormat") for dtype in combination])
    return info.target("Ascend").get_op_info()


def combinations(name: str) -> list[tuple[str, ...]]:
    """Accepted dtypes of an operator's inputs and outputs, in the order of its definition."""
    operator = OPERATORS[name]
    kinds = [kind for _, kind in operator.inputs + operator.outputs]
    rows = []
    for logits in _LOGITS:
        for classes in _CLASSES if "C" in kinds else _CLASSES[:1]:
            dtypes = {"F": logits, "C": classes, "W": "float32", "E": "int32"}
            rows.append(tuple(dtypes[kind] for kind in kinds))
    return rows


def _out_dtypes(name: str):
    operator = OPERATORS[name]
    logits = next(i for i, (_, kind) in enumerate(operator.inputs) if kind == "F")
    fixed = {"W": mstype.float32, "E": mstype.int32}

    def infer(*dtypes):
        found = tuple(fixed.get(kind, dtypes[logits]) for _, kind in operator.outputs)
        return found if len(found) > 1 else found[0]

    return infer


class _CompiledOperator(ops.Custom):
    """Called where Python runs, it is compiled as a graph of its own.

    PyNative's own way to an Ascend operator takes tensors only, no attributes, and twelve arguments and results at
    most.
    """

    def __call__(self, *arguments: Any) -> Any:
        if not hasattr(self, "graph"):
            self.graph = self._graph()
        return self.graph(*arguments)

    def _graph(self) -> Callable:
        operator = self

        def run(*arguments):
            return operator(*arguments)

        return jit(run, jit_level=JIT_LEVEL)


def inference(per_row: bool) -> Path:
    """Infers the operators' shapes, static or dynamic, with a loss (N,) or a loss (1,). MindSpore keeps what it
    compiles by the file's name, among those of all libraries."""
    return PROJECT / "infer" / f"ms_ce_ascend_{'rows' if per_row else 'reduced'}.cc"


def custom(name: str, per_row: bool) -> ops.Custom:
    """The operator; `per_row` tells a loss (N,) from a loss (1,)."""
    return _CompiledOperator(
        f"{inference(per_row)}:aclnn{name}",
        out_shape=None,
        out_dtype=_out_dtypes(name),
        func_type="aot",
        reg_info=registration(name),
    )
