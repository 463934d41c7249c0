"""Several losses of one table against the float64 sums of as many single ones; one pass over the table."""

from __future__ import annotations

from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

import ms_ce
from ms_ce import reference
from ms_ce.ops.custom import _CpuOperator
from ms_ce.ops.linear import gradients as sweep_gradients
from ms_ce.ops.linear import sweep as linear_sweep
from tests.integration.conftest import to_numpy, to_tensor
from tests.integration.frozen_networks import nodes_of
from tests.integration.linear_cases import EVERYTHING, loop_in_a_bprop
from tests.support.cases import round_to
from tests.support.linear_tolerances import RELATIVE, check_linear

LOSSES, CLASSES, FEATURES = 3, 65, 7
FACTORS = (1.0, 0.3, -0.15)
ONE_CHUNK, CHUNKS = 1 << 20, 11 * CLASSES * 4


class Case(NamedTuple):
    name: str
    lead: tuple[int, ...] = (13,)
    probabilities: bool = False
    weight: bool = False
    row_weight: bool = False
    ignored: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: bool = False
    factors: Any = FACTORS
    total_weight: Any = None
    sequences: bool = False
    label_dtype: str = "int32"
    options: dict[str, Any] = {}


CASES = (
    Case("plain"),
    Case("sum", factors=None, options={"reduction": "sum"}),
    Case("one row each", lead=()),
    Case("other numbers of rows", ignored=(0.2, 0.6, 0.7), label_dtype="int64"),
    Case("a sequence of tensors", lead=(2, 5), sequences=True, ignored=(0.1, 0.3, 0.5)),
    Case("divisor", total_weight=5.5, ignored=(0.1, 0.3, 0.5)),
    Case("divisors", total_weight=(5.5, 3.0, 0.7), factors=np.float32(FACTORS)),
    Case("divisors of a tensor", total_weight=np.array([5.5, 3.0, 0.7]), factors=None),
    Case("weight", weight=True, ignored=(0.1, 0.3, 0.5)),
    Case("probabilities", lead=(4, 5), probabilities=True, weight=True, row_weight=True),
    Case("shift probabilities", lead=(2, 5), probabilities=True, shift=True),
    Case(
        "everything", lead=(2, 7), weight=True, row_weight=True, ignored=(0.1, 0.3, 0.5), shift=True,
        label_dtype="uint8", options={**EVERYTHING, "ignore_index": 255},
    ),
    Case(
        "everything sum", lead=(2, 7), weight=True, row_weight=True, ignored=(0.1, 0.3, 0.5),
        sequences=True, options={**EVERYTHING, "reduction": "sum"},
    ),
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
NAMES = ("input", "linear_weight", "linear_bias", "weight", "target")


def draw(case: Case, dtype: str = "float32") -> dict[str, Any]:
    random = np.random.default_rng(3)
    rows = (LOSSES, *case.lead)
    if case.probabilities:
        target = random.random((*rows, CLASSES))
        target = round_to(target / target.sum(-1, keepdims=True), dtype)
    else:
        target = random.integers(0, CLASSES, rows)
        shares = np.array(case.ignored).reshape(-1, *(1,) * len(case.lead))
        ignore_index = case.options.get("ignore_index", -100)
        target = np.where(random.random(rows) < shares, ignore_index, target)
        target = target.astype(case.label_dtype)
    factor = np.round(random.random(rows) * (random.random(rows) < 0.8), 3).astype(np.float32)
    return {
        "input": round_to(random.normal(size=(*rows, FEATURES)), dtype),
        "linear_weight": round_to(random.normal(size=(CLASSES, FEATURES)), dtype),
        "linear_bias": round_to(random.normal(size=CLASSES), dtype),
        "weight": round_to(random.random(CLASSES) + 0.25, dtype) if case.weight else None,
        "target": target,
        "row_weight": factor if case.row_weight else None,
    }


def wanted_of(case: Case) -> list[str]:
    """The tensors that have a gradient."""
    given = {"weight": case.weight, "target": case.probabilities}
    return [name for name in NAMES if given.get(name, True)]


def each_of(value, missing) -> np.ndarray:
    return np.broadcast_to(np.array(missing if value is None else value, np.float64), (LOSSES,))


def expected_of(case: Case, data: dict[str, Any], upstream: float = 1.0):
    """(loss, losses, gradients) of as many single losses, added up."""
    losses, gradients = [], {}
    factors, divisors = each_of(case.factors, 1.0), each_of(case.total_weight, 1.0)
    options = {**case.options, "shift": case.shift}
    if case.total_weight is not None:
        options["reduction"] = "sum"
    shared = [data[name] for name in ("linear_weight", "linear_bias", "weight")]
    for number in range(LOSSES):
        table, bias, weight = shared
        given = (data["input"][number], table, data["target"][number], bias, weight)
        rows = None if data["row_weight"] is None else data["row_weight"][number]
        loss = reference.linear_cross_entropy(*given, row_weight=rows, **options).loss
        losses.append(loss / divisors[number])
        scale = np.array(upstream * factors[number] / divisors[number])
        grads = reference.linear_cross_entropy_grad(
            *given, row_weight=rows, grad_loss=scale, **options
        )
        for name in wanted_of(case):
            gradients.setdefault(name, []).append(getattr(grads, name))
    for name, several in gradients.items():
        own = name in ("input", "target")
        gradients[name] = np.stack(several) if own else np.sum(several, 0)
    return float(np.dot(factors, losses)), np.array(losses), gradients


def each_loss(values):
    return values[0], values[1], values[2]


def caller(case: Case, row_weight, **options):
    """The call as a function of the tensors in the order of NAMES."""
    shift, given = case.shift, {**case.options, **options}
    row_weight = None if row_weight is None else Tensor(row_weight)
    if case.sequences and row_weight is not None:
        row_weight = list(each_loss(row_weight))

    def apart(input, linear_weight, linear_bias, weight, target):
        return ms_ce.linear_multi_token_loss(
            each_loss(input), linear_weight, each_loss(target), linear_bias, weight,
            row_weight=row_weight, shift=shift, **given,
        )  # fmt: skip

    def together(input, linear_weight, linear_bias, weight, target):
        return ms_ce.linear_multi_token_loss(
            input, linear_weight, target, linear_bias, weight,
            row_weight=row_weight, shift=shift, **given,
        )  # fmt: skip

    return apart if case.sequences else together


def check(case: Case, dtype: str, backend: str, run, chunk_bytes=CHUNKS, upstream=1.0, **more):
    data = draw(case, dtype)
    names = wanted_of(case)
    given = [to_tensor(data[name], dtype) for name in NAMES]
    numbers = {
        name: Tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in (("factors", case.factors), ("total_weight", case.total_weight))
    }
    options = {"backend": backend, "chunk_bytes": chunk_bytes, **numbers, **more}
    call = caller(case, data["row_weight"], **options)

    def loss(input, linear_weight, linear_bias, weight, target):
        found = call(input, linear_weight, linear_bias, weight, target)
        return found[0].astype(ms.float64) * upstream, found[1]

    positions = tuple(NAMES.index(name) for name in names)
    function = loss if upstream != 1.0 else call
    gradient = ms.value_and_grad(function, positions, has_aux=True)
    (total, losses), gradients = run(gradient, *given, composed_loop=True)
    expected, each, exact = expected_of(case, data, upstream)
    assert losses.dtype == (ms.float64 if dtype == "float64" else ms.float32)
    assert total.dtype == given[0].dtype or upstream != 1.0
    check_linear(to_numpy(total), upstream * expected, backend, dtype, "loss")
    wide = "float64" if dtype == "float64" else "float32"
    check_linear(to_numpy(losses), each, backend, wide, "losses")
    for name, got in zip(names, gradients, strict=True):
        check_linear(to_numpy(got), exact[name], backend, dtype, name)


PYNATIVE = pytest.mark.parametrize("run", ("pynative",), indirect=True)
sums_of_bfloat16 = pytest.mark.mindspore(
    ">=2.9",
    reason="a graph adds gradients up by an operator that takes no bfloat16 on CPU",
    always=False,
    only={"dtype": "bfloat16", "backend": "cpu", "run": "jit"},
)
JIT = pytest.mark.parametrize("run", ("jit",), indirect=True)
forward = pytest.mark.parametrize("gradient_in_forward", (True, False))


@PYNATIVE
@forward
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pynative(case, gradient_in_forward, backend, run):
    check(case, "float32", backend, run, gradient_in_forward=gradient_in_forward)


@PYNATIVE
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_chunk(case, run):
    check(case, "float32", "composed", run, ONE_CHUNK)


@PYNATIVE
@forward
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64"))
@pytest.mark.parametrize("name", ("plain", "everything", "probabilities"))
def test_dtypes(name, dtype, gradient_in_forward, backend, run):
    check(BY_NAME[name], dtype, backend, run, gradient_in_forward=gradient_in_forward)


@JIT
@forward
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compiled(case, gradient_in_forward, run):
    check(case, "float32", "cpu", run, gradient_in_forward=gradient_in_forward)


@sums_of_bfloat16
@JIT
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64"))
def test_compiled_dtypes(dtype, backend, run):
    check(BY_NAME["other numbers of rows"], dtype, backend, run, gradient_in_forward=True)


@sums_of_bfloat16
@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_hidden_states_that_are_arguments_of_their_own(dtype, backend, run):
    case = BY_NAME["other numbers of rows"]
    data = draw(case, dtype)
    expected, losses, exact = expected_of(case, data)
    hidden = [to_tensor(each, dtype) for each in data["input"]]
    table, bias = (to_tensor(data[name], dtype) for name in ("linear_weight", "linear_bias"))
    target = list(map(Tensor, data["target"]))

    def loss(first, second, third):
        return ms_ce.linear_multi_token_loss(
            [first, second, third], table, target, bias, factors=FACTORS, backend=backend,
            gradient_in_forward=True, chunk_bytes=CHUNKS,
        )  # fmt: skip

    gradient = ms.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (total, found), gradients = run(gradient, *hidden, composed_loop=True)
    check_linear(to_numpy(total), expected, backend, dtype, "loss")
    check_linear(to_numpy(found), losses, backend, "float32", "losses")
    got = np.stack([to_numpy(each) for each in gradients])
    check_linear(got, exact["input"], backend, dtype, "input")


@loop_in_a_bprop()  # that of the class weight
@JIT
@pytest.mark.parametrize(
    ("name", "gradient_in_forward", "backend"),
    (("everything", True, "composed"), ("everything sum", False, "composed")),
)
def test_compiled_loop(name, gradient_in_forward, backend, run):
    check(BY_NAME[name], "float32", backend, run, gradient_in_forward=gradient_in_forward)


@JIT
@pytest.mark.parametrize("name", ("everything", "probabilities", "divisors"))
def test_compiled_one_chunk(name, run):
    check(BY_NAME[name], "float32", "composed", run, ONE_CHUNK)


@loop_in_a_bprop()
@pytest.mark.parametrize("run", ("graph",), indirect=True)
def test_graph_mode(backend, run):
    check(BY_NAME["everything"], "float32", backend, run, gradient_in_forward=True)


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@forward
def test_upstream(gradient_in_forward, backend, run):
    """As a loss scale makes it."""
    case = BY_NAME["other numbers of rows"]
    check(case, "float32", backend, run, upstream=64.0, gradient_in_forward=gradient_in_forward)


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("chunk_bytes", (CHUNKS, ONE_CHUNK))
def test_a_factor_of_0_leaves_its_loss_out(chunk_bytes, backend, run):
    """Whatever its rows hold; its gradient is 0, it is nan itself, and the others are what they were."""
    case = BY_NAME["other numbers of rows"]._replace(factors=(1.0, 0.0, 0.5))
    data = draw(case)
    exact = expected_of(case, data)
    data["input"][1] = np.nan
    tensors = [Tensor(data[name]) for name in ("input", "linear_weight")]
    target = Tensor(data["target"])

    def loss(input, linear_weight):
        return ms_ce.linear_multi_token_loss(
            input, linear_weight, target, Tensor(data["linear_bias"]), factors=Tensor(case.factors),
            backend=backend, chunk_bytes=chunk_bytes, gradient_in_forward=True,
        )  # fmt: skip

    (total, losses), gradients = run(
        ms.value_and_grad(loss, (0, 1), has_aux=True), *tensors, composed_loop=True
    )
    exact[1][1] = np.nan
    check_linear(float(total), exact[0], backend, "float32", "loss")
    check_linear(to_numpy(losses), exact[1], backend, "float32", "losses")
    for name, got in zip(("input", "linear_weight"), gradients, strict=True):
        check_linear(to_numpy(got), exact[2][name], backend, "float32", name)


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("chunk_bytes", (CHUNKS, ONE_CHUNK))
def test_a_loss_whose_rows_are_all_ignored(chunk_bytes, backend, run):
    """Its mean is nan, and so is the sum; gradients are those of the others."""
    case = BY_NAME["plain"]._replace(ignored=(0.2, 1.0, 0.2))
    data = draw(case)
    _, losses, exact = expected_of(case, data)
    tensors = [Tensor(data[name]) for name in ("input", "linear_weight")]
    target = Tensor(data["target"])

    def loss(input, linear_weight):
        return ms_ce.linear_multi_token_loss(
            input, linear_weight, target, Tensor(data["linear_bias"]), factors=FACTORS,
            backend=backend, chunk_bytes=chunk_bytes, gradient_in_forward=True,
        )  # fmt: skip

    (total, found), gradients = run(
        ms.value_and_grad(loss, (0, 1), has_aux=True), *tensors, composed_loop=True
    )
    assert np.isnan(float(total))
    check_linear(to_numpy(found), losses, backend, "float32", "losses")
    for name, got in zip(("input", "linear_weight"), gradients, strict=True):
        check_linear(to_numpy(got), exact[name], backend, "float32", name)


@pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)
@pytest.mark.parametrize("rows", (0, 3))
def test_nothing_counts(rows, backend, run):
    hidden, target = ops.zeros((2, rows, 4)), ops.full((2, rows), -100, dtype=ms.int32)

    def total(hidden, reduction):
        table = ops.ones((5, 4))
        return ms_ce.linear_multi_token_loss(
            hidden, table, target, reduction=reduction, backend=backend
        )

    for reduction, value in (("sum", 0.0), ("mean", np.nan)):

        def loss(hidden, reduction=reduction):
            return total(hidden, reduction)

        found = run(loss, hidden)
        np.testing.assert_array_equal(to_numpy(found[0]), value)
        np.testing.assert_array_equal(to_numpy(found[1]), [value] * 2)


