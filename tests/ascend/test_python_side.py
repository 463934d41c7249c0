"""ops/ascend itself, in PyNative mode on CPU, with the kernels of the host model in place of the hardware's.

Only the ops.Custom objects are replaced: shapes, casts, reshapes, order of arguments, bprop and errors are the
real ones.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from ms_ce.ops import ascend
from ms_ce.ops.ascend import cells as ascend_cells
from ms_ce.ops.ascend import operators as table
from ms_ce.ops.ascend import rows as ascend_rows
from ms_ce.ops.options import ClassBlock, Options
from tests.ascend.expected import reference, within
from tests.ascend.host_calls import run_on_host
from tests.ascend.host_model import HostModel
from tests.support.cases import round_to

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}
MODELS: dict[str, HostModel] = {}


def to_host(tensor) -> np.ndarray:
    """A tensor as the kernel's memory holds it."""
    if tensor.dtype == ms.bfloat16:
        values = tensor.astype(ms.float32).asnumpy().view(np.uint32)
        return np.ascontiguousarray(values >> 16).astype(np.uint16)
    return np.ascontiguousarray(tensor.asnumpy())


def from_host(array: np.ndarray, is_bfloat16: bool):
    if is_bfloat16:
        return ms.Tensor((array.astype(np.uint32) << 16).view(np.float32)).astype(ms.bfloat16)
    return ms.Tensor(array)


class HostOperator:
    """Takes a call as ops.Custom does: tensors, then attributes."""

    def __init__(self, name: str, per_row: bool):
        self.name, self.per_row = name, per_row
        self.operator = table.OPERATORS[name]

    def __call__(self, *arguments):
        operator, count = self.operator, len(self.operator.inputs)
        tensors = arguments[:count]
        logits = tensors[next(i for i, (_, kind) in enumerate(operator.inputs) if kind == "F")]
        for (argument, kind), tensor in zip(operator.inputs, tensors, strict=True):
            allowed = {"F": (logits.dtype,), "C": (ms.int32, ms.int64), "W": (ms.float32,)}[kind]
            assert tensor.dtype in allowed, (self.name, argument, tensor.dtype)
        dtype = next(n for n, t in DTYPES.items() if t == logits.dtype)
        machine = MODELS.setdefault(dtype, HostModel(dtype))
        arrays = [to_host(t) for t in tensors]
        outputs = run_on_host(machine, self.name, self.per_row, arrays, arguments[count:])
        results = tuple(
            from_host(array, kind == "F" and dtype == "bfloat16")
            for array, (_, kind) in zip(outputs, operator.outputs, strict=True)
        )
        return results if len(results) > 1 else results[0]


@pytest.fixture(autouse=True)
def host_operators(monkeypatch):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    for module in (ascend_rows, ascend_cells):
        monkeypatch.setattr(module, "custom", HostOperator)
    for cached in (ascend_cells.cells, ascend_rows.built):
        cached.cache_clear()
    ascend.forget_targets()
    yield
    for cached in (ascend_cells.cells, ascend_rows.built):
        cached.cache_clear()
    ascend.forget_targets()


def draw(shape, dtype, *, probabilities=False, weighted=False, target_dtype="int32", seed=3):
    random = np.random.default_rng(seed)
    logits = round_to(random.normal(scale=2.0, size=shape), dtype)
    classes = shape[0] if len(shape) == 1 else shape[1]
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if probabilities:
        target = round_to(random.random(shape) / classes, dtype)
    else:
        target = np.array(random.integers(0, classes, rows), target_dtype)
        if target.ndim:
            target.flat[0] = 2 if target_dtype == "uint8" else -100
    weight = round_to(random.random(classes) + 0.5, dtype) if weighted else None
    return logits, target, weight


def tensor(array, dtype):
    if array is None:
        return None
    return (
        ms.Tensor(array)
        if array.dtype.kind in "iu"
        else ms.Tensor(np.asarray(array, np.float32)).astype(DTYPES[dtype])
    )


CASES = {
    "two axes": ((7, 40), "float32", Options(), {}),
    "one axis": ((40,), "float32", Options(reduction="none"), {}),
    "many axes": ((3, 5, 2, 4), "float32", Options(reduction="sum"), {"weighted": True}),
    "bfloat16": (
        (7, 130),
        "bfloat16",
        Options(label_smoothing=0.1),
        {"weighted": True, "target_dtype": "int64"},
    ),
    "float16": ((3, 9, 4), "float16", Options(reduction="none", z_loss=0.01), {}),
    "uint8": (
        (7, 40),
        "float32",
        Options(ignore_index=2),
        {"target_dtype": "uint8", "weighted": True},
    ),
    "softcap": ((7, 40), "float32", Options(softcap=5.0, logit_scale=0.5, reduction="sum"), {}),
    "probabilities": (
        (7, 40),
        "float32",
        Options(label_smoothing=0.2),
        {"probabilities": True, "weighted": True},
    ),
    "probabilities, many axes": (
        (3, 6, 5),
        "float32",
        Options(reduction="none"),
        {"probabilities": True},
    ),
    "long rows": (
        (3, 3000),
        "float32",
        Options(label_smoothing=0.1, z_loss=0.01),
        {"weighted": True},
    ),
}


