"""Values and targets at the edges: infinities, nan, offsets, ignored rows, misaligned memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernel.library import NO_ROW_WEIGHT, Library, cast, empty, options, text, to_float64
from tests.kernel.operations import Loss, reference
from tests.support.tolerances import check_close, tolerance

INF, NAN = np.inf, np.nan
ONE = np.ones((), np.float32)

# One layout for each path through the kernels: (C) and few classes go in lanes, many classes row by row, and
# inner sizes in columns.
LAYOUTS = ((4, 6), (4, 100), (4, 1500), (2, 6, 2), (2, 90, 2))


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:])


def zeros(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return logits, np.zeros(rows_of(shape), np.int64)


@pytest.mark.parametrize("shape", LAYOUTS)
@pytest.mark.parametrize("value", [-INF, 65504.0, -65504.0, 1e30, -1e30])
def test_extreme_logit_beside_the_target(isa_library: Library, shape, value: float) -> None:
    logits, target = zeros(shape)
    logits[:, 2] = value
    loss = Loss(isa_library, logits, target)
    bound = tolerance("cpu", "float32")
    check_close(loss.forward()[0], loss.reference().loss, "float32", bound, "loss")
    expected = loss.reference_grad(ONE).logits
    for grad in (loss.backward(ONE), loss.value_and_grad()[3]):
        check_close(grad, expected, "float32", bound, "grad_logits")
    if value == -INF:
        assert np.all(loss.backward(ONE)[:, 2] == 0)


@pytest.mark.parametrize("shape", LAYOUTS)
def test_minus_infinity_at_the_target_is_an_infinite_loss(isa_library: Library, shape) -> None:
    logits, target = zeros(shape)
    logits[:, 0] = -INF
    loss = Loss(isa_library, logits, target)
    value, _, lse = loss.forward()
    assert value == INF
    check_close(lse, loss.reference().lse, "float64", tolerance("cpu", "float32"), "lse")


@pytest.mark.parametrize("shape", LAYOUTS)
@pytest.mark.parametrize("poison", [NAN, -NAN, INF])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_nan_and_infinity_spoil_their_row_only(
    isa_library: Library, shape, poison: float, place: int
) -> None:
    logits, target = zeros(shape)
    logits[1, place] = poison
    loss = Loss(isa_library, logits, target, reduction="none")
    clean = Loss(isa_library, *zeros(shape), reduction="none")
    value, grad = loss.forward()[0], loss.backward(np.ones(loss.rows, np.float32))
    assert np.all(np.isnan(value[1]))
    assert np.all(np.isnan(grad[1]))
    others = [row for row in range(shape[0]) if row != 1]
    np.testing.assert_array_equal(value[others], clean.forward()[0][others])
    clean_grad = clean.backward(np.ones(loss.rows, np.float32))
    np.testing.assert_array_equal(grad[others], clean_grad[others])


@pytest.mark.parametrize("shape", LAYOUTS)
def test_a_nan_with_a_payload_stays_nan(isa_library: Library, shape) -> None:
    """Arithmetic on the exponent's bits must not turn it into a number."""
    logits, target = zeros(shape)
    logits[:] = np.array(0x7FC00001, np.uint32).view(np.float32)
    assert np.isnan(Loss(isa_library, logits, target).forward()[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_nan_of_any_bits_in_a_weight_reaches_the_gradient(
    isa_library: Library, dtype: str
) -> None:
    logits = cast(np.random.default_rng(0).normal(size=(2, 1500)), dtype)
    weight = np.ones(1500, np.float32)
    weight.view(np.uint32)[3] = 0x7FFFFFFF  # all bits set: rounded as a number it becomes -0
    loss = Loss(isa_library, logits, np.array([3, 5]), weight, reduction="sum")
    for grad in (loss.backward(cast(ONE, dtype)), loss.value_and_grad()[3]):
        assert np.isnan(to_float64(grad)[0]).all()
        assert np.isfinite(to_float64(grad)[1]).all()


@pytest.mark.parametrize("shape", LAYOUTS)
def test_a_row_of_minus_infinity_is_nan_but_a_shard_of_it_is_not(
    isa_library: Library, shape
) -> None:
    logits, target = zeros(shape)
    logits[:] = -INF
    assert np.isnan(Loss(isa_library, logits, target).forward()[0])
    partial = np.full((*rows_of(shape), 3), NAN)
    opts = options(class_offset=0, total_classes=2 * shape[1])
    target[:] = shape[1]  # another shard's
    isa_library.call("CrossEntropyPartial", [logits, target, np.zeros(1, "f4"), opts], [partial])
    assert np.all(partial[..., 0] == -INF)
    assert np.all(partial[..., 1:] == 0)


@pytest.mark.parametrize("shape", LAYOUTS)
def test_the_maximum_may_come_late_and_high(isa_library: Library, shape) -> None:
    """Beyond the first tile and far above it, where exp of the difference would overflow."""
    for low, high in [
        (-1e4, 1e4),
        (-1e4, -1e4 + 2),
        (-INF, 3.0),
        (0.0, 90.0),
        (0.0, 19.0),
        (0.0, 21.0),
    ]:
        logits, target = zeros(shape)
        logits[:] = low
        logits[:, -1] = high
        logits[:, -2] = high - 1
        target[:] = shape[1] - 2
        loss = Loss(isa_library, logits, target)
        bound = tolerance("cpu", "float32")
        check_close(loss.forward()[0], loss.reference().loss, "float32", bound, f"{low} {high}")
        expected = loss.reference_grad(ONE).logits
        check_close(loss.value_and_grad()[3], expected, "float32", bound, f"{low} {high}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("above", [-4.0, 0.0, 4.0, 12.0, 40.0])
@pytest.mark.parametrize("place", [3, -3])
@pytest.mark.parametrize("classes", [1000, 1024, 5000])
def test_a_likely_target_of_a_long_row(
    isa_library: Library, classes: int, place: int, above: float, dtype: str
) -> None:
    """Its loss is what all others add to it, and so is its gradient: exact to what a float has of places beside 1."""
    random = np.random.default_rng(1)
    wide = random.normal(size=(6, classes)) + np.array([-9.0, -1.0, 0.0, 1.0, 9.0, 30.0])[:, None]
    wide[:, place] = wide.mean(-1) + np.log(classes) + above
    logits, target = cast(wide, dtype), np.full(6, place % classes)
    loss, upstream = Loss(isa_library, logits, target, reduction="sum"), cast(ONE, dtype)
    exact = to_float64(logits)
    sums = np.exp(np.delete(exact, place, -1) - exact[:, [place]]).sum(-1)
    losses = np.log1p(sums)
    for _, _, lse, *_ in (loss.forward(), loss.value_and_grad()):
        error = np.abs(lse - exact[:, place] - losses)
        assert np.all(error <= 2e-5 * losses + 1.5e-6)
    rounding = {"float32": 2.0**-23, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for grad in (loss.backward(upstream), loss.value_and_grad()[3]):
        error = np.abs(to_float64(grad)[:, place] + sums / (1 + sums))
        assert np.all(error <= (rounding + 2e-5) * np.minimum(sums, 1) + 1.5e-6)


@pytest.mark.parametrize("shape", LAYOUTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_common_offset_costs_no_accuracy(isa_library: Library, shape, smoothing: float) -> None:
    logits, target = zeros(shape)
    logits = np.round(logits * 64) / 64 + np.float32(1e4)  # exact in float32
    loss = Loss(isa_library, logits, target, label_smoothing=smoothing)
    bound = tolerance("cpu", "float32")
    check_close(loss.forward()[0], loss.reference().loss, "float32", bound, "loss")
    check_close(loss.backward(ONE), loss.reference_grad(ONE).logits, "float32", bound, "gradient")


# A double has no places left for log sum beside such an lse, or few.
FAR = [
    ("float64", 1e8, 1 / 1024),
    ("float64", 1e17, 16.0),
    ("float32", 1e9, 64.0),
    ("float32", 1e17, 2.0**34),
]


@pytest.mark.parametrize("shape", LAYOUTS)
@pytest.mark.parametrize(("dtype", "offset", "step"), FAR)
def test_gradients_far_from_zero(isa_library: Library, shape, dtype: str, offset, step) -> None:
    """Those of the same rows near 0, all logits being multiples of what their dtype tells apart at the offset."""
    near = np.random.default_rng(1).integers(-2, 3, shape) * step
    far = cast(near + offset, dtype)
    assert np.array_equal(
        to_float64(far) - to_float64(far).max(1, keepdims=True), near - near.max(1, keepdims=True)
    )
    target = np.zeros(rows_of(shape), np.int64)
    one, direction = (
        cast(np.ones(()), dtype),
        cast(np.random.default_rng(2).normal(size=shape), dtype),
    )
    loss, alike = (Loss(isa_library, cast(x, dtype), target) for x in (far, near))
    bound = tolerance("cpu", dtype)
    expected = alike.reference_grad(one).logits
    for grad in (loss.backward(one), loss.value_and_grad()[3]):
        check_close(grad, expected, dtype, bound, "gradient")
    second = [of.double_backward(direction, one)[2] for of in (loss, alike)]
    check_close(*second, dtype, bound, "second derivative")


@pytest.mark.parametrize("shape", LAYOUTS)
def test_a_row_far_from_zero_changes_no_other(isa_library: Library, shape) -> None:
    """Not a bit of it, though the pass reads its lse again."""
    logits, target = zeros(shape)
    logits = logits.astype(np.float64)
    one = np.ones(())
    alone = Loss(isa_library, logits, target, reduction="sum").backward(one)
    logits[0] += 1e8
    beside = Loss(isa_library, logits, target, reduction="sum").backward(one)
    assert np.array_equal(alone[1:], beside[1:])


def without_softmax(shape: tuple[int, ...], of: str) -> np.ndarray:
    """Logits whose first row has none, by its last class or by all."""
    logits, _ = zeros(shape)
    if of == "-inf alone":
        logits[0] = -INF
    else:
        logits[0, -1] = float(of)
    return logits


@pytest.mark.parametrize("shape", LAYOUTS)
@pytest.mark.parametrize("of", ["nan", "inf", "-inf alone"])
@pytest.mark.parametrize("shares", [(0.0, 0.0), (1.0, -1.0)], ids=["none", "cancelling"])
def test_a_row_without_a_softmax_is_nan_whatever_its_probabilities(
    isa_library: Library, shape, of: str, shares
) -> None:
    """Its loss, in every operation, and every gradient; the other rows are what they were."""
    target = np.zeros(shape, np.float32)
    target[:, 0], target[:, 1] = shares
    loss = Loss(isa_library, without_softmax(shape, of), target, reduction="none")
    ones, bound = np.ones(loss.rows, np.float32), tolerance("cpu", "float32")
    expected, gradients = loss.reference(), loss.reference_grad(ones)
    assert np.all(np.isnan(expected.loss[0]))
    assert np.all(np.isnan(gradients.target[0]))
    for value in (loss.forward()[0], loss.statistics()[0]):
        check_close(value, expected.loss, "float32", bound, "loss")
    check_close(loss.backward(ones), gradients.logits, "float32", bound, "gradient")
    check_close(loss.target_grad(ones), gradients.target, "float32", bound, "target's gradient")
    summed = Loss(isa_library, loss.logits, target, reduction="sum")
    assert np.isnan(summed.forward()[0])
    assert np.isnan(summed.value_and_grad()[0])


@pytest.mark.parametrize("shape", LAYOUTS)
@pytest.mark.parametrize("of", ["nan", "inf", "-inf alone"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_row_without_a_softmax_is_nan_whatever_its_class_weighs(
    isa_library: Library, shape, of: str, reduction: str
) -> None:
    """Of the weights' gradients a mean has all nan, other reductions those that the row has a share of."""
    logits, target = without_softmax(shape, of), np.full(rows_of(shape), 2)
    target[0] = 1
    weight = np.ones(shape[1], np.float32)
    weight[1] = 0.0
    loss = Loss(isa_library, logits, target, weight, reduction=reduction)
    ones, bound = np.ones(loss.reduced, np.float32), tolerance("cpu", "float32")
    expected, gradients = loss.reference(), loss.reference_grad(ones)
    assert np.any(np.isnan(expected.loss))
    check_close(loss.forward()[0], expected.loss, "float32", bound, "loss")
    check_close(loss.backward(ones), gradients.logits, "float32", bound, "gradient")
    assert np.isnan(gradients.weight[1])
    assert np.isnan(gradients.weight[2]) == (reduction == "mean")
    check_close(loss.weight_grad(ones), gradients.weight, "float32", bound, "weight's gradient")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_log_probability_that_is_no_number_counts_unless_it_is_excluded(
    isa_library: Library, value: float
) -> None:
    """Beside a weight of 0: -inf adds nothing, as everywhere; nan and +inf are nan, as 0 times them is."""
    log_prob = np.array([[value, -1.0], [-2.0, -3.0]], np.float32)
    target, weight = np.array([0, 1]), np.array([0.0, 2.0], np.float32)
    placed = {"log_prob": log_prob, "target": target, "weight": weight}
    loss, total_weight = empty((2,), "float32"), empty((), "float32")
    given = {**placed, "row_weight": NO_ROW_WEIGHT}
    given["options"] = options(reduction="none", has_weight=True)
    operation = isa_library.operations["NLLForwardRows"]
    inputs = [given[argument["name"]] for argument in operation["inputs"]]
    isa_library.call("NLLForwardRows", inputs, [loss, total_weight])
    expected = reference.nll_loss(log_prob, target, weight, reduction="none")[0]
    np.testing.assert_array_equal(expected, [0.0 if value == -INF else NAN, 6.0])
    np.testing.assert_array_equal(loss, expected)


@pytest.mark.parametrize("shape", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_ignored_rows_are_not_read(isa_library: Library, shape, dtype: str) -> None:
    """nan in their logits reaches neither the loss nor a gradient, which is 0 there."""
    logits, target = zeros(shape)
    logits[1:] = NAN
    target[1:] = -100
    loss = Loss(isa_library, cast(logits, dtype), target)
    one = cast(np.ones(()), dtype)
    value, total_weight, lse = loss.forward()
    bound = tolerance("cpu", dtype)
    check_close(to_float64(value), loss.reference().loss, dtype, bound, "loss")
    assert total_weight == np.prod(shape[2:], initial=1)
    assert np.all(lse[1:] == 0)
    for grad in (loss.backward(one), loss.value_and_grad()[3]):
        grad = to_float64(grad)
        assert np.all(grad[1:] == 0)
        check_close(grad, loss.reference_grad(one).logits, dtype, bound, "gradient")


@pytest.mark.parametrize("shape", [(300, 6), (300, 100), (3, 6, 100)])
def test_every_target_ignored(isa_library: Library, shape) -> None:
    logits, target = np.full(shape, NAN, np.float32), np.full(rows_of(shape), -100)
    loss = Loss(isa_library, logits, target)
    assert np.isnan(loss.forward()[0])
    assert np.all(loss.backward(ONE) == 0)
    assert np.all(loss.value_and_grad()[3] == 0)
    assert Loss(isa_library, logits, target, reduction="sum").forward()[0] == 0


@pytest.mark.parametrize("ignore_index", [255, -(2**31), 2**31, 2, -1, 2**62])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_ignore_index_beyond_the_targets_dtype(
    library: Library, ignore_index: int, dtype: str
) -> None:
    target = np.array([0, 1, 2, 3], dtype)
    info = np.iinfo(dtype)
    if info.min <= ignore_index <= info.max:
        target[1] = ignore_index
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    loss = Loss(library, logits, target, ignore_index=ignore_index)
    bound = tolerance("cpu", "float32")
    check_close(loss.forward()[0], loss.reference().loss, "float32", bound)
    check_close(loss.backward(ONE), loss.reference_grad(ONE).logits, "float32", bound)


@pytest.mark.parametrize("shape", LAYOUTS)
def test_zero_weight_excludes_a_class_of_minus_infinity(isa_library: Library, shape) -> None:
    logits, target = zeros(shape)
    weight = np.ones(shape[1], np.float32)
    logits[:, 3], weight[3] = -INF, 0
    loss = Loss(isa_library, logits, target, weight, label_smoothing=0.2)
    bound = tolerance("cpu", "float32")
    check_close(loss.forward()[0], loss.reference().loss, "float32", bound, "loss")
    expected = loss.reference_grad(ONE)
    check_close(loss.backward(ONE), expected.logits, "float32", bound, "gradient")
    check_close(loss.weight_grad(ONE), expected.weight, "float32", bound, "weight gradient")
    unweighted = Loss(isa_library, logits, target, label_smoothing=0.2)
    assert unweighted.forward()[0] == INF


@pytest.mark.parametrize("shape", LAYOUTS)
def test_zero_probability_excludes_a_class_of_minus_infinity(isa_library: Library, shape) -> None:
    logits, _ = zeros(shape)
    target = np.full(shape, 1 / (shape[1] - 1), np.float32)
    logits[:, 3], target[:, 3] = -INF, 0
    loss = Loss(isa_library, logits, target)
    bound = tolerance("cpu", "float32")
    check_close(loss.forward()[0], loss.reference().loss, "float32", bound, "loss")
    expected = loss.reference_grad(ONE)
    check_close(loss.backward(ONE), expected.logits, "float32", bound, "gradient")
    check_close(loss.target_grad(ONE), expected.target, "float32", bound, "target gradient")


@pytest.mark.parametrize("options_", [{"logit_scale": 0.5}, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize("shape", LAYOUTS)
def test_minus_infinity_through_scale_and_softcap(isa_library: Library, shape, options_) -> None:
    logits, target = zeros(shape)
    logits[:, 2] = -INF
    loss = Loss(isa_library, logits, target, **options_)
    bound = tolerance("cpu", "float32")
    check_close(loss.forward()[0], loss.reference().loss, "float32", bound, "loss")
    for grad in (loss.backward(ONE), loss.value_and_grad()[3]):
        check_close(grad, loss.reference_grad(ONE).logits, "float32", bound, "gradient")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_does_not_overflow_inside(isa_library: Library, dtype: str) -> None:
    """A mean over 70,000 rows and a loss of 4e4 are representable; their sums in 16 bits are not."""
    logits = cast(np.tile([2e4, -2e4], (70000, 1)), dtype)
    loss = Loss(isa_library, logits, np.ones(70000, np.int64))
    value = to_float64(loss.forward()[0])
    check_close(value, loss.reference().loss, dtype, tolerance("cpu", dtype))


def shifted(array: np.ndarray, elements: int) -> np.ndarray:
    """A copy of `array` that starts `elements` past a 64-byte boundary."""
    item = array.dtype.itemsize
    buffer = np.zeros(array.nbytes + 64 + elements * item, np.uint8)
    start = -buffer.ctypes.data % 64 + elements * item
    view = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view.view(type(array))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(37, 61), (37, 101), (3, 7, 61), (140, 17001)])
def test_misaligned_memory_gives_the_same_bits(isa_library: Library, shape, dtype: str) -> None:
    """The last shape's gradient is large enough for streaming stores, whose ends are ragged."""
    random = np.random.default_rng(4)
    logits = cast(random.normal(size=shape), dtype)
    target = random.integers(0, shape[1], rows_of(shape))
    one, placeholder = cast(np.ones(()), dtype), cast(np.zeros(1), dtype)
    results = []
    for elements in (0, 1, 3):
        loss, total, lse = empty((), dtype), empty((), "float64"), empty(target.shape, "float64")
        x, grad = shifted(logits, elements), shifted(empty(shape, dtype), elements)
        inputs = [x, target, placeholder, NO_ROW_WEIGHT, options()]
        isa_library.call("CrossEntropyForward", inputs, [loss, total, lse])
        inputs = [one, placeholder, x, target, placeholder, NO_ROW_WEIGHT, lse, total, options()]
        isa_library.call("CrossEntropyBackward", inputs, [grad])
        results.append((loss.tobytes(), lse.tobytes(), grad.tobytes()))
    assert results[0] == results[1] == results[2]
    assert np.all(np.isfinite(to_float64(grad)))


def test_empty_batches(library: Library) -> None:
    for shape in [(0, 5), (0, 5, 3), (2, 5, 0)]:
        logits, target = np.zeros(shape, np.float32), np.zeros(rows_of(shape), np.int64)
        assert np.isnan(Loss(library, logits, target).forward()[0])
        assert Loss(library, logits, target, reduction="sum").forward()[0] == 0
        assert Loss(library, logits, target, reduction="none").forward()[0].size == 0
        assert Loss(library, logits, target).backward(ONE).shape == shape


@pytest.mark.parametrize("shape", LAYOUTS)
def test_the_predicted_class(isa_library: Library, shape) -> None:
    """Of equal logits the first class; none of a row that is ignored or has no softmax."""
    logits, target = zeros(shape)
    target[:] = 2
    logits[0, [2, shape[1] - 1]] = logits.max() + 1
    logits[1, [1, 3]] = logits.max() + 1
    target[1] = -100
    predicted = Loss(isa_library, logits, target).statistics()[6]
    np.testing.assert_array_equal(
        predicted, Loss(isa_library, logits, target).reference().predicted
    )
    assert np.all(predicted[0] == 2)
    assert np.all(predicted[1] == -1)
    for place in (0, 1, shape[1] - 1):
        for poison in (NAN, -NAN, INF, [-INF]):
            spoilt = logits.copy()
            spoilt[0, slice(None) if poison == [-INF] else place] = poison
            loss = Loss(isa_library, spoilt, np.zeros_like(target), reduction="sum")
            correct, _, predicted = loss.statistics()[4:]
            assert np.all(predicted[0] == -1)
            np.testing.assert_array_equal(predicted, loss.reference().predicted)
            assert correct == loss.reference().num_correct


def test_no_class_beyond_int32_is_predicted(library: Library) -> None:
    """Of no rows, whose logits take no memory."""
    loss = Loss(library, np.zeros((0, 2**31), np.float32), np.zeros(0, np.int64), reduction="sum")
    with pytest.raises(RuntimeError, match=r"at most 2147483647 classes .* got 2147483648"):
        loss.statistics()
    assert loss.forward()[0] == 0


@pytest.mark.parametrize("arriving", [1.0, -1e-300, np.nan, np.inf])
def test_what_arrives_is_refused_for_the_reason_given(
    default_library: Library, arriving: float
) -> None:
    given = [np.array(arriving), text("there is none of it")]
    with pytest.raises(RuntimeError, match=r"^ms_ce: there is none of it$"):
        default_library.call("RefuseDerivative", given, [empty((), "float64")])
