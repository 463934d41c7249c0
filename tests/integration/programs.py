"""Every public Cell and function as a Cell of tensors only, for the ways to compile, export and reload a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn, ops

import ms_ce
import ms_ce.parallel

ROWS, CLASSES, FEATURES = 6, 5, 4


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    target = random.integers(0, CLASSES, ROWS).astype(np.int32)
    target[1] = -100
    return {
        "logits": random.normal(size=(ROWS, CLASSES)).astype(np.float32),
        "target": target,
        "probabilities": random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32),
        "weight": (random.random(CLASSES) + 0.5).astype(np.float32),
        "hidden": random.normal(size=(ROWS, FEATURES)).astype(np.float32),
        "table": random.normal(size=(CLASSES, FEATURES)).astype(np.float32),
        "teacher": random.normal(size=(ROWS, 3)).astype(np.float32),
        "teacher table": random.normal(size=(CLASSES, 3)).astype(np.float32),
        "mask": np.array([1, 1, 0, 1, 0.5, 1], np.float32),
        "divisor": np.array(2.5, np.float32),
        "top": np.log(np.full((ROWS, 2), 0.3, np.float32)),
        "top indices": np.array([[0, 1], [4, 2], [1, 0], [3, 2], [2, 4], [0, 3]], np.int32),
    }


class Function(nn.Cell):
    """A function with its options."""

    def __init__(self, function: Callable, options: dict):
        super().__init__()
        self.function, self.options = function, options

    def construct(self, *tensors):
        return self.function(*tensors, **self.options)


class _Scalar(nn.Cell):
    def __init__(self, network: nn.Cell):
        super().__init__()
        self.network = network

    def construct(self, *tensors):
        out = self.network(*tensors)
        if isinstance(out, tuple):
            out = out[0]
        return ops.sum(out)


class Gradient(nn.Cell):
    """The gradients of a network's (first) result with respect to each input; 0 for integers."""

    def __init__(self, network: nn.Cell):
        super().__init__()
        self.scalar = _Scalar(network)
        self.gradient = ops.GradOperation(get_all=True)

    def construct(self, *tensors):
        return self.gradient(self.scalar)(*tensors)


class Program(NamedTuple):
    """`make(backend)` is a Cell of `inputs`, which name arrays."""

    make: Callable[[str], nn.Cell]
    inputs: tuple[str, ...]
    differentiable: bool = True

    def tensors(self, seed: int = 0) -> list[Tensor]:
        values = arrays(seed)
        return [Tensor(values[name]) for name in self.inputs]


_CLASSES = ("logits", "target", "weight")
_LINEAR = ("hidden", "table", "target")
_OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "logit_scale": 1.5}


def _function(function, inputs, differentiable=True, **options):
    return Program(
        lambda backend: Function(function, {"backend": backend, **options}), inputs, differentiable
    )


def _with_row_weight(function):
    def weighted(*tensors, **options):
        return function(*tensors[:-1], row_weight=tensors[-1], **options)

    return weighted


def _with_total_weight(function):
    def divided(*tensors, **options):
        return function(*tensors[:-1], total_weight=tensors[-1], **options)

    return divided


def _z_loss(*tensors, **options):
    stats = ms_ce.cross_entropy_with_stats(*tensors, **options)
    return stats[3]


def _linear_layer(backend):
    layer = ms_ce.LinearCrossEntropyLoss(FEATURES, CLASSES, bias=True, backend=backend)
    layer.linear_weight.set_data(Tensor(arrays()["table"]))
    return layer


def _weight():
    return Tensor(arrays()["weight"])