# MindSpore's tanh on CPU is good to 1e-4 only (tests/support/tolerances.py); here it stands in front of the kernels.
UNITS = {"float32": 4e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7, "tanh": 4e-4}


def close(actual, expected, dtype, what):
    unit = UNITS[dtype]
    expected = np.asarray(expected)
    within(
        actual.astype(ms.float32).asnumpy(),
        expected,
        unit * (np.abs(expected) + np.abs(expected).max() + 1e-2),
        what,
    )


def given_options(options):
    """The options that are not 0 or None, as keywords of the reference."""
    return {name: value for name, value in options._asdict().items() if value}


@pytest.mark.parametrize("case", CASES)
def test_cross_entropy(case):
    shape, dtype, options, drawing = CASES[case]
    logits, target, weight = draw(shape, dtype, **drawing)
    precision = "tanh" if options.softcap else dtype
    keywords = given_options(options)
    expected = reference.cross_entropy(logits, target, weight, **keywords)
    tensors = [tensor(a, dtype) for a in (logits, target, weight)]
    loss, total_weight, lse = ascend.cross_entropy(*tensors, None, options)
    assert loss.dtype == tensors[0].dtype
    assert loss.shape == np.shape(expected.loss)
    close(loss, expected.loss, precision, "loss")
    close(total_weight, expected.total_weight, "float32", "total_weight")
    assert lse.shape == expected.lse.shape
    close(lse, expected.lse, "tanh" if options.softcap else "float32", "lse")

    probabilities = drawing.get("probabilities", False)
    positions = [0] + [1] * probabilities + [2] * (weight is not None)
    upstream = np.linspace(0.5, 1.5, loss.size, dtype=np.float32).reshape(loss.shape)

    def objective(*arguments):
        value = ascend.cross_entropy(*arguments, None, options)[0]
        return (value.astype(ms.float32) * ms.Tensor(upstream)).sum()

    gradients = ms.grad(objective, tuple(positions))(*tensors)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    wanted = reference.cross_entropy_grad(logits, target, weight, grad_loss=upstream, **keywords)
    for position, gradient in zip(positions, gradients, strict=True):
        name = ("logits", "target", "weight")[position]
        assert gradient.shape == tensors[position].shape
        close(gradient, getattr(wanted, name), precision, f"gradient of {name}")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_nll_loss(weighted, reduction):
    log_prob, target, weight = draw((4, 6, 3), "float32", weighted=weighted)
    options = Options(reduction=reduction)
    tensors = [tensor(a, "float32") for a in (log_prob, target, weight)]
    expected, total = reference.nll_loss(log_prob, target, weight, -100, reduction)
    loss, total_weight = ascend.nll_loss(*tensors, None, options)
    close(loss, expected, "float32", "loss")
    close(total_weight, total, "float32", "total_weight")
    positions = (0, 2) if weighted else (0,)
    gradients = ms.grad(lambda *a: ascend.nll_loss(*a, None, options)[0].sum(), positions)(*tensors)
    wanted = reference.nll_loss_grad(
        log_prob, target, weight, -100, reduction, grad_loss=np.ones(np.shape(expected))
    )
    gradients = gradients if weighted else (gradients,)
    close(gradients[0], wanted.logits, "float32", "gradient")
    if weighted:
        close(gradients[1], wanted.weight, "float32", "gradient of weight")


def with_row_weights(logits, target):
    """(logits, target, row_weight): every third row weighs nothing and holds nonsense."""
    row_weight = np.resize([0.5, 2.0, 0.0], reference.rows_shape(logits.shape)).astype(np.float32)
    left_out = row_weight == 0
    everywhere = np.broadcast_to(np.expand_dims(left_out, 1), logits.shape)
    logits = np.where(everywhere, np.nan, logits)
    if target.ndim == logits.ndim:
        return logits, np.where(everywhere, np.nan, target), row_weight
    return logits, np.where(left_out, 1000, target).astype(np.int64), row_weight


