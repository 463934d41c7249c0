"""MindSpore's function transforms over the losses, each argument mapped or shared, against loops over the reference."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from ms_ce import reference

BATCH, ROWS, CLASSES, FEATURES = 3, 6, 5, 4
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
_random = np.random.default_rng(0)
LOGITS = _random.normal(size=(BATCH, ROWS, CLASSES)).astype(np.float32)
LABELS = np.array([[0, 1, 2, 3, 4, -100], [4, -100, 2, 2, 0, 1], [1, 1, 3, -100, 2, 0]], np.int32)
PROBABILITIES = _random.dirichlet(np.ones(CLASSES), (BATCH, ROWS)).astype(np.float32)
WEIGHTS = (_random.random((BATCH, CLASSES)) + 0.5).astype(np.float32)
ROW_WEIGHTS = (_random.random((BATCH, ROWS)) + 0.5).astype(np.float32)
HIDDEN = _random.normal(size=(BATCH, ROWS, FEATURES)).astype(np.float32)
TABLES = _random.normal(size=(BATCH, CLASSES, FEATURES)).astype(np.float32)

_CE = (ms_ce.cross_entropy, reference.cross_entropy, reference.cross_entropy_grad)
_NLL = (ms_ce.nll_loss, reference.nll_loss, reference.nll_loss_grad)
FORMS = {
    "plain": (*_CE, LABELS, {}),
    "smoothed": (*_CE, LABELS, {"label_smoothing": 0.1, "z_loss": 0.01}),
    "capped": (*_CE, LABELS, {"softcap": 2.0, "logit_scale": 1.5}),
    "probabilities": (*_CE, PROBABILITIES, {"label_smoothing": 0.1}),
    "nll": (*_NLL, LABELS, {}),
}
# Axes of logits, target, weight. The first is what read past the labels once.
EVERY_MAPPING = (
    (0, None, None),
    (1, None, None),
    (None, 0, None),
    (None, None, 0),
    (1, 0, None),
    (0, None, 0),
    (1, 1, 0),
)
OTHER_MAPPINGS = ((0, None, None), (1, 0, 0))

pytestmark = [
    pytest.mark.parametrize("backend", ("cpu", "composed")),
    pytest.mark.mindspore(
        ">=2.8",
        reason="vmap of Select fails where only some of its arguments are mapped",
        always=False,
        only={"backend": "composed"},
    ),
]


def _given(arrays, axes):
    """The tensors as vmap gets them, and the arguments of each of its calls."""
    tensors = [
        Tensor(array[0] if axis is None else np.ascontiguousarray(np.moveaxis(array, 0, axis)))
        for array, axis in zip(arrays, axes, strict=True)
    ]
    calls = [
        [array[0 if axis is None else call] for array, axis in zip(arrays, axes, strict=True)]
        for call in range(BATCH)
    ]
    return tensors, calls


def _agree(actual, expected):
    np.testing.assert_allclose(actual.asnumpy(), expected, **TOLERANCE)


def _mappings():
    for form in FORMS:
        for axes in EVERY_MAPPING if form == "plain" else OTHER_MAPPINGS:
            yield pytest.param(form, axes, id=f"{form}-{axes}")


@pytest.mark.parametrize(("form", "axes"), list(_mappings()))
def test_vmap_of_value_and_gradient(form, axes, backend):
    loss, value, gradient, targets, options = FORMS[form]
    tensors, calls = _given((LOGITS, targets, WEIGHTS), axes)

    def mean(x, target, weight):
        return loss(x, target, weight, backend=backend, **options)

    losses, grads = ms.vmap(ms.value_and_grad(mean, (0, 2)), axes)(*tensors)
    expected = [gradient(*call, **options) for call in calls]
    _agree(losses, np.stack([value(*call, **options)[0] for call in calls]))
    _agree(grads[0], np.stack([each.logits for each in expected]))
    _agree(grads[1], np.stack([each.weight for each in expected]))


def test_vmap_of_pixels(backend):
    """Logits (N, C, d)."""
    logits = np.stack([LOGITS, LOGITS[::-1]], -1)  # (BATCH, ROWS, CLASSES, 2)
    labels = np.stack([LABELS, LABELS[:, ::-1]], -1)
    tensors, calls = _given((logits, labels, WEIGHTS), (0, None, None))

    def mean(x, target, weight):
        return ms_ce.cross_entropy(x, target, weight, label_smoothing=0.1, backend=backend)

    losses, grads = ms.vmap(ms.value_and_grad(mean), (0, None, None))(*tensors)
    smoothed = {"label_smoothing": 0.1}
    _agree(losses, np.stack([reference.cross_entropy(*call, **smoothed)[0] for call in calls]))
    expected = [reference.cross_entropy_grad(*call, **smoothed).logits for call in calls]
    _agree(grads, np.stack(expected))


@pytest.mark.parametrize("axes", ((0, None, None), (None, 0, None)))
@pytest.mark.parametrize("form", ("plain", "nll"))
def test_vmap_of_rows(form, axes, backend):
    loss, value, _, targets, _ = FORMS[form]
    tensors, calls = _given((LOGITS, targets, WEIGHTS), axes)

    def rows(x, target, weight):
        return loss(x, target, weight, reduction="none", backend=backend)

    actual = ms.vmap(rows, axes)(*tensors)
    _agree(actual, np.stack([value(*call, reduction="none")[0] for call in calls]))


def test_vmap_of_statistics(backend):
    tensors, calls = _given((LOGITS, LABELS, WEIGHTS), (0, None, None))

    def stats(x, target, weight):
        return ms_ce.cross_entropy_with_stats(x, target, weight, z_loss=0.1, backend=backend)[:3]

    actual = ms.vmap(stats, (0, None, None))(*tensors)
    expected = [reference.cross_entropy(*call, z_loss=0.1) for call in calls]
    _agree(actual[0], np.stack([each.loss for each in expected]))
    shared = actual[1].asnumpy()
    np.testing.assert_allclose(shared, np.full(shared.shape, expected[0].total_weight), rtol=1e-5)


def test_vmap_of_cross_entropy_value_and_grad(backend):
    tensors, calls = _given((LOGITS, LABELS), (0, None))

    def both(x, target):
        return ms_ce.cross_entropy_value_and_grad(x, target, backend=backend)

    losses, grads = ms.vmap(both, (0, None))(*tensors)
    _agree(losses, np.stack([reference.cross_entropy(*call).loss for call in calls]))
    _agree(grads, np.stack([reference.cross_entropy_grad(*call).logits for call in calls]))


def _jacobian(gradient, *arguments):
    """The logits' gradient of each row loss."""
    upstreams = np.eye(ROWS)
    return np.stack([gradient(*arguments, reduction="none", grad_loss=e)[0] for e in upstreams])


