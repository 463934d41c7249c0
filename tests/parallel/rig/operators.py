"""Numpy semantics of the primitives in partitioned graphs: `OPERATORS[name](attributes, *inputs)`."""

from collections.abc import Callable

import numpy as np

Attributes = dict[str, object]
OPERATORS: dict[str, Callable] = {}

# TypeId numbers of mindspore/core/include/ir/dtype/type_id.h, as they arrive in Cast's second input.
CAST_DTYPES = {
    30: np.bool_, 32: np.int8, 33: np.int16, 34: np.int32, 35: np.int64, 37: np.uint8, 42: np.float16, 43: np.float32,
    44: np.float64,
}  # fmt: skip
SCATTER_ADD = 1  # Reduce::REDUCE_ADD, as TensorScatterElements' last input carries it

ELEMENTWISE = {
    "Exp": np.exp, "Log": np.log, "Neg": np.negative, "Abs": np.abs, "Square": np.square, "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal, "LogicalNot": np.logical_not, "ZerosLike": np.zeros_like, "OnesLike": np.ones_like,
    "IsFinite": np.isfinite, "IsInf": np.isinf, "IsNan": np.isnan, "Sign": np.sign, "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
}  # fmt: skip
BINARY = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "RealDiv": np.divide, "Div": np.divide,
    "FloorDiv": np.floor_divide, "Equal": np.equal, "NotEqual": np.not_equal, "Less": np.less,
    "LessEqual": np.less_equal, "Greater": np.greater, "GreaterEqual": np.greater_equal,
    "LogicalAnd": np.logical_and, "LogicalOr": np.logical_or, "Maximum": np.maximum, "Minimum": np.minimum,
    "Muls": np.multiply, "LessScalar": np.less, "LessEqualScalar": np.less_equal, "GreaterScalar": np.greater,
    "Divs": np.divide, "GreaterEqualScalar": np.greater_equal, "EqualScalar": np.equal, "NotEqualScalar": np.not_equal,
}  # fmt: skip
PASS_THROUGH = ("Depend", "Load", "TensorMove", "Identity", "Return", "return", "_MirrorOperator", "_VirtualDiv",
                "_VirtualDataset", "_VirtualOutput")  # fmt: skip


def operator(*names: str) -> Callable:
    def register(function: Callable) -> Callable:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def _elementwise(function: Callable) -> Callable:
    return lambda attributes, x, *_: function(x)


def _binary(function: Callable) -> Callable:
    """MindSpore's result dtype is that of the tensors; a Python or 0-d constant never widens it as numpy's would."""

    def apply(attributes: Attributes, a: object, b: object, *_: object) -> np.ndarray:
        result = np.asarray(function(a, b))
        dtypes = [value.dtype for value in (a, b) if isinstance(value, np.ndarray)]
        return (
            result
            if result.dtype == np.bool_ or not dtypes
            else result.astype(np.result_type(*dtypes))
        )

    return apply


OPERATORS.update({name: _elementwise(function) for name, function in ELEMENTWISE.items()})
OPERATORS.update({name: _binary(function) for name, function in BINARY.items()})
OPERATORS.update(dict.fromkeys(PASS_THROUGH, lambda attributes, x, *_: x))


def _axes(axis: object, rank: int) -> tuple[int, ...]:
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(int(one) for one in axes) if axes else tuple(range(rank))


@operator("Cast")
def cast(attributes, x, type_id):
    return np.asarray(x).astype(CAST_DTYPES[type_id])


@operator("ReduceSum")
def reduce_sum(attributes, x, axis, keep_dims=False, skip_mode=False):
    return np.sum(x, _axes(axis, x.ndim), keepdims=bool(keep_dims))


@operator("SumExt")
def sum_extended(attributes, x, axis=None, keep_dims=False, dtype=None):
    return np.sum(x, _axes(() if axis is None else axis, x.ndim), keepdims=bool(keep_dims))


@operator("ReduceMax")
def reduce_max(attributes, x, axis, keep_dims=False):
    return np.max(x, _axes(axis, x.ndim), keepdims=bool(keep_dims))


