"""One rank's checks of the vocabulary-parallel log-probabilities, in the manner of linear_checks.py."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from linear_checks import to_numpy
from mindspore import Tensor, nn
from spmd_cases import GRAPH, JIT, PYNATIVE
from spmd_programs import CountedCalls, message_of, raised
from token_cases import (
    CHUNK_ROWS,
    FEATURES,
    ROWS,
    TOKEN_PROGRAMS,
    TokenCase,
    draw,
    token_cases,
)

from ms_ce import reference
from ms_ce.parallel import VocabParallelLinearTokenLogProbs, VocabParallelTokenLogProbs
from tests.support.cases import round_to
from tests.support.linear_tolerances import check_linear


class Network(nn.Cell):
    """Both results, each times what arrives at it."""

    def __init__(self, tokens: nn.Cell, entropy: bool):
        super().__init__()
        self.tokens, self.entropy = tokens, entropy

    def construct(self, of_log_prob, of_entropy, *inputs):
        if not self.entropy:
            return (self.tokens(*inputs) * of_log_prob).sum()
        log_prob, entropy = self.tokens(*inputs)
        return (log_prob * of_log_prob).sum() + (entropy * of_entropy).sum()


def whole_logits(data: dict) -> np.ndarray:
    return data["input"] @ data["linear_weight"].T + data["linear_bias"]


def made(case: TokenCase, place) -> nn.Cell:
    options = {"entropy": True, **case.options}
    blocks = {"class_blocks": case.class_blocks, "num_classes": case.num_classes}
    if not case.linear:
        return VocabParallelTokenLogProbs(place.class_group, **blocks, **options)
    return VocabParallelLinearTokenLogProbs(
        place.class_group,
        chunk_bytes=CHUNK_ROWS * max(case.blocks) * 4,
        sequence_parallel=case.sequence_parallel,
        **blocks,
        **options,
    )


def own_inputs(case: TokenCase, place, data: dict, logits: np.ndarray) -> list[Tensor]:
    """This rank's classes; those of padding hold nan."""
    dtype = getattr(ms, case.dtype)
    padding = sum(case.blocks) - case.classes

    def block(values, axis):
        width = [(0, 0)] * values.ndim
        width[axis] = (0, padding)
        whole = np.pad(values, width, constant_values=np.nan)
        return Tensor(np.take(whole, range(*place.classes.indices(whole.shape[axis])), axis))

    target = Tensor(data["target"].reshape(case.lead))
    if not case.linear:
        own = block(logits.reshape(*case.lead, case.classes), -1)
        return [own.astype(dtype), target]
    rows = data["input"].reshape(*case.lead, FEATURES)
    if case.sequence_parallel:
        rows = np.split(rows, case.class_ranks)[place.class_rank]
    own = [Tensor(rows).astype(dtype), block(data["linear_weight"], 0).astype(dtype), target]
    return [*own, block(data["linear_bias"], 0).astype(dtype)] if case.bias else own


def slope_of(case: TokenCase, data: dict, logits: np.ndarray) -> np.ndarray:
    """The gradient of the whole logits."""
    target, upstream = data["target"], -data["of_log_prob"].astype(np.float64)
    of_rows = reference.cross_entropy_grad(
        logits, target, reduction="none", **case.expected, grad_loss=upstream
    ).logits
    return of_rows + reference.entropy_grad(logits, target, data["of_entropy"], **case.expected)


def expected_gradients(case: TokenCase, place, data: dict, slope: np.ndarray) -> list[np.ndarray]:
    """Those of this rank's inputs, 0 in classes of padding."""
    padding = sum(case.blocks) - case.classes
    own = np.pad(slope, ((0, 0), (0, padding)))[:, place.classes]
    if not case.linear:
        return [own.reshape(*case.lead, -1)]
    hidden = (slope @ data["linear_weight"]).reshape(*case.lead, FEATURES)
    if case.sequence_parallel:
        hidden = np.split(hidden, case.class_ranks)[place.class_rank]
    table = (own.T @ data["input"]) * ("frozen" not in case.options)
    return [hidden, table, own.sum(0)][: 3 if case.bias else 2]


def run(case: TokenCase, place_of: Callable) -> None:
    """Raises AssertionError where this rank's results or gradients are not those of the whole."""
    place, data = place_of(case, 0), draw(case)
    for name in ("input", "linear_weight", "linear_bias"):
        data[name] = round_to(data[name], case.dtype).astype(np.float64)
    logits = whole_logits(data)
    if not case.linear:
        logits = round_to(logits, case.dtype).astype(np.float64)
    inputs = own_inputs(case, place, data, logits)
    ms.set_context(mode=ms.GRAPH_MODE if case.mode == GRAPH else ms.PYNATIVE_MODE)
    cell, backend = made(case, place), case.options.get("backend", "cpu")
    wide = "float64" if case.dtype == "float64" else "float32"
    tolerance = case.dtype if case.linear else wide
    # MindSpore's exp makes the entropies, on every backend.
    of_entropy = "composed" if wide == "float32" else backend
    if case.mode == PYNATIVE:  # where it is not one more compilation
        found = cell(*inputs) if case.entropy else (cell(*inputs),)
        values = reference.token_log_probs(logits, data["target"], **case.expected)
        for got, value, kind in zip(found, values, (backend, of_entropy), strict=False):
            assert got.dtype == getattr(ms, wide), got.dtype
            check_linear(to_numpy(got), value.reshape(case.lead), kind, tolerance, "values")
    upstream = [Tensor(data[name].reshape(case.lead)) for name in ("of_log_prob", "of_entropy")]
    positions = (2, 3, 5)[: 2 + case.bias] if case.linear else 2
    function = ms.grad(Network(cell, case.entropy), positions)
    if case.mode == JIT:
        function = ms.jit(function)
    gradients = function(*upstream, *inputs)
    gradients = gradients if case.linear else (gradients,)
    expected = expected_gradients(case, place, data, slope_of(case, data, logits))
    kind = of_entropy if case.entropy else backend
    for got, value in zip(gradients, expected, strict=True):
        assert got.dtype == getattr(ms, case.dtype), got.dtype
        check_linear(to_numpy(got), value, kind, case.dtype, "gradient")


