"""What is drawn: losses of logits, whole and in blocks of classes, and their second derivatives, of log-probabilities,
of hidden states, log-probabilities of tokens, and distillation from a teacher and from what is stored of one.

Each family draws, calls every operation that takes what it drew, and knows the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.bounds import (
    Answer,
    block_answers,
    loss_answers,
    nll_answers,
    to64,
    token_answers,
)
from tests.fuzz.bounds_distillation import distillation_answers
from tests.fuzz.bounds_linear import linear_answers, linear_token_answers
from tests.fuzz.bounds_second import second_answers
from tests.fuzz.bounds_top_k import top_k_answers
from tests.fuzz.calls import Kernel, Made, Session, bits_of
from tests.fuzz.draw import Form, Loss
from tests.fuzz.draw_distillation import (
    DivergenceLoss,
    draw_distillation_form,
    fill_distillation,
)
from tests.fuzz.draw_linear import HiddenLoss, draw_linear_form, fill_linear
from tests.fuzz.draw_logits import (
    BlocksLoss,
    LogitsLoss,
    draw_form,
    fill,
    fill_within,
    in_blocks,
)
from tests.fuzz.draw_top_k import draw_top_k_form, fill_top_k
from tests.kernel.library import cast

_LEFT_OUT = ("Input", "Weight", "Bias")  # forms of an operation that make some gradients alone
_PLAIN = {"label_smoothing": 0.0, "z_loss": 0.0}


class Family(NamedTuple):
    """How one kind of loss is drawn, called and answered."""

    draw: Callable[..., Any]  # of a random generator
    results: Callable[[Kernel, Any], dict[str, Made]]
    answers: Callable[[Any], dict[str, Answer]]
    of_softmax: bool = True  # a common offset of the logits changes nothing
    streams: bool = (
        False  # gradients go past the cache where they are large; `draw` takes `streamed`
    )


def suffix_of(drawn: Loss) -> str:
    """Of an operation that returns each row's loss where the reduction leaves them apart."""
    return "Rows" if drawn.per_row else ""


def losses(kernel: Kernel, drawn: LogitsLoss) -> dict[str, Made]:
    session, suffix = Session(kernel, drawn), suffix_of(drawn)
    forward = session.call("CrossEntropyForward" + suffix)
    session.keep(lse=forward["lse"], total_weight=forward["total_weight"])
    for name in ("Stats" + suffix, "Backward"):
        session.call("CrossEntropy" + name)
    if drawn.form.probabilities:
        session.call("CrossEntropyTargetGrad")
    if drawn.weight is not None:
        session.call("CrossEntropyWeightGrad")
    if not drawn.per_row:
        session.call("CrossEntropyValueAndGrad", own=True)
        if drawn.form.probabilities:
            session.call("CrossEntropyValueAndGrads", own=True)
    return session.finished()


def nll(kernel: Kernel, drawn: LogitsLoss) -> dict[str, Made]:
    session = Session(kernel, drawn)
    session.call("NLLForward" + (suffix_of(drawn)))
    session.call("NLLBackward")
    return session.finished()


def arriving(drawn: Loss) -> dict[str, np.ndarray]:
    """What arrives at -log p and at the entropy of each row, made of the one upstream gradient that is drawn."""
    upstream = to64(drawn.upstream)
    return {"grad_rows": upstream, "grad_entropy": np.asarray(np.cos(3 * upstream))}


def tokens(kernel: Kernel, drawn: LogitsLoss) -> dict[str, Made]:
    session = Session(kernel, drawn)
    forward = session.call("TokenLogProbs")
    saved = {"lse": forward["lse"], "entropy": forward["entropy"]}
    session.call("TokenLogProbsBackward", **saved, **arriving(drawn))
    return session.finished()


def along(drawn: LogitsLoss) -> np.ndarray:
    """A direction that the logits determine: it moves with their rows and classes."""
    with np.errstate(invalid="ignore"):
        return cast(np.sin(7 * to64(drawn.logits)), drawn.form.dtype)