@pytest.mark.parametrize("form", ("plain", "nll"))
def test_jacobians(form, backend):
    loss, _, gradient, targets, _ = FORMS[form]
    x, target = Tensor(LOGITS[0]), Tensor(targets[0])

    def rows(x, target):
        return loss(x, target, reduction="none", backend=backend)

    def rows_of_logits(x):
        return rows(x, target)

    expected = _jacobian(gradient, LOGITS[0], targets[0])
    _agree(ms.jacrev(rows)(x, target), expected)
    _agree(ms.jacfwd(rows_of_logits)(x), expected)


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_hessian(reduction, backend):
    x, target = LOGITS[0], LABELS[0]
    upstream = 1.0 if reduction == "mean" else np.ones(ROWS)

    def total(x, target):
        return ms_ce.cross_entropy(x, target, reduction=reduction, backend=backend).sum()

    columns = [
        reference.cross_entropy_hvp(e, x, target, reduction=reduction, grad_loss=upstream)
        for e in np.eye(x.size).reshape(-1, *x.shape)
    ]
    actual = ms.jacrev(ms.grad(total))(Tensor(x), Tensor(target))
    _agree(actual, np.stack(columns).reshape(*x.shape, *x.shape))


@pytest.mark.parametrize("form", ("plain", "nll"))
def test_products_with_the_jacobian(form, backend):
    loss, _, gradient, targets, _ = FORMS[form]
    x, target, direction = LOGITS[0], Tensor(targets[0]), LOGITS[1]
    upstream = LOGITS[2, :, 0]

    def rows(x):
        return loss(x, target, reduction="none", backend=backend)

    jacobian = _jacobian(gradient, x, targets[0])
    _agree(ms.jvp(rows, Tensor(x), Tensor(direction))[1], (jacobian * direction).sum(axis=(1, 2)))
    _, pull_back = ms.vjp(rows, Tensor(x))
    _agree(pull_back(Tensor(upstream))[0], np.tensordot(upstream, jacobian, 1))


