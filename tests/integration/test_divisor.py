"""A mean's divisor from outside: the sum over it, its gradients, and what it is refused with."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import ms_ce
from ms_ce import reference
from ms_ce.ops import cpu
from tests.integration.conftest import DTYPES, to_numpy, to_tensor
from tests.support.cases import CASES, NLL_CASES
from tests.support.linear_tolerances import check_linear
from tests.support.tolerances import check_close, tolerance

NAMED = (
    "plain", "unbatched", "ignored", "weight image", "smoothing weight ignored", "probabilities",
    "everything", "everything probabilities",
)  # fmt: skip
COMPILED = ("everything", "everything probabilities")
DIVISOR = 5.5
KINDS = {"number": DIVISOR, "tensor": Tensor(DIVISOR, ms.float32)}
both = pytest.mark.parametrize("run", ("pynative", "jit"), indirect=True)


def _cases(cases):
    for case in cases:
        for dtype in DTYPES if case.name == "everything" else ("float32",):
            for backend in ("cpu", "composed"):
                yield pytest.param(case, dtype, "number", backend, "pynative")
        if case.name in COMPILED:
            for backend in ("cpu", "composed"):
                yield pytest.param(case, "float32", "tensor", backend, "jit")


def summed(options):
    return {**options, "reduction": "sum"}


def _check(function, formulas, case, dtype, backend, run):
    data = case.inputs(dtype)
    arguments = (data["logits"], data["target"], data["weight"])
    weighted = data["weight"] is not None
    tensors = [to_tensor(each, dtype) for each in arguments if each is not None]
    formula, gradient_formula = formulas
    total = formula(*arguments, **summed(case.options))
    expected = getattr(total, "loss", total[0]) / DIVISOR
    bound = tolerance(backend, dtype, "softcap" in case.options)
    check_close(to_numpy(run(function, *tensors)), expected, dtype, bound, "loss")
    exact = gradient_formula(*arguments, **summed(case.options), grad_loss=1 / DIVISOR)
    wanted = [(0, exact.logits)]
    wanted += [(1, exact.target)] * (exact.target is not None)
    wanted += [(2, exact.weight)] * weighted
    positions = tuple(position for position, _ in wanted)
    gradients = run(ms.grad(function, positions), *tensors)
    gradients = gradients if len(positions) > 1 else (gradients,)
    for (position, value), got in zip(wanted, gradients, strict=True):
        check_close(to_numpy(got), value, dtype, bound, f"gradient {position}")


NAMED_CASES = [case for case in CASES if case.name in NAMED]


@pytest.mark.parametrize(
    ("case", "dtype", "kind", "backend", "run"), list(_cases(NAMED_CASES)), indirect=["run"]
)
def test_cross_entropy(case, dtype, kind, backend, run):
    options = {**case.options, "reduction": "mean"}

    def loss(logits, target, weight=None):
        return ms_ce.cross_entropy(
            logits, target, weight, total_weight=KINDS[kind], backend=backend, **options
        )

    def unweighted(logits, target):
        return ms_ce.cross_entropy(
            logits, target, total_weight=KINDS[kind], backend=backend, **options
        )

    formulas = reference.cross_entropy, reference.cross_entropy_grad
    _check(loss if case.weight else unweighted, formulas, case, dtype, backend, run)


@pytest.mark.parametrize("name", ("plain", "weight"))
@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_nll_loss(name, dtype, backend):
    case = next(case for case in NLL_CASES if case.name == name)

    def loss(log_prob, target, weight):
        return ms_ce.nll_loss(log_prob, target, weight, total_weight=DIVISOR, backend=backend)

    def unweighted(log_prob, target):
        return ms_ce.nll_loss(log_prob, target, total_weight=DIVISOR, backend=backend)

    formulas = reference.nll_loss, reference.nll_loss_grad
    function = loss if case.weight else unweighted
    _check(function, formulas, case, dtype, backend, lambda f, *tensors: f(*tensors))


@pytest.mark.parametrize(
    ("case", "dtype", "kind", "backend", "run"),
    [
        pytest.param(*each.values)
        for each in _cases(NAMED_CASES)
        if each.values[0].name in ("ignored", *COMPILED)
    ],
    indirect=["run"],
)
def test_statistics_and_value_and_grad(case, dtype, kind, backend, run):
    """Sums over the divisor, which is total_weight too; the loss and the z-loss have gradients."""
    data, options = case.inputs(dtype), {**case.options, "reduction": "mean"}
    tensors = [to_tensor(data[name], dtype) for name in ("logits", "target", "weight")]
    more = {"total_weight": KINDS[kind], "backend": backend, **options}

    def statistics(logits, target, weight):
        found = ms_ce.cross_entropy_with_stats(logits, target, weight, **more)
        return found[0], found[1], found[3], found[4], found[5]

    def total(logits, target, weight):
        found = ms_ce.cross_entropy_with_stats(logits, target, weight, **more)
        return found[0].astype(ms.float32) + 2 * found[3].astype(ms.float32)

    def both(logits, target, weight):
        return ms_ce.cross_entropy_value_and_grad(logits, target, weight, **more)

    arguments = (data["logits"], data["target"], data["weight"])
    sums = reference.cross_entropy(*arguments, **summed(case.options))
    bound = tolerance(backend, dtype, "softcap" in case.options)
    loss, total_weight, z_loss, num_correct, entropy = run(statistics, *tensors)
    for name, actual in (("loss", loss), ("z_loss", z_loss), ("entropy", entropy)):
        check_close(to_numpy(actual), getattr(sums, name) / DIVISOR, dtype, bound, name)
        assert actual.dtype == tensors[0].dtype
    assert float(total_weight) == DIVISOR
    assert int(num_correct) == sums.num_correct
    settings = summed(case.options)
    upstream = {"grad_loss": 1 / DIVISOR}
    exact = reference.cross_entropy_grad(*arguments, **settings, **upstream).logits
    value, slope = run(both, *tensors)
    check_close(to_numpy(value), sums.loss / DIVISOR, dtype, bound, "loss with its gradient")
    check_close(to_numpy(slope), exact, dtype, bound, "gradient")
    with_z = {**settings, "z_loss": 3 * settings.get("z_loss", 0.0)}
    exact = reference.cross_entropy_grad(*arguments, **with_z, **upstream).logits
    slope = run(ms.grad(total), *tensors)
    check_close(to_numpy(slope), exact, dtype, bound, "gradient of the statistics")


@both
def test_linear_statistics(backend, run):
    random = np.random.default_rng(8)
    hidden, table = (random.normal(size=size).astype(np.float32) for size in ((9, 5), (11, 5)))
    target = random.integers(0, 11, 9)
    target[2:4] = -100

    def statistics(hidden, table, target):
        found = ms_ce.linear_cross_entropy_with_stats(
            hidden, table, target, z_loss=0.01, total_weight=DIVISOR, chunk_bytes=4 * 11 * 4, backend=backend
        )  # fmt: skip
        return found[0], found[1], found[3], found[4], found[5]

    tensors = to_tensor(hidden), to_tensor(table), to_tensor(target)
    sums = reference.linear_cross_entropy(hidden, table, target, reduction="sum", z_loss=0.01)
    found = run(statistics, *tensors)
    expected = (sums.loss / DIVISOR, DIVISOR, sums.z_loss / DIVISOR, sums.num_correct)
    for got, value in zip(found, (*expected, sums.entropy / DIVISOR), strict=True):
        check_linear(to_numpy(got), value, backend, "float32", "statistics")


def test_an_entropy_is_not_rounded_before_it_is_divided(backend):
    """70,000 entropies near log 3 have no sum in float16."""
    logits = Tensor(np.random.default_rng(0).normal(size=(70000, 3)).astype(np.float16))
    given = {"total_weight": 70000, "backend": backend}
    stats = ms_ce.cross_entropy_with_stats(logits, Tensor(np.zeros(70000, np.int32)), **given)
    expected = reference.cross_entropy(to_numpy(logits), np.zeros(70000, np.int64)).entropy
    assert stats.entropy.dtype == ms.float16
    np.testing.assert_allclose(to_numpy(stats.entropy), expected, rtol=1e-3)


LINEAR = (
    ("pynative", "float32", 4 * 11 * 4, True, True),
    ("pynative", "float32", 4 * 11 * 4, False, False),
    ("pynative", "bfloat16", None, True, True),
    ("jit", "float32", 4 * 11 * 4, True, True),
)


@pytest.mark.parametrize(
    ("run", "dtype", "chunk_bytes", "in_forward", "weighted"), LINEAR, indirect=["run"]
)
def test_linear(weighted, in_forward, chunk_bytes, dtype, backend, run):
    random = np.random.default_rng(6)
    given = [random.normal(size=size).astype(np.float32) for size in ((4, 9, 5), (11, 5), (11,))]
    hidden, table, bias = (to_numpy(to_tensor(each, dtype)) for each in given)
    target = random.integers(0, 11, (4, 9))
    target[1, :5] = -100
    row_weight = random.random((4, 9)).astype(np.float32) if weighted else None

    def loss(input, linear_weight, target, linear_bias, total_weight):
        return ms_ce.linear_cross_entropy(
            input, linear_weight, target, linear_bias, shift=True, chunk_bytes=chunk_bytes, backend=backend,
            row_weight=to_tensor(row_weight), total_weight=total_weight, gradient_in_forward=in_forward,
        )  # fmt: skip

    tensors = [to_tensor(each, dtype) for each in (hidden, table)]
    tensors += [to_tensor(target), to_tensor(bias, dtype), Tensor(40, ms.int64)]
    options = {"shift": True, "reduction": "sum", "row_weight": row_weight}
    expected = reference.linear_cross_entropy(hidden, table, target, bias, **options).loss / 40
    exact = reference.linear_cross_entropy_grad(
        hidden, table, target, bias, **options, grad_loss=1 / 40
    )
    loop = {"composed_loop": backend == "composed"}
    value, gradients = run(ms.value_and_grad(loss, (0, 1, 3)), *tensors, **loop)
    check_linear(to_numpy(value), expected, backend, dtype, "loss")
    for name, got, wanted in zip(exact._fields[:3], gradients, exact[:3], strict=True):
        check_linear(to_numpy(got), wanted, backend, dtype, name)


class _Step(nn.Cell):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def construct(self, logits, target, total_weight):
        return self.loss(logits, target, total_weight=total_weight)


@pytest.mark.parametrize("run", ("pynative", "jit", "graph"), indirect=True)
def test_cells(run):
    """By keyword, and as the fourth input."""
    random = np.random.default_rng(2)
    logits, target = random.normal(size=(6, 5)).astype(np.float32), random.integers(0, 4, 6)
    tensors = to_tensor(logits), to_tensor(target), Tensor(DIVISOR, ms.float32)
    row_weight = np.array([1, 0, 2, 0.5, 0, 1], np.float32)
    cell = ms_ce.LinearCrossEntropyLoss(5, 4)
    table = to_numpy(cell.linear_weight)
    for loss, formula, arguments in (
        (ms_ce.CrossEntropyLoss(), reference.cross_entropy, (logits, target)),
        (ms_ce.NLLLoss(), reference.nll_loss, (logits, target)),
        (cell, reference.linear_cross_entropy, (logits, table, target)),
    ):
        expected = formula(*arguments, reduction="sum")[0] / DIVISOR
        actual = to_numpy(run(_Step(loss), *tensors))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        expected = formula(*arguments, reduction="sum", row_weight=row_weight)[0] / DIVISOR
        actual = to_numpy(run(loss, *tensors[:2], Tensor(row_weight), tensors[2]))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_shares_of_batches_add_up_to_the_mean_over_all(backend):
    random = np.random.default_rng(3)
    logits, target = random.normal(size=(12, 7)), random.integers(0, 7, 12)
    target[[0, 1, 2, 8]] = -100
    count = Tensor(int((target >= 0).sum()))

    def share(logits, target):
        return ms_ce.cross_entropy(logits, target, total_weight=count, backend=backend)

    losses, slopes = zip(
        *(
            ms.value_and_grad(share)(Tensor(logits[rows]), Tensor(target[rows]))
            for rows in (slice(0, 4), slice(4, 12))
        ),
        strict=True,
    )
    expected = reference.cross_entropy(logits, target).loss
    np.testing.assert_allclose(sum(float(loss) for loss in losses), expected, rtol=1e-12)
    exact = reference.cross_entropy_grad(logits, target).logits
    actual = np.concatenate([to_numpy(slope) for slope in slopes])
    np.testing.assert_allclose(actual, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("zero", (0, Tensor(0), Tensor(0.0, ms.float32)), ids=str)
@pytest.mark.parametrize("ignored", (False, True))
@both
def test_zero_divides_as_it_is_and_has_gradient_zero(ignored, zero, backend, run):
    logits = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    target = np.array([-100, -100] if ignored else [0, -100])

    def plain(logits, target):
        return ms_ce.cross_entropy(logits, target, total_weight=zero, backend=backend)

    def linear(logits, target):
        return ms_ce.linear_cross_entropy(
            logits, Tensor(np.eye(2, dtype=np.float32)), target, total_weight=zero, backend=backend
        )

    def statistics(logits, target):
        return ms_ce.cross_entropy_with_stats(logits, target, total_weight=zero, backend=backend)[0]

    def both(logits, target):
        return ms_ce.cross_entropy_value_and_grad(
            logits, target, total_weight=zero, backend=backend
        )

    value, slope = run(both, to_tensor(logits), to_tensor(target))
    np.testing.assert_array_equal(to_numpy(value), np.nan if ignored else np.inf)
    np.testing.assert_array_equal(to_numpy(slope), np.zeros((2, 2)))
    for loss in (plain, linear, statistics):
        value, slope = run(ms.value_and_grad(loss), to_tensor(logits), to_tensor(target))
        np.testing.assert_array_equal(to_numpy(value), np.nan if ignored else np.inf)
        np.testing.assert_array_equal(to_numpy(slope), np.zeros((2, 2)))


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_no_sum_is_rounded_before_it_is_divided(dtype, backend):
    """70,000 losses near log 3 have no sum in float16."""
    logits = to_tensor(np.random.default_rng(0).normal(size=(70000, 3)).astype(np.float32), dtype)
    target = Tensor(np.zeros(70000, np.int32))
    loss = ms_ce.cross_entropy(logits, target, total_weight=70000, backend=backend)
    expected = reference.cross_entropy(to_numpy(logits), to_numpy(target)).loss
    check_close(to_numpy(loss), expected, dtype, tolerance(backend, dtype), "loss")


def test_a_negative_one_changes_the_sign(backend):
    logits, target = Tensor([[1.0, 0.0]]), Tensor([0])
    values = [
        float(ms_ce.cross_entropy(logits, target, total_weight=divisor, backend=backend))
        for divisor in (2, -2, Tensor(-2.0))
    ]
    assert values[0] == -values[1] == -values[2] > 0


def test_another_tensor_compiles_nothing(backend):
    compiled = []

    @ms.ops.constexpr
    def note(shape):
        compiled.append(shape)

    @ms.jit
    def step(logits, target, total_weight):
        note(logits.shape)
        return ms_ce.cross_entropy(logits, target, total_weight=total_weight, backend=backend)

    logits, target = Tensor([[1.0, 0.0]]), Tensor([0])
    products = [float(step(logits, target, Tensor(d, ms.float32))) * d for d in (1.0, 2.0, 8.0)]
    np.testing.assert_allclose(products, products[0], rtol=1e-6)
    assert len(compiled) == 1


def test_no_gradient_reaches_it():
    logits, target = Tensor([[1.0, 0.0]]), Tensor([0])

    def loss(logits, total_weight):
        return ms_ce.cross_entropy(logits, target, total_weight=total_weight)

    for compute in (ms.grad(loss, (0, 1)), ms.jit(ms.grad(loss, (0, 1)))):
        assert float(compute(logits, Tensor(2.0))[1]) == 0


def test_the_gradient_is_still_made_in_the_forward_pass(monkeypatch):
    logits, target = Tensor(np.ones((300, 300), np.float32)), Tensor(np.arange(300))
    monkeypatch.setattr(cpu.losses, "_backward", None)

    def loss(logits):
        return ms_ce.cross_entropy(logits, target, total_weight=Tensor(300.0), backend="cpu")

    slope = to_numpy(ms.grad(loss)(logits))
    exact = reference.cross_entropy_grad(to_numpy(logits), to_numpy(target)).logits
    np.testing.assert_allclose(slope, exact, atol=1e-8)


def test_under_mixed_precision():
    """The rows' weights are not cast."""

    class Network(nn.Cell):
        def construct(self, logits, target):
            return ms_ce.cross_entropy(logits, target, total_weight=Tensor(30001.0))

    network = ms.amp.auto_mixed_precision(Network(), "O3")
    logits, target = np.ones((2, 3), np.float16), np.array([0, 1])
    actual = to_numpy(network(Tensor(logits), Tensor(target))).astype(np.float64)
    expected = reference.cross_entropy(logits, target, reduction="sum").loss / 30001
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


