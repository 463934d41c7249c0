"""What of ours a graph of the linear loss has parsed: each function takes a good part of a millisecond to compile."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore._extends.parse.parser import Parser

import ms_ce
from ms_ce import _versions


@pytest.fixture
def parsed(monkeypatch):
    """The names of ms_ce's functions, as they are parsed, but of those that stand in for an old MindSpore's."""
    names, parse = [], Parser.parse

    def noting(self, *arguments, **named):
        module = getattr(self.fn, "__module__", "")
        if module.startswith("ms_ce.") and module != _versions.__name__:
            names.append(self.fn.__name__)
        return parse(self, *arguments, **named)

    monkeypatch.setattr(Parser, "parse", noting)
    return names


RARE = {"_by_places", "_prepared", "_in_float32", "_constants", "data_gradients", "sources"}


def compile_step(target, named, **options):
    random = np.random.default_rng(0)
    hidden = Tensor(random.normal(size=(4, 8)).astype(np.float32))
    loss = ms_ce.LinearCrossEntropyLoss(8, 5, backend="cpu", **options).set_train()

    def step(hidden, target):
        return loss(input=hidden, target=target) if named else loss(hidden, target)

    ms.jit(ms.value_and_grad(step, None, loss.trainable_params()))(hidden, target)


def test_a_plain_graph_holds_nothing_that_is_rarely_asked_for(parsed):
    compile_step(Tensor([0, 1, 2, 3], ms.int32), named=False)
    assert "linear_cross_entropy_on" in parsed
    assert not RARE.intersection(parsed)
    assert len(parsed) <= 17


def test_it_is_parsed_where_it_is_asked_for(parsed):
    probabilities = Tensor(np.full((4, 5), 0.2, np.float32))
    compile_step(probabilities, named=True, frozen=("input",))
    assert set(parsed) >= {"_by_places", "_prepared", "_constants", "data_gradients", "sources"}