def collectives() -> None:
    """One forward for each chunk's statistics, four numbers a row, and the sum of input's gradient backward."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    classes = 4
    linear = VocabParallelLinearTokenLogProbs(
        entropy=True, chunk_bytes=CHUNK_ROWS * classes * 4, temperature=2.0
    )
    tokens = VocabParallelTokenLogProbs(entropy=True)
    counted = []
    for location in (linear.location, tokens.rows.location):
        location.gather.collective = CountedCalls(location.gather.collective)
        counted.append(location.gather.collective)
    linear.location.reduce = hidden_sum = CountedCalls(linear.location.reduce)
    hidden, table = (Tensor(np.ones((n, FEATURES), np.float32)) for n in (ROWS, classes))
    target = np.full(ROWS, -100, np.int32)
    target[1:6] = 1
    for network, inputs in (
        (Network(linear, True), (hidden, table, Tensor(target))),
        (Network(tokens, True), (hidden, Tensor(target))),
    ):
        upstream = Tensor(np.ones(ROWS, np.float32))
        ms.grad(network, 2)(upstream, upstream, *inputs)
    # On CPU two float32 stand for each number, in a slot for each of two ranks.
    assert [each.count for each in counted] == [2, 1], counted
    assert [each.elements for each in counted] == [2 * CHUNK_ROWS * 2 * 8, ROWS * 2 * 8]
    assert (hidden_sum.count, hidden_sum.elements) == (1, ROWS * FEATURES)


def wrong_arguments() -> None:
    """Each message names the argument, what was expected and what arrived."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    x, y = Tensor(np.ones((4, 3), np.float32)), Tensor([0, 1, 2, 3], ms.int32)
    table, double = Tensor(np.ones((5, 3), np.float32)), Tensor(np.ones((4, 3)))
    tokens, linear = VocabParallelTokenLogProbs, VocabParallelLinearTokenLogProbs
    both = [
        (lambda kind=kind, options=options: kind(**options), expected)
        for kind in (tokens, linear)
        for options, expected in (
            ({"group": "nobody"}, "group 'nobody' cannot be used"),
            ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
            ({"entropy": 1}, "entropy must be True or False, got 1"),
            ({"class_blocks": (5,)}, "class_blocks must have 2 entries"),
            ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
            ({"backend": "gpu"}, "gpu"),
        )
    ]
    for call, expected in (
        *both,
        (lambda: linear(sequence_parallel=1), "sequence_parallel must be True or False, got 1"),
        (lambda: linear(chunk_bytes=0), "chunk_bytes must be at least 1"),
        (lambda: linear(frozen=("x",)), "frozen must hold"),
        (lambda: tokens()(x, x), "target must hold class indices"),
        (lambda: tokens()(x, y[:2]), "target must have shape (4,)"),
        (lambda: tokens()(x, y.expand_dims(1)), "target must have 1 dimensions"),
        (lambda: tokens(num_classes=9)(x, y), "at most the 6 classes"),
        (lambda: tokens(class_blocks=(4, 4))(x, y), "logits of rank"),
        (lambda: linear()(x, table, x), "target must hold class indices"),
        (lambda: linear()(x, table, y[:2]), "target must have shape (4,)"),
        (lambda: linear()(x, table[:, :2], y), "linear_weight must have shape (C_local, 3)"),
        (lambda: linear()(x, table, y, table[0]), "linear_bias must have shape (5,)"),
        (lambda: linear(num_classes=11)(x, table, y), "at most the 10 classes"),
        (lambda: linear()(double, double, y), "got float64"),
    ):
        message = message_of(call)
        assert "TokenLogProbs: " in message, message
        assert expected in message, f"{expected!r} is not in {message!r}"


def label_out_of_range() -> None:
    """Named on every rank."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    x, target = Tensor(np.ones((4, 3), np.float32)), Tensor([0, 1, 8, 3], ms.int32)
    tokens, linear = VocabParallelTokenLogProbs(), VocabParallelLinearTokenLogProbs()
    raised(lambda: tokens(x, target).asnumpy(), "target 8 at position (2,) is outside [0, 6)")
    raised(lambda: linear(x, x, target).asnumpy(), "target 8 at position (2,) is outside [0, 8)")


PROGRAMS = {"collectives": collectives, "wrong arguments": wrong_arguments}
RAISING = {"label out of range": label_out_of_range}


def _named(programs: dict) -> dict[str, Callable[[], None]]:
    return {f"tokens: {name}": check for name, check in programs.items()}


def checks_that_raise(ranks: int) -> dict[str, Callable[[], None]]:
    """Those after which the job can compute nothing more."""
    return _named({name: RAISING[name] for name in TOKEN_PROGRAMS[ranks] if name in RAISING})


def checks(ranks: int, place_of: Callable) -> dict[str, Callable[[], None]]:
    """All others of a job, by the names of `token_cases.token_names`."""
    computed = {case.name: lambda case=case: run(case, place_of) for case in token_cases(ranks)}
    programs = {name: PROGRAMS[name] for name in TOKEN_PROGRAMS[ranks] if name in PROGRAMS}
    return _named({**computed, **programs})
