"""Functions in a network under mixed precision: log-probabilities, weights of rows and distillation."""

from __future__ import annotations

import inspect

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.rewrite.parsers.assign_parser import AssignParser

import ms_ce
from ms_ce import parallel, reference, reference_distillation
from tests.integration.conftest import to_numpy
from tests.support.precision_levels import LEVELS, precision_outside

ROWS, FEATURES, CLASSES = 8, 6, 10
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(ROWS, FEATURES)).astype(np.float32)
TABLE = RANDOM.normal(size=(CLASSES, FEATURES)).astype(np.float32)
TEACHER = RANDOM.normal(size=(CLASSES, FEATURES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES, ROWS).astype(np.int32)
LABELS[3] = -100
UPSTREAM = RANDOM.normal(size=(2, ROWS)).astype(np.float32)
# The first is no number of 16 bits: a row's weight is not rounded.
ROW_WEIGHT = np.array([1.0001, 0.5, 0.0, 1.0, 2.0, -1.0, 0.25, 3.0], np.float32)
LOGITS = HIDDEN.astype(np.float64) @ TABLE.T


class Network(nn.Cell):
    """A layer that mixed precision computes in 16 bits; functions of what it returns follow."""

    def __init__(self, backend):
        super().__init__()
        self.head = nn.Dense(FEATURES, CLASSES, weight_init=Tensor(TABLE), has_bias=False)
        eye = Tensor(np.eye(FEATURES, dtype=np.float32))
        self.body = nn.Dense(FEATURES, FEATURES, weight_init=eye, has_bias=False)
        self.backend, self.row_weight = backend, Tensor(ROW_WEIGHT)
        self.of_log_prob, self.of_entropy = (Tensor(each) for each in UPSTREAM)
        self.teacher_hidden, self.teacher_table = Tensor(HIDDEN), Tensor(TEACHER)


class TokenLogProbs(Network):
    def construct(self, hidden, labels):
        log_prob, entropy = ms_ce.token_log_probs(
            self.head(hidden), labels, entropy=True, backend=self.backend
        )
        return (log_prob * self.of_log_prob).sum() + (entropy * self.of_entropy).sum()


class LinearTokenLogProbs(Network):
    def construct(self, hidden, labels):
        hidden, table = self.body(hidden), self.head.weight
        log_prob, entropy = ms_ce.linear_token_log_probs(
            hidden, table, labels, entropy=True, backend=self.backend
        )
        return (log_prob * self.of_log_prob).sum() + (entropy * self.of_entropy).sum()


class CrossEntropy(Network):
    def construct(self, hidden, labels):
        return ms_ce.cross_entropy(
            self.head(hidden), labels, row_weight=self.row_weight, backend=self.backend
        )


class NllLoss(Network):
    def construct(self, hidden, labels):
        return ms_ce.nll_loss(
            self.head(hidden), labels, row_weight=self.row_weight, backend=self.backend
        )


class Statistics(Network):
    def construct(self, hidden, labels):
        logits, row_weight = self.head(hidden), self.row_weight
        stats = ms_ce.cross_entropy_with_stats(
            logits, labels, z_loss=0.1, row_weight=row_weight, backend=self.backend
        )
        return stats[0] + stats[3]


class LinearCrossEntropy(Network):
    def construct(self, hidden, labels):
        hidden, table, row_weight = self.body(hidden), self.head.weight, self.row_weight
        return ms_ce.linear_cross_entropy(
            hidden, table, labels, row_weight=row_weight, backend=self.backend
        )


class Distillation(Network):
    def construct(self, hidden, labels):
        hidden, table, row_weight = self.body(hidden), self.head.weight, self.row_weight
        teacher, teacher_table = self.teacher_hidden, self.teacher_table
        return ms_ce.linear_distillation_loss(
            hidden, table, teacher, teacher_table, row_weight=row_weight, backend=self.backend
        )


NETWORKS = (
    TokenLogProbs,
    LinearTokenLogProbs,
    CrossEntropy,
    NllLoss,
    Statistics,
    LinearCrossEntropy,
    Distillation,
)


def expected(kind):
    """(value, gradient of the logits) by the reference."""
    if kind in (TokenLogProbs, LinearTokenLogProbs):
        log_prob, entropy = reference.token_log_probs(LOGITS, LABELS)
        of_loss = reference.cross_entropy_grad(
            LOGITS, LABELS, reduction="none", grad_loss=-UPSTREAM[0]
        ).logits
        of_entropy = reference.entropy_grad(LOGITS, LABELS, UPSTREAM[1])
        return (log_prob * UPSTREAM[0] + entropy * UPSTREAM[1]).sum(), of_loss + of_entropy
    given = (LOGITS, LABELS)
    weighted = {"row_weight": ROW_WEIGHT}
    if kind is NllLoss:
        grad = reference.nll_loss_grad(*given, **weighted).logits
        return reference.nll_loss(*given, **weighted)[0], grad
    if kind is Statistics:
        result = reference.cross_entropy(*given, **weighted, z_loss=0.1)
        twice = reference.cross_entropy_grad(*given, **weighted, z_loss=0.2)
        return result.loss + result.z_loss, twice.logits
    if kind is Distillation:
        of_teacher = HIDDEN.astype(np.float64) @ TEACHER.T
        return reference_distillation.distillation(LOGITS, of_teacher, **weighted)
    return (
        reference.cross_entropy(*given, **weighted).loss,
        reference.cross_entropy_grad(*given, **weighted).logits,
    )


@pytest.fixture(params=[ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
def mode(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # O1 writes the network that it makes there
    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize("level", ["O1", "O2", "O3", "to_float"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_values_and_gradients(kind, level, backend, mode):
    """What goes in is rounded as by nn.Dense, sums and the weights of rows are not."""
    net = kind(backend)
    table = net.head.weight
    net = LEVELS[level](net)
    loss, gradients = ms.value_and_grad(net, 0, [table])(Tensor(HIDDEN), Tensor(LABELS))
    wanted, of_logits = expected(kind)
    np.testing.assert_allclose(to_numpy(loss), wanted, rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(to_numpy(gradients[0]), of_logits @ TABLE, rtol=3e-2, atol=1e-2)
    found = to_numpy(gradients[1][0])
    np.testing.assert_allclose(found, of_logits.T @ HIDDEN, rtol=3e-2, atol=1e-2)
    assert gradients[0].dtype == ms.float32
    assert precision_outside() == ms.float32


@pytest.mark.parametrize("module", [ms_ce, parallel], ids=lambda module: module.__name__)
def test_level_o1_leaves_every_public_function_as_it_is(module):
    public = [getattr(module, name) for name in module.__all__]
    functions = [each for each in public if inspect.isfunction(each)]
    assert functions
    assert all(each in AssignParser._function_parse_black_list for each in functions)