PROGRAMS = {
    "cross_entropy": _function(ms_ce.cross_entropy, _CLASSES, **_OPTIONS, softcap=5.0),
    "cross_entropy none": _function(ms_ce.cross_entropy, _CLASSES, reduction="none"),
    "cross_entropy probabilities": _function(
        ms_ce.cross_entropy, ("logits", "probabilities", "weight"), **_OPTIONS
    ),
    "cross_entropy gradient in forward": _function(
        ms_ce.cross_entropy, ("logits", "target"), gradient_in_forward=True
    ),
    "nll_loss": _function(ms_ce.nll_loss, _CLASSES),
    "cross_entropy_with_stats": _function(ms_ce.cross_entropy_with_stats, _CLASSES, **_OPTIONS),
    "cross_entropy_value_and_grad": _function(
        ms_ce.cross_entropy_value_and_grad, _CLASSES, False, **_OPTIONS
    ),
    "linear_cross_entropy": _function(ms_ce.linear_cross_entropy, _LINEAR, **_OPTIONS),
    "linear_cross_entropy chunks": _function(ms_ce.linear_cross_entropy, _LINEAR, chunk_bytes=40),
    "linear_cross_entropy gradient in forward": _function(
        ms_ce.linear_cross_entropy, _LINEAR, gradient_in_forward=True, chunk_bytes=40
    ),
    "linear_cross_entropy shift": _function(
        ms_ce.linear_cross_entropy, _LINEAR, shift=True, reduction="none"
    ),
    "linear_cross_entropy_with_stats": _function(
        ms_ce.linear_cross_entropy_with_stats, _LINEAR, **_OPTIONS
    ),
    "linear_cross_entropy_with_stats chunks": _function(
        ms_ce.linear_cross_entropy_with_stats, _LINEAR, chunk_bytes=40
    ),
    "cross_entropy row_weight": _function(
        _with_row_weight(ms_ce.cross_entropy), ("logits", "target", "mask")
    ),
    "nll_loss row_weight": _function(_with_row_weight(ms_ce.nll_loss), (*_CLASSES, "mask")),
    "cross_entropy_with_stats row_weight": _function(
        _with_row_weight(ms_ce.cross_entropy_with_stats), (*_CLASSES, "mask"), **_OPTIONS
    ),
    "cross_entropy_with_stats z_loss": _function(
        _with_row_weight(_z_loss), (*_CLASSES, "mask"), **_OPTIONS
    ),
    "cross_entropy_value_and_grad row_weight": _function(
        _with_row_weight(ms_ce.cross_entropy_value_and_grad),
        (*_CLASSES, "mask"),
        False,
        **_OPTIONS,
    ),
    "linear_cross_entropy row_weight chunks": _function(
        _with_row_weight(ms_ce.linear_cross_entropy), (*_LINEAR, "mask"), chunk_bytes=40
    ),
    "cross_entropy total_weight": _function(
        _with_total_weight(ms_ce.cross_entropy), (*_CLASSES, "divisor"), **_OPTIONS
    ),
    "cross_entropy probabilities total_weight": _function(
        _with_total_weight(ms_ce.cross_entropy), ("logits", "probabilities", "weight", "divisor")
    ),
    "nll_loss total_weight": _function(_with_total_weight(ms_ce.nll_loss), (*_CLASSES, "divisor")),
    "linear_cross_entropy total_weight chunks": _function(
        _with_total_weight(ms_ce.linear_cross_entropy), (*_LINEAR, "divisor"), chunk_bytes=40
    ),
    "token_log_probs": _function(
        ms_ce.token_log_probs, ("logits", "target"), entropy=True, temperature=1.5
    ),
    "linear_token_log_probs": _function(
        ms_ce.linear_token_log_probs, _LINEAR, entropy=True, temperature=1.5
    ),
    "linear_token_log_probs chunks": _function(
        ms_ce.linear_token_log_probs, _LINEAR, entropy=True, chunk_bytes=40
    ),
    "linear_distillation_loss": _function(
        _with_row_weight(ms_ce.linear_distillation_loss),
        ("hidden", "table", "teacher", "teacher table", "mask"),
        beta=0.5,
        temperature=1.5,
    ),
    "linear_distillation_loss chunks": _function(
        _with_row_weight(ms_ce.linear_distillation_loss),
        ("hidden", "table", "teacher", "teacher table", "mask"),
        gradient_in_forward=True,
        chunk_bytes=40,
    ),
    "linear_top_k_distillation_loss": _function(
        _with_row_weight(ms_ce.linear_top_k_distillation_loss),
        ("hidden", "table", "top", "top indices", "mask"),
        beta=0.5,
        temperature=1.5,
    ),
    "CrossEntropyLoss": Program(
        lambda backend: ms_ce.CrossEntropyLoss(_weight(), backend=backend, **_OPTIONS),
        ("logits", "target"),
    ),
    "NLLLoss": Program(
        lambda backend: ms_ce.NLLLoss(_weight(), backend=backend), ("logits", "target")
    ),
    "ops.NLLLoss": Program(lambda backend: ms_ce.ops.NLLLoss(backend=backend), _CLASSES),
    "LinearCrossEntropyLoss": Program(_linear_layer, ("hidden", "target")),
    "parallel.CrossEntropyLoss": Program(
        lambda backend: ms_ce.parallel.CrossEntropyLoss(backend=backend, label_smoothing=0.1),
        ("logits", "target", "mask"),
    ),
}


def numpy_of(out) -> list[np.ndarray]:
    return [value.asnumpy() for value in (out if isinstance(out, (tuple, list)) else (out,))]