@pytest.mark.parametrize("name", ["two axes", "many axes", "bfloat16", "softcap", "probabilities"])
def test_row_weight(name):
    shape, dtype, options, drawing = CASES[name]
    logits, target, weight = draw(shape, dtype, **drawing)
    precision = "tanh" if options.softcap else dtype
    spoilt, labels, row_weight = with_row_weights(logits, target)
    keywords = {k: v for k, v in options._asdict().items() if v}
    keywords["row_weight"] = row_weight
    expected = reference.cross_entropy(logits, target, weight, **keywords)
    given = [tensor(each, dtype) for each in (spoilt, labels, weight)]

    def loss(logits):
        return ascend.cross_entropy(logits, *given[1:], ms.Tensor(row_weight), options)[:2]

    (value, total_weight), gradient = ms.value_and_grad(loss, 0, has_aux=True)(given[0])
    close(value, expected.loss, precision, "loss")
    close(total_weight, expected.total_weight, "float32", "total_weight")
    wanted = reference.cross_entropy_grad(logits, target, weight, **keywords)
    close(gradient, wanted.logits, precision, "gradient")


@pytest.mark.parametrize("entropy", [False, True])
def test_token_log_probs(entropy):
    logits, target, _ = draw((7, 40), "float32")
    options = Options(reduction="none", logit_scale=0.5)
    actual = ascend.token_log_probs(ms.Tensor(logits), ms.Tensor(target), options, entropy)
    expected = reference.token_log_probs(logits, target, logit_scale=0.5)
    close(actual[0], expected[0], "float32", "log_prob")
    close(actual[1], expected[1] * entropy, "float32", "entropy")


@pytest.mark.parametrize("case", [n for n in CASES if CASES[n][2].reduction != "none"])
def test_value_and_grad(case):
    shape, dtype, options, drawing = CASES[case]
    logits, target, weight = draw(shape, dtype, **drawing)
    precision = "tanh" if options.softcap else dtype
    keywords = given_options(options)
    arguments = (logits, target, weight)
    loss, total_weight, lse, gradient = ascend.cross_entropy_value_and_grad(
        *[tensor(a, dtype) for a in (logits, target, weight)], None, options
    )
    expected = reference.cross_entropy(*arguments, **keywords)
    close(loss, expected.loss, precision, "loss")
    close(total_weight, expected.total_weight, "float32", "total_weight")
    close(lse, expected.lse, "tanh" if options.softcap else "float32", "lse")
    assert gradient.shape == shape
    close(
        gradient, reference.cross_entropy_grad(*arguments, **keywords).logits, precision, "gradient"
    )


@pytest.mark.parametrize(
    "options", [Options(), Options(label_smoothing=0.1, z_loss=0.02), Options(softcap=4.0)], ids=str
)
def test_blocks_of_classes(options):
    logits, target, weight = draw((6, 20), "float32", weighted=True)
    tensors = [tensor(a, "float32") for a in (target, weight)]
    keywords = {
        k: v for k, v in options._asdict().items() if k not in ("ignore_index", "reduction") and v
    }
    blocks = (ClassBlock(0, 20), ClassBlock(8, 20))
    local = [
        ms.Tensor(logits[:, :8].astype(np.float32)),
        ms.Tensor(logits[:, 8:].astype(np.float32)),
    ]
    parts = [
        ascend.partial(x, *tensors, options, b).asnumpy()
        for x, b in zip(local, blocks, strict=True)
    ]
    lse = np.logaddexp(parts[0][:, 0], parts[1][:, 0])
    dot, mass = parts[0][:, 1] + parts[1][:, 1], parts[0][:, 2] + parts[1][:, 2]
    keep = target != -100
    loss = np.where(keep, mass * lse - dot + options.z_loss * lse**2, 0.0)
    expected = reference.cross_entropy(logits, target, weight, reduction="none", **keywords)
    bound = 1e-3 if options.softcap else 1e-5
    within(loss, expected.loss, bound, "loss")
    upstream = np.linspace(-1, 1, 6).astype(np.float32)
    of_lse = (2 * options.z_loss * lse * upstream).astype(np.float32)
    saved = [
        ms.Tensor(v.astype(np.float32)) for v in (upstream, of_lse, np.where(keep, lse, 0.0), mass)
    ]
    gradients = [
        ascend.partial_backward(
            saved[0], saved[1], x, *tensors, saved[2], saved[3], options, b
        ).asnumpy()
        for x, b in zip(local, blocks, strict=True)
    ]
    wanted = reference.cross_entropy_grad(
        logits, target, weight, reduction="none", **keywords, grad_loss=upstream
    )
    within(np.concatenate(gradients, 1), wanted.logits, bound, "gradient")