MESSAGES = {
    "sum": (3, "sum", ValueError, "total_weight is the divisor of a mean, and reduction is 'sum'"),
    "none": (3, "none", ValueError, "total_weight is the divisor of a mean, and reduction is 'none'"),
    "text": ("3", "mean", TypeError, "total_weight must be a number or a mindspore.Tensor of shape"),
    "bool": (True, "mean", TypeError, "total_weight must be a number .*got True"),
    "nan": (float("nan"), "mean", ValueError, "total_weight must be finite, got nan"),
    "shape": (Tensor([3.0]), "mean", ValueError, r"total_weight must .*have shape \(\), got \(1,\); use"),
    "dtype": (Tensor(True), "mean", TypeError, "total_weight must have dtype .*int64.*got bool"),
}  # fmt: skip


@both
@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name, run):
    divisor, reduction, error, text = MESSAGES[name]
    logits, target = Tensor(np.ones((2, 3), np.float32)), Tensor([0, 1])

    def plain(logits, target):
        return ms_ce.cross_entropy(logits, target, reduction=reduction, total_weight=divisor)

    def nll(logits, target):
        return ms_ce.nll_loss(logits, target, reduction=reduction, total_weight=divisor)

    def linear(logits, target):
        return ms_ce.linear_cross_entropy(
            logits, logits, target, reduction=reduction, total_weight=divisor
        )

    def statistics(logits, target):
        return ms_ce.cross_entropy_with_stats(
            logits, target, reduction=reduction, total_weight=divisor
        )[0]

    for function in (plain, nll, linear, statistics):
        with pytest.raises(error, match=text):
            run(function, logits, target)
