"""The Ascend kernels inside interpreted graphs: an installation pretended for MindSpore, the host model for numbers."""

import contextlib
import os
from pathlib import Path

import numpy as np
from mindspore import ops
from rig.operators import operator

from ms_ce.ops.ascend import operators as ascend_operators
from tests.ascend.host_calls import run_on_host
from tests.ascend.host_model import HostModel

DTYPES = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}
calls = 0
_models: dict[str, HostModel] = {}


def pretend_installed(directory: Path) -> None:
    """Let the `ascend` backend find its operators in `directory`, and graphs hold them without a vendor's compiler."""
    vendor = directory / ascend_operators.VENDOR
    library = vendor / "op_api" / "lib" / "libcust_opapi.so"
    library.parent.mkdir(parents=True)
    library.touch()
    os.environ["ASCEND_CUSTOM_OPP_PATH"] = str(vendor)
    for name in ascend_operators.VARIABLES:
        os.environ[name] = str(directory)
    ascend_operators._soc_version = lambda: ascend_operators.SOCS[0]
    # It would compile a call of the vendor's library.
    ops.Custom._generate_get_workspace_size_func = lambda self: None


@contextlib.contextmanager
def uninstalled():
    """As if nobody had built the operators."""
    vendor = os.environ.pop("ASCEND_CUSTOM_OPP_PATH")
    yield
    os.environ["ASCEND_CUSTOM_OPP_PATH"] = vendor


@operator("Custom")
def kernel(attributes, *values):
    """One call: tensors, then attributes, as the table of operators has them."""
    global calls
    calls += 1
    path, _, name = attributes["func_name"].partition(":aclnn")
    count = len(ascend_operators.OPERATORS[name].inputs)
    arrays = [np.ascontiguousarray(value) for value in values[:count]]
    dtype = DTYPES[next(array.dtype for array in arrays if array.ndim == 2)]
    model = _models.setdefault(dtype, HostModel(dtype))
    per_row = ascend_operators.inference(True).stem in path
    outputs = run_on_host(model, name, per_row, arrays, values[count:])
    return outputs if len(outputs) > 1 else outputs[0]