class Recorded:
    """The linear operators of the kernel that ran, and how many of their results have the table's shape."""

    def __init__(self, monkeypatch):
        self.names, self.tables, run = [], 0, _CpuOperator.run

        def recorded(operator, *inputs):
            found = run(operator, *inputs)
            name = operator.func_name.split(":")[-1]
            if name.startswith("Linear") and "Rescale" not in name:
                self.names.append(name)
                self.tables += sum(each.shape == (CLASSES, FEATURES) for each in found)
            return found

        monkeypatch.setattr(_CpuOperator, "run", recorded)


@forward
def test_the_kernel_runs_once_and_makes_one_gradient_of_the_table(gradient_in_forward, monkeypatch):
    case, recorded = BY_NAME["other numbers of rows"], Recorded(monkeypatch)
    data = draw(case)

    def together(input, linear_weight):
        return ms_ce.linear_multi_token_loss(
            input, linear_weight, Tensor(data["target"]), factors=FACTORS, backend="cpu",
            gradient_in_forward=gradient_in_forward,
        )[0]  # fmt: skip

    def apart(input, linear_weight):
        target = Tensor(data["target"])
        return sum(
            factor * ms_ce.linear_cross_entropy(input[d], linear_weight, target[d], backend="cpu")
            for d, factor in enumerate(FACTORS)
        )

    tensors = Tensor(data["input"]), Tensor(data["linear_weight"])
    gradients = ms.grad(together, (0, 1))(*tensors)
    forms = ["ValueAndGrad"] if gradient_in_forward else ["Forward", "Backward"]
    assert recorded.names == [f"LinearCrossEntropy{form}" for form in forms]
    assert recorded.tables == 1
    for got, expected in zip(gradients, ms.grad(apart, (0, 1))(*tensors), strict=True):
        bound = 2 * RELATIVE["float32"]
        np.testing.assert_allclose(to_numpy(got), to_numpy(expected), bound, bound)
    assert recorded.tables == 1 + LOSSES


