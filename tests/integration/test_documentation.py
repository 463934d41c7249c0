"""Whatever the documents show runs: docstrings, README, and the examples of the five references."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ms_ce
import ms_ce.parallel
import ms_ce.patch
from ms_ce import reference
from ms_ce.tools.doctor import support_table
from tests.support import docstrings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


PUBLIC = [
    getattr(module, name)
    for module in (ms_ce, ms_ce.ops, ms_ce.parallel, ms_ce.patch)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
]


@pytest.fixture
def mindformers(monkeypatch):
    """mindformers' registry, as far as we call it, where it is not installed (`make test-mindformers` has the real)."""
    losses = {}

    def register_cls(cls, module_type, alias, legacy):
        losses[module_type, alias, legacy] = cls

    def build_loss(configuration):
        return losses["loss", configuration["type"], True]()

    modules = {
        "mindformers": {},
        "mindformers.core": {"build_loss": build_loss},
        "mindformers.tools": {},
        "mindformers.tools.register": {
            "MindFormerModuleType": SimpleNamespace(LOSS="loss"),
            "MindFormerRegister": SimpleNamespace(register_cls=register_cls),
        },
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", sorted(docstrings.HERE))
def test_docstring_examples(name, request):
    if name == docstrings.NEEDS_MINDFORMERS:
        request.getfixturevalue("mindformers")
    docstrings.check(name)


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: f"{item.__module__}.{item.__name__}")
def test_everything_public_has_an_example(item):
    """LossStats is what a function with an example returns."""
    assert f"{item.__module__}.{item.__name__}" in docstrings.EXAMPLES or item is ms_ce.LossStats


# What holds values, and so takes and refuses nothing; ms_ce.patch makes Patch.
HOLDERS = (ms_ce.LossStats, ms_ce.patch.Patch)
TAKES_NOTHING = (ms_ce.available_backends, ms_ce.parallel.register_with_mindformers)


@pytest.mark.parametrize(
    "item",
    [item for item in PUBLIC if item not in HOLDERS],
    ids=lambda item: f"{item.__module__}.{item.__name__}",
)
def test_everything_public_says_what_it_takes_returns_and_refuses(item):
    """In sections of its own, or by the name of the function whose they are."""
    text = inspect.getdoc(item) or ""
    if item not in TAKES_NOTHING:
        assert "Args:" in text or "Arguments" in text
    assert (
        re.search(r"^(Returns|Outputs|Inputs):", text, re.M)
        or item is ms_ce.parallel.ParallelConfig
    )
    assert "Raises:" in text or "errors" in text or item is ms_ce.available_backends


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_python_blocks_run(document, tmp_path):
    """Each ```python block runs by itself, `>>>` lines give what they show; ```py marks a fragment.

    From a file, since MindSpore compiles what has one.
    """
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(), re.S)):
        if ">>>" in block:
            example = doctest.DocTestParser().get_doctest(block, {}, document.name, None, 0)
            assert doctest.DocTestRunner().run(example).failed == 0, f"block {number}"
        else:
            file = tmp_path / f"block_{number}.py"
            file.write_text(block, encoding="utf-8")
            runpy.run_path(str(file))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_fragments_call_what_exists(document):
    """A fragment takes its inputs for granted; its imports, and the arguments that it gives to ms_ce, are real."""
    for block in re.findall(r"```py\n(.*?)```", document.read_text(), re.S):
        names = {item.__name__: item for item in PUBLIC}
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                names |= {alias.name: getattr(module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                keywords = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(names[ast.unparse(node.func)]).bind(*node.args, **keywords)


def test_the_reference_has_every_public_name():
    """Each stands once, under the name it is imported by, or under the module that makes it for `ms_ce.ops`."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    shown = [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
    modules = (ms_ce, ms_ce.ops, ms_ce.parallel, ms_ce.patch)
    members = [(module, name) for module in modules for name in module.__all__]
    public = {f"{one.__name__}.{name}" for one, name in members if callable(getattr(one, name))}
    public = {name.replace("ms_ce.ops.NLLLoss", "ms_ce.primitives.NLLLoss") for name in public}
    assert sorted(shown) == sorted(public)


def test_the_support_table_is_the_generated_one():
    shown = (ROOT / "README.md").read_text().split("<!-- python -m ms_ce table -->\n")[1]
    assert shown.split("\n<!-- end -->")[0] == support_table()


def test_pictures_are_those_that_are_drawn():
    folder = ROOT / "docs" / "pictures"
    drawn = runpy.run_path(str(folder / "draw.py"))["PICTURES"]
    kept = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
    assert kept == drawn


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
    random = np.random.default_rng(0)
    inputs, probabilities = (random.normal(size=(3, 5)).astype(np.float32) for _ in range(2))
    op = ms_ce.CrossEntropyLoss()
    for target in (np.array([1, 0, 4], np.int32), probabilities):
        expected = reference.cross_entropy(inputs, target).loss
        np.testing.assert_allclose(float(op(Tensor(inputs), Tensor(target))), expected, rtol=1e-5)


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