def second(kernel: Kernel, drawn: LogitsLoss) -> dict[str, Made]:
    """The derivatives of Σ direction·grad_logits."""
    session, suffix = Session(kernel, drawn), suffix_of(drawn)
    forward = session.call("CrossEntropyForward" + suffix)
    session.keep(lse=forward["lse"], total_weight=forward["total_weight"], direction=along(drawn))
    made = session.call("CrossEntropyDoubleBackward")
    session.keep(direction_mean=made["direction_mean"])
    if drawn.form.probabilities:
        session.call("CrossEntropyTargetGradAlong")
    if drawn.weight is not None:
        session.call("CrossEntropyWeightGradAlong")
    return session.finished()


def linear(kernel: Kernel, drawn: HiddenLoss) -> dict[str, Made]:
    session, suffix = Session(kernel, drawn), suffix_of(drawn)
    forward = session.call("LinearCrossEntropyForward" + suffix)
    session.keep(lse=forward["lse"], total_weight=forward["total_weight"])
    session.call("LinearCrossEntropyStats" + suffix)
    _with_forms(session, "LinearCrossEntropyBackward")
    if drawn.form.probabilities:
        session.call("LinearCrossEntropyTargetGrad")
    if drawn.weight is not None:
        session.call("LinearCrossEntropyWeightGrad")
    if not drawn.per_row:
        _with_forms(session, "LinearCrossEntropyValueAndGrad", own=True)
    return session.finished()


def linear_tokens(kernel: Kernel, drawn: HiddenLoss) -> dict[str, Made]:
    session = Session(kernel, drawn)
    forward = session.call("LinearTokenLogProbs")
    saved = {"lse": forward["lse"], "entropy": forward["entropy"]}
    _with_forms(session, "LinearTokenLogProbsBackward", **saved, **arriving(drawn))
    return session.finished()


def _with_forms(session: Session, name: str, own: bool = False, **more: np.ndarray) -> None:
    """The operation and those that leave gradients out: what they make has its bits, the rest is 0."""
    whole = session.call(name, own, **more)
    for form in _LEFT_OUT:
        part = session.call(name + form, own, **more)
        for output, array in part.items():
            if array.shape != whole[output].shape:
                assert not np.any(to64(array)), f"{name + form} has a {output} that nobody wanted"
            else:
                same = bits_of(array) == bits_of(whole[output])
                assert same, f"{name + form} has other bits in {output}"
        for output in part:  # compared; of the wrong shape for whatever follows
            del session.found[f"{name + form} {output}"]


def _divergence(kernel: Kernel, drawn: DivergenceLoss, stem: str) -> dict[str, Made]:
    session = Session(kernel, drawn)
    session.call(f"{stem}Forward{suffix_of(drawn)}")
    _with_forms(session, f"{stem}Backward")
    if not drawn.per_row:
        _with_forms(session, f"{stem}ValueAndGrad", own=True)
    return session.finished()


def blocks(kernel: Kernel, drawn: BlocksLoss) -> dict[str, Made]:
    """What devices make that have a block of the classes each, put together as ms_ce.parallel does."""
    sessions = [Session(kernel, block) for block in drawn.blocks()]
    parts = [session.call("CrossEntropyPartial")["partial"] for session in sessions]
    counting, z_loss, upstream = drawn.counting, drawn.options["z_loss"], to64(drawn.upstream)
    with np.errstate(all="ignore"):
        tops = np.stack([part[..., 0] for part in parts])
        top = tops.max(0)
        lse = top + np.log(np.exp(tops - top).sum(0))
        dot, mass = sum(part[..., 1] for part in parts), sum(part[..., 2] for part in parts)
        squares = z_loss * lse**2 if z_loss else 0.0
        loss = np.where(counting, mass * lse - dot + squares, 0.0)
        lse = np.where(counting, lse, 0.0)
        of_lse = 2 * z_loss * lse * upstream
    arrives = {"grad_rows": upstream, "grad_lse": of_lse, "lse": lse, "mass": mass}
    found = {"loss": Made(loss, "rows", "loss"), "lse": Made(lse, "rows", "lse")}
    made: dict[str, list[np.ndarray]] = {"logits": []}
    for session in sessions:
        session.keep(**arrives, total_weight=np.ones(()))
        made["logits"].append(session.call("CrossEntropyPartialBackward")["grad_logits"])
        if drawn.form.probabilities:
            grad = session.call("CrossEntropyPartialTargetGrad")["grad_target"]
            made.setdefault("target", []).append(grad)
        if drawn.weight is not None:
            grad = session.call("CrossEntropyPartialWeightGrad")["grad_weight"]
            made.setdefault("weight", []).append(grad)
    for name, grads in made.items():
        whole = _own_part(drawn, grads) if name == "weight" else _side_by_side(drawn, grads)
        found[f"grad_{name}"] = Made(whole, name, f"grad_{name}")
    for i, (session, part) in enumerate(zip(sessions, parts, strict=True)):
        session.finished()
        found[f"block {i}"] = Made(part, "partial", f"block {i}")
    return found