class Gradient(nn.Cell):
    def __init__(self, target, gradient_in_forward, backend):
        super().__init__()

        def loss(input, linear_weight, target):
            return ms_ce.linear_multi_token_loss(
                input, linear_weight, target, factors=FACTORS, backend=backend,
                gradient_in_forward=gradient_in_forward, chunk_bytes=CHUNKS,
            )[0]  # fmt: skip

        self.gradient = ms.grad(loss, (0, 1))

    def construct(self, input, linear_weight, target):
        return self.gradient(input, linear_weight, target)


@forward
def test_a_graph_holds_one_operator_each_way(gradient_in_forward, graph_mode):
    """And multiplies no gradient, since the loss is minimised as it is."""
    data = draw(BY_NAME["plain"])
    given = [Tensor(data[name]) for name in ("input", "linear_weight", "target")]
    nodes = nodes_of(Gradient(given[2], gradient_in_forward, "cpu"), *given)
    operators = [kind for kind, _ in nodes if kind.startswith("Linear")]
    forms = ["ValueAndGrad"] if gradient_in_forward else ["Forward", "Backward"]
    assert sorted(operators) == sorted(f"LinearCrossEntropy{form}" for form in forms)
    of_table = [kind for kind, shapes in nodes if [CLASSES, FEATURES] in shapes]
    assert not {"Mul", "Add", "AddN"} & set(of_table), of_table