@operator("Reshape")
def reshape(attributes, x, shape):
    return np.reshape(x, shape)


@operator("ExpandDims")
def expand_dims(attributes, x, axis):
    return np.expand_dims(x, axis)


@operator("Squeeze")
def squeeze(attributes, x, axis=None):
    return np.squeeze(x, attributes.get("axis", axis))


@operator("Transpose")
def transpose(attributes, x, permutation):
    return np.transpose(x, permutation)


@operator("BroadcastTo")
def broadcast_to(attributes, x, shape):
    missing = len(shape) - x.ndim
    return np.broadcast_to(
        x, [x.shape[i - missing] if size == -1 else size for i, size in enumerate(shape)]
    ).copy()


@operator("Tile")
def tile(attributes, x, multiples):
    return np.tile(x, multiples)


def _slices(begin, end, strides):
    return tuple(slice(*bounds) for bounds in zip(begin, end, strides, strict=True))


@operator("StridedSlice")
def strided_slice(attributes, x, begin, end, strides, *masks):
    return x[_slices(begin, end, strides)]


@operator("StridedSliceGrad")
def strided_slice_gradient(attributes, upstream, shape, begin, end, strides, *masks):
    gradient = np.zeros(shape, upstream.dtype)
    gradient[_slices(begin, end, strides)] = upstream
    return gradient


@operator("Split")
def split(attributes, x, axis=0, count=None):
    return tuple(np.split(x, count or attributes["output_num"], axis))


@operator("Concat")
def concatenate(attributes, *inputs):
    values, axis = (
        (inputs[0], inputs[1])
        if isinstance(inputs[0], tuple)
        else (inputs, attributes.get("axis", 0))
    )
    return np.concatenate(values, axis)


@operator("OneHot")
def one_hot(attributes, indices, depth, on_value, off_value, axis=-1):
    return np.where(indices[..., None] == np.arange(depth), on_value, off_value).astype(
        np.asarray(on_value).dtype
    )


@operator("Select")
def select(attributes, condition, a, b):
    return np.where(condition, a, b)


@operator("MaskedFill")
def masked_fill(attributes, x, mask, value):
    return np.where(mask, value, x).astype(x.dtype)


@operator("MatMul")
def matmul(attributes, a, b, transpose_a=None, transpose_b=None):
    transpose_a = attributes.get("transpose_a", False) if transpose_a is None else transpose_a
    transpose_b = attributes.get("transpose_b", False) if transpose_b is None else transpose_b
    return (a.T if transpose_a else a) @ (b.T if transpose_b else b)


@operator("Gather")
def gather(attributes, table, indices, axis, *_):
    return np.take(table, indices, axis)


@operator("GatherD")
def gather_along(attributes, x, axis, indices):
    return np.take_along_axis(x, indices, axis)


@operator("GatherDGradV2")
def gather_along_gradient(attributes, x, axis, indices, upstream):
    gradient = np.zeros_like(x)
    positions = list(np.meshgrid(*(np.arange(size) for size in indices.shape), indexing="ij"))
    positions[axis] = indices
    np.add.at(gradient, tuple(positions), upstream)
    return gradient


@operator("TensorScatterElements")
def scatter_elements(attributes, x, indices, updates, axis, reduction):
    result = x.copy()
    positions = list(np.meshgrid(*(np.arange(size) for size in indices.shape), indexing="ij"))
    positions[axis] = indices
    if reduction == SCATTER_ADD:
        np.add.at(result, tuple(positions), updates)
    else:
        result[tuple(positions)] = updates
    return result


@operator("TanhGrad")
def tanh_gradient(attributes, y, upstream):
    return upstream * (1 - y * y)


@operator("AddN")
def add_all(attributes, values):
    return sum(values[1:], values[0])


@operator("MakeTuple")
def make_tuple(attributes, *values):
    return values


@operator("TupleGetItem")
def tuple_get_item(attributes, values, index):
    return values[index]


@operator("UpdateState", "Print", "TensorDump")
def nothing(attributes, *values):
    return None