def _side_by_side(drawn: BlocksLoss, blocks: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate([np.asarray(each) for each in blocks], drawn.form.axis)
    return joined.view(type(blocks[0]))


def _own_part(drawn: BlocksLoss, grads: list[np.ndarray]) -> np.ndarray:
    """Of gradients of all class weights, of which each block has its own and 0 for the others."""
    whole, first = grads[0].copy(), 0
    for grad, end in zip(grads, drawn.ends, strict=True):
        others = np.array(to64(grad))
        others[first:end] = 0.0
        assert not np.any(others), "a block has a gradient of another block's class weights"
        whole[first:end] = grad[first:end]
        first = end
    return whole


def plain(form: Form) -> Any:
    """Without what a negative log-likelihood has not."""
    return form.with_options(**_PLAIN, softcap=0.0, logit_scale=1.0)


def of_tokens(random: np.random.Generator, form: Form) -> Any:
    form = replace(form, weight=None, row_weight=False)
    return form.with_options(**_PLAIN, reduction="none", has_entropy=bool(random.random() < 0.7))


def draw_losses(random: np.random.Generator, streamed: bool = False) -> LogitsLoss:
    return fill(random, draw_form(random, streamed=streamed))


def draw_tokens(random: np.random.Generator, streamed: bool = False) -> LogitsLoss:
    form = draw_form(random, classes_only=True, streamed=streamed)
    return fill(random, of_tokens(random, form))


def draw_linear_tokens(random: np.random.Generator) -> HiddenLoss:
    return fill_linear(random, of_tokens(random, draw_linear_form(random, classes_only=True)))


def draw_second(random: np.random.Generator) -> LogitsLoss:
    """Of logits that a direction can be made of."""
    return fill_within(random, draw_form(random), 1e3)


def draw_blocks(random: np.random.Generator, streamed: bool = False) -> BlocksLoss:
    """Of logits beside which a float64, as which their lse travels, has places left."""
    form = replace(draw_form(random, streamed=streamed), row_weight=False)
    form = form.with_options(reduction="none")
    absent = form.options["logit_scale"] > 0  # or -inf becomes another number
    return in_blocks(random, fill_within(random, form, 1e6, absent))


FAMILIES = {
    "losses": Family(draw_losses, losses, loss_answers, streams=True),
    "nll": Family(
        lambda random: fill(random, plain(draw_form(random, classes_only=True))),
        nll,
        nll_answers,
        of_softmax=False,
    ),
    "tokens": Family(
        draw_tokens,
        tokens,
        lambda drawn: token_answers(drawn, arriving(drawn)),
        streams=True,
    ),
    "second": Family(
        draw_second,
        second,
        lambda drawn: second_answers(drawn, to64(along(drawn))),
        of_softmax=False,
    ),
    "linear": Family(
        lambda random: fill_linear(random, draw_linear_form(random)), linear, linear_answers
    ),
    "blocks": Family(draw_blocks, blocks, block_answers, streams=True),
    "distillation": Family(
        lambda random: fill_distillation(random, draw_distillation_form(random)),
        lambda kernel, drawn: _divergence(kernel, drawn, "LinearDistillation"),
        distillation_answers,
    ),
    "top k": Family(
        lambda random: fill_top_k(random, draw_top_k_form(random)),
        lambda kernel, drawn: _divergence(kernel, drawn, "LinearTopKDistillation"),
        top_k_answers,
    ),
    "linear tokens": Family(
        draw_linear_tokens,
        linear_tokens,
        lambda drawn: linear_token_answers(drawn, arriving(drawn)),
    ),
}
# The losses of logits have the most operations and options.
SHARES = {
    "losses": 0.28,
    "nll": 0.07,
    "tokens": 0.08,
    "second": 0.08,
    "blocks": 0.13,
    "linear": 0.13,
    "linear tokens": 0.06,
    "distillation": 0.08,
    "top k": 0.09,
}
