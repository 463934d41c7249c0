"""What is drawn: losses of logits and their second derivatives, of log-probabilities, of hidden states, and
log-probabilities of tokens.

Each family draws, calls every operation that takes what it drew, and knows the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.bounds import Answer, loss_answers, nll_answers, to64, token_answers
from tests.fuzz.bounds_linear import linear_answers, linear_token_answers
from tests.fuzz.bounds_second import second_answers
from tests.fuzz.calls import Kernel, Made, Session
from tests.fuzz.draw import Drawn, Form, draw_form, fill
from tests.fuzz.draw_linear import LinearDrawn, LinearForm, draw_linear_form, fill_linear
from tests.kernel.library import cast

_LEFT_OUT = ("Input", "Weight", "Bias")  # forms of an operation that make some gradients alone
_PLAIN = {"label_smoothing": 0.0, "z_loss": 0.0}


class Family(NamedTuple):
    """How one kind of loss is drawn, called and answered."""

    draw: Callable[[np.random.Generator], Any]
    results: Callable[[Kernel, Any], dict[str, Made]]
    answers: Callable[[Any], dict[str, Answer]]
    of_softmax: bool = True  # a common offset of the logits changes nothing


def losses(kernel: Kernel, drawn: Drawn) -> dict[str, Made]:
    session, per_row = Session(kernel, drawn), drawn.options["reduction"] == "none"
    suffix = "Rows" if per_row else ""
    forward = session.call("CrossEntropyForward" + suffix)
    session.keep(lse=forward["lse"], total_weight=forward["total_weight"])
    for name in ("Stats" + suffix, "Backward"):
        session.call("CrossEntropy" + name)
    if drawn.form.probabilities:
        session.call("CrossEntropyTargetGrad")
    if drawn.weight is not None:
        session.call("CrossEntropyWeightGrad")
    if not per_row:
        session.call("CrossEntropyValueAndGrad", own=True)
        if drawn.form.probabilities:
            session.call("CrossEntropyValueAndGrads", own=True)
    return session.finished()


def nll(kernel: Kernel, drawn: Drawn) -> dict[str, Made]:
    session = Session(kernel, drawn)
    session.call("NLLForward" + ("Rows" if drawn.options["reduction"] == "none" else ""))
    session.call("NLLBackward")
    return session.finished()


def arriving(drawn: Drawn | LinearDrawn) -> dict[str, np.ndarray]:
    """What arrives at -log p and at the entropy of each row, made of the one upstream gradient that is drawn."""
    upstream = to64(drawn.upstream)
    return {"grad_rows": upstream, "grad_entropy": np.asarray(np.cos(3 * upstream))}


def tokens(kernel: Kernel, drawn: Drawn) -> dict[str, Made]:
    session = Session(kernel, drawn)
    forward = session.call("TokenLogProbs")
    saved = {"lse": forward["lse"], "entropy": forward["entropy"]}
    session.call("TokenLogProbsBackward", **saved, **arriving(drawn))
    return session.finished()


def along(drawn: Drawn) -> np.ndarray:
    """A direction that the logits determine: it moves with their rows and classes."""
    with np.errstate(invalid="ignore"):
        return cast(np.sin(7 * to64(drawn.logits)), drawn.form.dtype)


def second(kernel: Kernel, drawn: Drawn) -> dict[str, Made]:
    """The derivatives of Σ direction·grad_logits."""
    session = Session(kernel, drawn)
    suffix = "Rows" if drawn.options["reduction"] == "none" else ""
    forward = session.call("CrossEntropyForward" + suffix)
    session.keep(lse=forward["lse"], total_weight=forward["total_weight"], direction=along(drawn))
    made = session.call("CrossEntropyDoubleBackward")
    session.keep(direction_mean=made["direction_mean"])
    if drawn.form.probabilities:
        session.call("CrossEntropyTargetGradAlong")
    if drawn.weight is not None:
        session.call("CrossEntropyWeightGradAlong")
    return session.finished()


def linear(kernel: Kernel, drawn: LinearDrawn) -> dict[str, Made]:
    session, per_row = Session(kernel, drawn), drawn.options["reduction"] == "none"
    suffix = "Rows" if per_row else ""
    forward = session.call("LinearCrossEntropyForward" + suffix)
    session.keep(lse=forward["lse"], total_weight=forward["total_weight"])
    session.call("LinearCrossEntropyStats" + suffix)
    _with_forms(session, "LinearCrossEntropyBackward")
    if drawn.form.probabilities:
        session.call("LinearCrossEntropyTargetGrad")
    if drawn.weight is not None:
        session.call("LinearCrossEntropyWeightGrad")
    if not per_row:
        _with_forms(session, "LinearCrossEntropyValueAndGrad", own=True)
    return session.finished()


def linear_tokens(kernel: Kernel, drawn: LinearDrawn) -> dict[str, Made]:
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
                same = array.tobytes() == whole[output].tobytes()
                assert same, f"{name + form} has other bits in {output}"
        for output in part:  # compared; of the wrong shape for whatever follows
            del session.found[f"{name + form} {output}"]


def plain(form: Form | LinearForm) -> Any:
    """Without what a negative log-likelihood has not."""
    names = ("ignore_index", "reduction")
    kept = {name: form.options[name] for name in names}
    return form._replace(
        options={**form.options, **_PLAIN, "softcap": 0.0, "logit_scale": 1.0, **kept}
    )


def of_tokens(random: np.random.Generator, form: Form | LinearForm) -> Any:
    options = {
        **form.options,
        **_PLAIN,
        "reduction": "none",
        "has_entropy": bool(random.random() < 0.7),
    }
    return form._replace(options=options, weight=None, row_weight=False)


def draw_tokens(random: np.random.Generator) -> Drawn:
    return fill(random, of_tokens(random, draw_form(random, classes_only=True)))


def draw_linear_tokens(random: np.random.Generator) -> LinearDrawn:
    return fill_linear(random, of_tokens(random, draw_linear_form(random, classes_only=True)))


def draw_second(random: np.random.Generator) -> Drawn:
    """Of logits that a direction can be made of."""
    while True:
        drawn = fill(random, draw_form(random))
        if np.all(np.abs(to64(drawn.logits)) < 1e3):
            return drawn


FAMILIES = {
    "losses": Family(lambda random: fill(random, draw_form(random)), losses, loss_answers),
    "nll": Family(
        lambda random: fill(random, plain(draw_form(random, classes_only=True))),
        nll,
        nll_answers,
        of_softmax=False,
    ),
    "tokens": Family(draw_tokens, tokens, lambda drawn: token_answers(drawn, arriving(drawn))),
    "second": Family(
        draw_second,
        second,
        lambda drawn: second_answers(drawn, to64(along(drawn))),
        of_softmax=False,
    ),
    "linear": Family(
        lambda random: fill_linear(random, draw_linear_form(random)), linear, linear_answers
    ),
    "linear tokens": Family(
        draw_linear_tokens,
        linear_tokens,
        lambda drawn: linear_token_answers(drawn, arriving(drawn)),
    ),
}
# The losses of logits have the most operations and options.
SHARES = {
    "losses": 0.4,
    "nll": 0.1,
    "tokens": 0.1,
    "second": 0.1,
    "linear": 0.2,
    "linear tokens": 0.1,
}
