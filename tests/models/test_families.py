"""The families of ms_ce.patch.causal_lm are those that leave their logits to the loss: read from their source.

Their method computes `logits = self.lm_head(…)` once, and uses `logits` as what the loss function and the result get.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from ms_ce.patch.causal_lm import CLASSES
from tests.models.libraries import python_of

ENVIRONMENTS = Path(os.environ["MS_CE_MODELS"]).resolve()
CHOSEN = os.environ.get("MS_CE_MODELS_ONLY", "mindone mindnlp").split()
SOURCES = {
    "mindone": ("mindone/transformers/models", "construct"),
    "mindnlp": ("transformers/models", "forward"),
}


def _methods(name: str) -> dict[str, ast.FunctionDef]:
    """The method that computes, of each class in the list that the library has."""
    folder, method = SOURCES[name]
    (packages,) = python_of(ENVIRONMENTS, name).parent.parent.glob("lib/python3*/site-packages")
    found = {}
    for path in (packages / folder).glob("*/modeling_*.py"):
        for top in ast.parse(path.read_text()).body:
            if isinstance(top, ast.ClassDef) and top.name in CLASSES:
                (found[top.name],) = (
                    each
                    for each in top.body
                    if isinstance(each, ast.FunctionDef) and each.name == method
                )
    return found


def _allowed(method: ast.FunctionDef) -> set[int]:
    """The uses of `logits` that are an argument of a call that gets them as they are, or an element of a tuple."""
    nodes: list[ast.expr] = []
    for node in ast.walk(method):
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            nodes += [each.value for each in node.keywords if each.arg == "logits"]
            if function == "self.loss_function":
                nodes += node.args
        elif isinstance(node, ast.Tuple):
            nodes += node.elts
    return {id(node) for node in nodes if isinstance(node, ast.Name)}


@pytest.mark.parametrize("name", [name for name in SOURCES if name in CHOSEN])
def test_families(name):
    methods = _methods(name)
    assert methods.keys() == CLASSES
    wrong = []
    for family, method in methods.items():
        names = [n for n in ast.walk(method) if isinstance(n, ast.Name) and n.id == "logits"]
        stores = [n for n in ast.walk(method) if isinstance(n, ast.Assign)
                  and any(isinstance(t, ast.Name) and t.id == "logits" for t in n.targets)]  # fmt: skip
        heads = [
            n for n in ast.walk(method) if isinstance(n, ast.Attribute) and n.attr == "lm_head"
        ]
        allowed = _allowed(method)
        loads = [n for n in names if isinstance(n.ctx, ast.Load)]
        once = len(stores) == 1 == len(heads) and isinstance(stores[0].value, ast.Call)
        if not once or ast.unparse(stores[0].value.func) != "self.lm_head":
            wrong.append((family, "logits are not lm_head's alone"))
        elif any(id(load) not in allowed for load in loads):
            wrong.append((family, "logits are used otherwise"))
        elif "self.loss_function(" not in ast.unparse(method):
            wrong.append((family, "no loss_function"))
    assert not wrong