@pytest.mark.parametrize("axes", ((0, None, None), (1, None, 0), (None, 0, None)))
def test_vmap_of_the_linear_loss(axes, backend):
    tensors, calls = _given((HIDDEN, TABLES, LABELS), axes)

    def mean(hidden, table, target):
        return ms_ce.linear_cross_entropy(hidden, table, target, backend=backend)

    losses, grads = ms.vmap(ms.value_and_grad(mean, (0, 1)), axes)(*tensors)
    expected = [reference.linear_cross_entropy_grad(*call) for call in calls]
    _agree(losses, np.stack([reference.linear_cross_entropy(*call)[0] for call in calls]))
    _agree(grads[0], np.stack([each.input for each in expected]))
    _agree(grads[1], np.stack([each.linear_weight for each in expected]))


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_jacobian_of_the_linear_cell(reduction, backend):
    options = {"reduction": reduction, "backend": backend}
    cell = ms_ce.LinearCrossEntropyLoss(FEATURES, CLASSES, **options).set_train()
    cell.linear_weight.set_data(Tensor(TABLES[0]))

    def loss(hidden, target):
        return cell(hidden, target)

    upstreams = [1.0] if reduction == "mean" else np.eye(ROWS)
    expected = np.stack(
        [
            reference.linear_cross_entropy_grad(
                HIDDEN[0], TABLES[0], LABELS[0], reduction=reduction, grad_loss=upstream
            ).input
            for upstream in upstreams
        ]
    )
    actual = ms.jacrev(loss)(Tensor(HIDDEN[0]), Tensor(LABELS[0]))
    _agree(actual, expected[0] if reduction == "mean" else expected)


def test_vmap_of_the_linear_statistics(backend):
    tensors, calls = _given((HIDDEN, TABLES, LABELS), (0, None, None))

    def stats(hidden, table, target):
        return ms_ce.linear_cross_entropy_with_stats(
            hidden, table, target, z_loss=0.1, backend=backend
        )[:3]

    loss, _, lse = ms.vmap(stats, (0, None, None))(*tensors)
    expected = [reference.linear_cross_entropy(*call, z_loss=0.1) for call in calls]
    _agree(loss, np.stack([each.loss for each in expected]))
    _agree(lse, np.stack([each.lse for each in expected]))