@forward
def test_products_of_a_sweep(gradient_in_forward, monkeypatch):
    """Of each chunk: the logits, once or twice, and one for each gradient."""
    counts = {"_product_with_transpose": 0, "_product": 0, "_product_of_transpose": 0}
    for name in counts:
        module = linear_sweep if name == "_product_with_transpose" else sweep_gradients

        product = getattr(module, name)

        def counted(*arguments, name=name, product=product):
            counts[name] += 1
            return product(*arguments)

        monkeypatch.setattr(module, name, counted)
    data = draw(BY_NAME["plain"])
    tensors = Tensor(data["input"]), Tensor(data["linear_weight"])

    def loss(input, linear_weight):
        return ms_ce.linear_multi_token_loss(
            input, linear_weight, Tensor(data["target"]), factors=FACTORS, backend="composed",
            chunk_bytes=CHUNKS, gradient_in_forward=gradient_in_forward,
        )[0]  # fmt: skip

    ms.grad(loss, (0, 1))(*tensors)[0].asnumpy()
    chunks = 4  # of 39 rows
    times = 1 if gradient_in_forward else 2
    assert counts == {
        "_product_with_transpose": times * chunks, "_product": chunks, "_product_of_transpose": chunks,
    }  # fmt: skip


def test_second_derivatives_of_one_chunk():
    """By hidden states, table and class weights, the divisors' part of it too."""
    case = BY_NAME["weight"]
    data = draw(case, "float64")
    direction = np.random.default_rng(5).normal(size=data["input"].shape)
    target, bias = Tensor(data["target"]), Tensor(data["linear_bias"])

    def slope(input, linear_weight, weight):
        def loss(input):
            return ms_ce.linear_multi_token_loss(
                input, linear_weight, target, bias, weight, factors=FACTORS, backend="composed"
            )[0]

        return (ms.grad(loss)(input) * Tensor(direction)).sum()

    names = ("input", "linear_weight", "weight")
    given = [Tensor(data[name]) for name in names]
    found = ms.jit(ms.grad(slope, (0, 1, 2)))(*given)

    def exact(values):
        changed = {**data, **dict(zip(names, values, strict=True))}
        return (expected_of(case, changed)[2]["input"] * direction).sum()

    random = np.random.default_rng(6)
    values, step = [data[name] for name in names], 1e-6
    for place, got in enumerate(found):
        along = random.normal(size=values[place].shape)
        moved = [
            exact([*values[:place], values[place] + sign * step * along, *values[place + 1 :]])
            for sign in (1, -1)
        ]
        expected = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose((to_numpy(got) * along).sum(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", ("cpu", "composed"))
def test_a_second_derivative_is_refused(loss):
    data = draw(BY_NAME["plain"])

    def value(input):
        return ms_ce.linear_multi_token_loss(
            input, Tensor(data["linear_weight"]), Tensor(data["target"]), backend=loss,
            chunk_bytes=CHUNKS,
        )[0]  # fmt: skip

    with pytest.raises((NotImplementedError, RuntimeError), match="differentiated once"):
        ms.grad(lambda input: ms.grad(value)(input).sum())(Tensor(data["input"])).asnumpy()


def test_losses_are_constants(backend):
    data = draw(BY_NAME["plain"])

    def losses(input):
        given = Tensor(data["linear_weight"]), Tensor(data["target"])
        return ms_ce.linear_multi_token_loss(input, *given, backend=backend)[1].sum()

    assert not np.any(to_numpy(ms.grad(losses)(Tensor(data["input"]))))


def test_what_is_frozen_gets_no_gradient(backend):
    data = draw(BY_NAME["everything"])
    _, _, exact = expected_of(BY_NAME["everything"], data)
    names = ("input", "linear_weight", "linear_bias")
    call = caller(
        BY_NAME["everything"], data["row_weight"],
        factors=FACTORS, frozen=("linear_weight",), backend=backend, chunk_bytes=CHUNKS,
    )  # fmt: skip
    given = [Tensor(data[name]) for name in NAMES]
    found = ms.grad(lambda *tensors: call(*tensors)[0], (0, 1, 2))(*given)
    for name, got in zip(names, found, strict=True):
        expected = exact[name] * (name != "linear_weight")
        check_linear(to_numpy(got), expected, backend, "float32", name)


def test_a_graph_of_any_number_of_rows(backend, graph_mode):
    """It is told the number of losses by the factors, and compiled once."""
    case = BY_NAME["other numbers of rows"]
    data = draw(case)

    class Network(nn.Cell):
        def construct(self, input, linear_weight, target):
            return ms_ce.linear_multi_token_loss(
                input, linear_weight, target, factors=FACTORS, backend=backend
            )

    network = Network()
    table = Tensor(data["linear_weight"])
    network.set_inputs(
        Tensor(shape=[LOSSES, None, FEATURES], dtype=ms.float32),
        table,
        Tensor(shape=[LOSSES, None], dtype=ms.int64),
    )
    data["linear_bias"] = np.zeros(CLASSES)
    for rows in (13, 6):
        part = {**data, "input": data["input"][:, :rows], "target": data["target"][:, :rows]}
        expected, losses, _ = expected_of(case, part)
        found = network(Tensor(part["input"].copy()), table, Tensor(part["target"].copy()))
        check_linear(float(found[0]), expected, backend, "float32", "loss")
        check_linear(to_numpy(found[1]), losses, backend, "float32", "losses")


HIDDEN, TABLE = np.zeros((2, 3, 4), np.float32), np.zeros((5, 4), np.float32)
TARGET = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    (
        ({"reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum', got 'none'"),
        ({"factors": (1.0,)}, ValueError, "factors must have 2 values, one a loss, got 1"),
        ({"factors": (1.0, np.inf)}, ValueError, "factors must be finite, got inf"),
        ({"factors": (1.0, "a")}, TypeError, "factors must hold numbers"),
        ({"factors": np.ones(3)}, ValueError, r"factors must have shape \(2,\), one value a loss"),
        ({"factors": np.ones(2) > 0}, TypeError, "factors must hold numbers, got dtype bool"),
        ({"total_weight": (1.0, 2.0, 3.0)}, ValueError, "total_weight must have 2 values"),
        ({"total_weight": 2.0, "reduction": "sum"}, ValueError, "total_weight is the divisor"),
        ({"total_weight": np.ones((2, 1))}, ValueError, r"must have shape \(\) or \(2,\)"),
        ({"input": HIDDEN[0, 0]}, ValueError, r"input must have shape \(losses, …, in_features\)"),
        ({"input": HIDDEN[:, 0], "shift": True}, ValueError, r"\(losses, …, sequence, in_features"),
        ({"input": HIDDEN[:0]}, ValueError, "input's first axis must be the losses, at least one"),
        ({"input": "text"}, TypeError, "input must be a mindspore.Tensor"),
        ({"input": ()}, ValueError, "input must hold a tensor for each loss, got none"),
        (
            {"input": (HIDDEN[0], HIDDEN[1, :2])},
            ValueError,
            r"input\[1\] must have shape \(3, 4\) as input\[0\], got \(2, 4\); pad it",
        ),
        (
            {"target": (TARGET[0], TARGET[1].astype(np.int64))},
            TypeError,
            r"target\[1\] must have dtype int32 as target\[0\], got int64",
        ),
        ({"target": (TARGET[0], 3)}, TypeError, "target.* must be a mindspore.Tensor"),
        ({"target": TARGET[:1]}, ValueError, r"target must have shape \(2, 3\) to match input"),
        ({"row_weight": TARGET}, TypeError, "row_weight must have dtype"),
        ({"row_weight": HIDDEN[0]}, ValueError, r"row_weight must have shape \(2, 3\)"),
        ({"linear_weight": HIDDEN}, ValueError, "linear_weight must have shape"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
    ),
)
def test_bad_input(given, error, message, backend):
    def as_given(value):
        if isinstance(value, tuple):
            return tuple(map(as_given, value))
        return Tensor(value) if isinstance(value, np.ndarray) else value

    arguments = {"input": HIDDEN, "linear_weight": TABLE, "target": TARGET, **given}
    arguments = {name: as_given(value) for name, value in arguments.items()}
    with pytest.raises(error, match="linear_multi_token_loss: .*" + message):
        ms_ce.linear_multi_token_loss(**arguments, backend=backend)


def test_a_class_out_of_range(backend):
    target = Tensor(np.array([[0, 1, 2], [3, 5, 0]]))

    def loss():
        given = Tensor(HIDDEN), Tensor(TABLE), target
        return ms_ce.linear_multi_token_loss(*given, backend=backend, chunk_bytes=40)[0].asnumpy()

    with pytest.raises((RuntimeError, ValueError), match=r"target 5 .*\(1, 1\)"):
        loss()