def test_bad_target_is_named():
    logits = ms.Tensor(np.zeros((4, 6), np.float32))
    loss = ascend.cross_entropy(
        logits, ms.Tensor(np.array([0, 9, 1, -3], np.int64)), None, None, Options()
    )[0]
    assert np.isnan(loss.asnumpy())
    with pytest.raises(
        ValueError, match=r"cross_entropy: target 9 in row 1 is outside \[0, 6\); 2 rows"
    ):
        ascend.check_targets()
    ascend.check_targets()  # reported once
    ascend.nll_loss(
        logits, ms.Tensor(np.array([0, -(2**40), 1, 2], np.int64)), None, None, Options()
    )
    with pytest.raises(ValueError, match=f"nll_loss: target -{2**40} in row 1"):
        ascend.check_targets()


def test_synchronous_mode_names_it_at_the_call():
    ms.set_context(pynative_synchronize=True)
    try:
        with pytest.raises(ValueError, match="target 6 in row 0"):
            ascend.cross_entropy(
                ms.Tensor(np.zeros((1, 6), np.float32)), ms.Tensor([6]), None, None, Options()
            )
    finally:
        ms.set_context(pynative_synchronize=False)


def test_second_derivative_is_refused():
    x, t = ms.Tensor(np.ones((2, 5), np.float32)), ms.Tensor([1, 2])
    first = ms.grad(lambda x: ascend.cross_entropy(x, t, None, None, Options())[0])
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        ms.grad(lambda x: first(x).sum())(x)


def test_float64_is_refused():
    with pytest.raises(TypeError, match="no float64"):
        ascend.cross_entropy(ms.Tensor(np.zeros((1, 5))), ms.Tensor([1]), None, None, Options())


def test_probabilities_are_not_sharded():
    x = ms.Tensor(np.zeros((1, 5), np.float32))
    with pytest.raises(TypeError, match="class indices only"):
        ascend.partial(x, x, None, Options(), ClassBlock(0, 10))


class TestProbe:
    def test_without_cann(self, monkeypatch):
        for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_CUSTOM_OPP_PATH"):
            monkeypatch.delenv(name, raising=False)
        assert "ASCEND_OPP_PATH and ASCEND_HOME_PATH are not set" in ascend.probe()

    @pytest.mark.parametrize("missing", table.VARIABLES)
    def test_a_missing_variable_is_asked_for_by_name(self, monkeypatch, tmp_path, missing):
        for name in table.VARIABLES:
            monkeypatch.setenv(name, str(tmp_path))
        monkeypatch.delenv(missing)
        assert f"{missing} is not set" in ascend.probe()

    def test_without_operators(self, monkeypatch, tmp_path):
        monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
        monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path))
        monkeypatch.delenv("ASCEND_CUSTOM_OPP_PATH", raising=False)
        assert "python -m ms_ce build-ascend" in ascend.probe()

    @pytest.mark.parametrize("variable", ["ASCEND_OPP_PATH", "ASCEND_CUSTOM_OPP_PATH"])
    def test_with_operators(self, monkeypatch, tmp_path, variable):
        folder = tmp_path / "vendors" / "ms_ce"
        library = folder / "op_api" / "lib" / "libcust_opapi.so"
        library.parent.mkdir(parents=True)
        library.touch()
        monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
        monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path / "elsewhere"))
        monkeypatch.delenv("ASCEND_CUSTOM_OPP_PATH", raising=False)
        monkeypatch.setenv(variable, str(folder if "CUSTOM" in variable else tmp_path))
        assert table.installed_library() == library
        assert ascend.probe() is None


@pytest.mark.parametrize(
    ("wanted", "backward"), (((0,), ["MsCeBackward"]), ((2,), []), ((0, 2), ["MsCeBackward"]))
)
def test_gradients_that_nobody_wants_are_not_made(wanted, backward, monkeypatch):
    logits, target, weight = draw((7, 40), "float32", weighted=True)
    given = [
        ms.Parameter(tensor(array, "float32"), name=f"p{place}", requires_grad=place in wanted)
        for place, array in ((0, logits), (2, weight))
    ]
    launched, call = [], HostOperator.__call__

    def noted(operator, *arguments):
        launched.append(operator.name)
        return call(operator, *arguments)

    monkeypatch.setattr(HostOperator, "__call__", noted)

    def loss():
        return ascend.cross_entropy(given[0], ms.Tensor(target), given[1], None, Options())[0]

    places = [{0: 0, 2: 1}[place] for place in wanted]
    gradients = ms.grad(loss, None, [given[place] for place in places])()
    assert [name for name in launched if name == "MsCeBackward"] == backward
    expected = reference_gradients(logits, target, weight)
    for place, gradient in zip(wanted, gradients, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), expected[place], rtol=1e-4, atol=1e-6)


def reference_gradients(logits, target, weight) -> dict[int, np.ndarray]:
    from ms_ce.reference import cross_entropy_grad

    expected = cross_entropy_grad(logits, target, weight)
    return {0: expected.logits, 2: expected.weight}