@pytest.mark.parametrize("transform", ("vmap", "vmap of grad", "jacrev"))
def test_chunks_are_right_or_refused(transform, backend):
    def mean(hidden, table, target):
        return ms_ce.linear_cross_entropy(hidden, table, target, chunk_bytes=40, backend=backend)

    tensors, calls = _given((HIDDEN, TABLES, LABELS), (0, None, None))
    if transform == "jacrev":
        tensors, function = [Tensor(HIDDEN[0]), *tensors[1:]], ms.jacrev(mean)
        expected = reference.linear_cross_entropy_grad(*calls[0]).input
    elif transform == "vmap":
        function = ms.vmap(mean, (0, None, None))
        expected = np.stack([reference.linear_cross_entropy(*call).loss for call in calls])
    else:
        function = ms.vmap(ms.grad(mean), (0, None, None))
        expected = np.stack([reference.linear_cross_entropy_grad(*c).input for c in calls])
    if backend == "cpu":
        _agree(function(*tensors), expected)
        return
    with pytest.raises(ValueError, match=r"linear_cross_entropy in several chunks.*chunk_bytes"):
        function(*tensors)


@pytest.mark.parametrize("frozen", ("input", "linear_weight"))
def test_vmap_beside_what_is_frozen(frozen, backend):
    tensors, calls = _given((HIDDEN, TABLES, LABELS), (0, None, None))

    def mean(hidden, table, target):
        return ms_ce.linear_cross_entropy(hidden, table, target, frozen=(frozen,), backend=backend)

    other = 1 if frozen == "input" else 0
    actual = ms.vmap(ms.grad(mean, other), (0, None, None))(*tensors)
    expected = [reference.linear_cross_entropy_grad(*call)[other] for call in calls]
    _agree(actual, np.stack(expected))


_H, _T = Tensor(HIDDEN[0]), Tensor(LABELS[0])
_W, _B = Tensor(TABLES[0]), Tensor(LOGITS[0][0])


def test_a_graph_may_hold_a_derivative_that_it_does_not_use(backend):
    """First-order meta-learning: a step by a gradient that counts as a constant."""

    def loss(hidden):
        return ms_ce.linear_cross_entropy(hidden, _W, _T, _B, backend=backend)

    def outer(hidden):
        return loss(hidden - 0.5 * ms.ops.stop_gradient(ms.grad(loss)(hidden)))

    first = reference.linear_cross_entropy_grad(HIDDEN[0], TABLES[0], LABELS[0], LOGITS[0][0]).input
    moved = HIDDEN[0] - 0.5 * first
    expected = reference.linear_cross_entropy_grad(moved, TABLES[0], LABELS[0], LOGITS[0][0]).input
    _agree(ms.jit(ms.grad(outer))(_H), expected)


@pytest.mark.parametrize("axes", ((0, None), (None, 0), (0, 0)))
def test_vmap_of_log_probabilities(axes, backend):
    tensors, calls = _given((LOGITS, LABELS), axes)

    def both(x, target):
        log_prob, entropy = ms_ce.token_log_probs(x, target, entropy=True, backend=backend)
        return (log_prob + entropy).sum()

    total, grads = ms.vmap(ms.value_and_grad(both), axes)(*tensors)
    expected = [reference.token_log_probs(*call) for call in calls]
    _agree(total, np.stack([log_prob.sum() + entropy.sum() for log_prob, entropy in expected]))
    slopes = [
        reference.entropy_grad(x, target, np.ones(ROWS))
        - reference.cross_entropy_grad(x, target, reduction="sum").logits
        for x, target in calls
    ]
    _agree(grads, np.stack(slopes))


@pytest.mark.parametrize("axes", ((0, None, None), (None, None, 0)))
def test_vmap_of_row_weights(axes, backend):
    tensors, calls = _given((LOGITS, LABELS, ROW_WEIGHTS), axes)

    def mean(x, target, row_weight):
        return ms_ce.cross_entropy(x, target, row_weight=row_weight, backend=backend)

    losses, grads = ms.vmap(ms.value_and_grad(mean), axes)(*tensors)
    named = [dict(zip(("logits", "target", "row_weight"), call, strict=True)) for call in calls]
    _agree(losses, np.stack([reference.cross_entropy(**call).loss for call in named]))
    _agree(grads, np.stack([reference.cross_entropy_grad(**call).logits for call in named]))
