"""Every public function, Cell and the reference offer the options of the table: names, order and defaults."""

from __future__ import annotations

import inspect

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

import ms_ce
import ms_ce.parallel
from ms_ce import reference
from ms_ce._arguments import Default
from ms_ce.ops.cpu import library
from ms_ce.ops.options import OPTIONS, Options, make_options

NAMES = [option.name for option in OPTIONS]
DEFAULTS = {option.name: option.default for option in OPTIONS}
OF_A_CLASS_INDEX = NAMES[
    :2
]  # a negative log likelihood has no softmax that the others could act on
LOGITS, TARGET = np.array([[1.0, 2.0], [0.5, 0.0]], np.float32), np.array([0, 1], np.int32)
TENSORS = {"input": LOGITS, "linear_weight": LOGITS, "target": TARGET, "logits": LOGITS}
TENSORS["log_prob"] = LOGITS
CELLS = {"in_features": 2, "num_classes": 2}

# What has fewer options than the table, and why. Everything else has all.
FEWER = {
    "ms_ce.nll_loss": [
        *OF_A_CLASS_INDEX,
        "label_smoothing",
    ],  # mindspore.ops.nll_loss has a place for it
    "ms_ce.NLLLoss": OF_A_CLASS_INDEX,
    "ms_ce.ops.NLLLoss": OF_A_CLASS_INDEX,
    "ms_ce.parallel.CrossEntropyLoss": [  # reduced as mindformers does; a model caps and scales its logits
        name for name in NAMES if name not in ("reduction", "softcap", "logit_scale")
    ],
    "ms_ce.parallel.VocabParallelLinearDistillationLoss": ["reduction", "softcap", "logit_scale"],
    "ms_ce.parallel.VocabParallelLinearTopKDistillationLoss": [
        "reduction",
        "softcap",
        "logit_scale",
    ],
    "ms_ce.reference.nll_loss": OF_A_CLASS_INDEX,
    "ms_ce.reference.nll_loss_grad": OF_A_CLASS_INDEX,
    "ms_ce.reference.lse_grad": ["softcap", "logit_scale"],
    "ms_ce.reference.cross_entropy_grad": ["z_loss"],  # hands the others on, as those below
    "ms_ce.reference.cross_entropy_hvp": ["z_loss"],
    "ms_ce.reference.linear_cross_entropy": [],
    "ms_ce.reference.linear_cross_entropy_grad": [],
}


def _losses():
    for module in (ms_ce, ms_ce.ops, ms_ce.parallel, reference):
        for name, value in inspect.getmembers(module):
            if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            parts = ("Loss", "cross_entropy", "nll", "lse", "multi_token")
            is_loss = any(part in name for part in parts)
            if is_loss and name != "LossStats":
                yield f"{module.__name__}.{name}", value


LOSSES = dict(_losses())
ASKED = [
    (name, option)
    for name in LOSSES
    if not name.startswith("ms_ce.reference") and "VocabParallel" not in name
    for option in FEWER.get(name, NAMES)
]


def test_every_loss_is_looked_at():
    assert len(LOSSES) == 24
    assert set(FEWER) <= set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_signature(name):
    parameters = inspect.signature(LOSSES[name]).parameters
    given = {option: parameters[option].default for option in parameters if option in DEFAULTS}
    expected = FEWER.get(name, NAMES)
    if name != "ms_ce.ops.NLLLoss":  # mindspore.ops.NLLLoss begins with reduction
        assert list(given) == expected
    assert set(given) == set(expected)
    for option, default in given.items():
        default = default.value if isinstance(default, Default) else default
        assert default == DEFAULTS[option]
        assert type(default) is type(DEFAULTS[option])


def test_the_kernel_has_a_slot_for_each():
    assert set(NAMES) < {slot["name"] for slot in library.description()["options"]}


def test_options_are_made_from_the_table():
    assert Options._fields == tuple(NAMES)
    assert Options() == make_options("op") == make_options("op", *DEFAULTS.values())


@pytest.mark.parametrize(("name", "option"), ASKED)
def test_a_value_arrives_at_its_own_option(name, option):
    """No check lets an object pass, and each names the option that it was asked about."""
    loss = LOSSES[name]
    arguments = TENSORS
    if isinstance(loss, type) and issubclass(loss, nn.Cell):
        arguments = CELLS
    parameters = list(inspect.signature(loss).parameters)
    needed = {key: arguments[key] for key in arguments if key in parameters and key != "logits"}
    needed = {
        key: ms.Tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in needed.items()
    }
    with pytest.raises((TypeError, ValueError), match=rf": {option} must be .*object at"):
        loss(**needed, **{option: object()})


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name in LOSSES
        if "VocabParallel" in name
        for option in FEWER.get(name, NAMES)
    ],
)
def test_a_value_arrives_at_its_own_option_before_ranks_are_asked(name, option):
    with pytest.raises((TypeError, ValueError), match=rf": {option} must be .*object at"):
        LOSSES[name](**{option: object()})
