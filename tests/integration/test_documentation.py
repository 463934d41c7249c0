"""Whatever the documents show runs: docstrings, README, and the examples of the five references."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
from ms_ce.__main__ import support_table

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("ms_ce.functional", "ms_ce.nn", "ms_ce.backend", "ms_ce.primitives")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(document):
    """Each ```python block runs by itself, `>>>` lines give what they show; ```py marks a fragment."""
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(), re.S)):
        if ">>>" in block:
            example = doctest.DocTestParser().get_doctest(block, {}, document.name, None, 0)
            assert doctest.DocTestRunner().run(example).failed == 0, f"block {number}"
        else:
            exec(compile(block, f"{document.name}, block {number}", "exec"), {})


def test_the_support_table_is_the_generated_one():
    shown = (ROOT / "README.md").read_text().split("<!-- python -m ms_ce table -->\n")[1]
    assert shown.split("\n<!-- end -->")[0] == support_table()


def test_links_lead_somewhere():
    for document in [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_torch_and_brainpy_class_indices():
    """torch.nn.CrossEntropyLoss, first example, with MindSpore's tensors and gradients."""
    loss = ms_ce.CrossEntropyLoss()
    input = Tensor(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
    target = Tensor(np.random.default_rng(0).integers(0, 5, 3))
    output, gradient = ms.value_and_grad(loss)(input, target)
    assert output.shape == ()
    assert gradient.shape == (3, 5)


def test_torch_and_brainpy_probabilities():
    loss = ms_ce.CrossEntropyLoss()
    input = Tensor(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
    target = ms.ops.softmax(Tensor(np.random.default_rng(1).normal(size=(3, 5)), ms.float32), 1)
    output, gradient = ms.value_and_grad(loss)(input, target)
    assert output.shape == ()
    np.testing.assert_allclose(gradient.asnumpy().sum(1), np.zeros(3), atol=1e-6)


def test_mint():
    """mindspore.mint.nn.CrossEntropyLoss, both examples: targets that do not sum to 1 included."""
    inputs = Tensor(np.random.randn(3, 5), ms.float32)
    op = ms_ce.CrossEntropyLoss()
    assert np.isfinite(float(op(inputs, Tensor(np.array([1, 0, 4]), ms.int32))))
    assert np.isfinite(float(op(inputs, Tensor(np.random.randn(3, 5), ms.float32))))


def test_primitive():
    """mindspore.ops.NLLLoss prints -0.52507716 and 1.1503246."""
    logits = Tensor(
        np.array(
            [[0.5488135, 0.71518934], [0.60276335, 0.5448832], [0.4236548, 0.6458941]], np.float32
        )
    )
    labels = Tensor(np.array([0, 0, 0]).astype(np.int32))
    weight = Tensor(np.array([0.3834415, 0.79172504]).astype(np.float32))
    loss, weight = ms_ce.ops.NLLLoss(reduction="mean")(logits, labels, weight)
    np.testing.assert_allclose(float(loss), -0.52507716, rtol=2e-6)
    np.testing.assert_allclose(float(weight), 1.1503246, rtol=2e-6)


def test_mindformers():
    """mindformers.core.CrossEntropyLoss shows the shape (1,)."""
    from ms_ce.parallel import CrossEntropyLoss

    loss = CrossEntropyLoss()
    logits = Tensor(np.array([[3, 5, 6, 9, 12, 33, 42, 12, 32, 72]]), ms.float32)
    labels = Tensor(np.array([1]).astype(np.int32))
    output = loss(logits, labels, Tensor(np.ones(1).astype(np.float32)))
    assert output.shape == (1,)
    np.testing.assert_allclose(output.asnumpy(), [67.0], rtol=1e-6)
