"""README's feature table: every cell has its source in docs/comparison.md, and what MindSpore does here is run."""

from __future__ import annotations

import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint, nn, ops

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _table() -> dict[str, dict[str, str]]:
    """By column, then row."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- features -->\n(.*?)\n<!-- end features -->", text, re.S)
    assert shown is not None
    head, _, *lines = shown[1].splitlines()
    rows = [_cells(line) for line in lines]
    return {
        column: {row[0]: row[place] for row in rows}
        for place, column in enumerate(_cells(head))
        if column
    }


TABLE = _table()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize("column", sorted(TABLE))
def test_every_cell_has_its_source_once(column):
    lines = [line for line in SECTIONS[column].splitlines() if line.startswith("|")][2:]
    named = []
    for line in lines:
        rows, source = _cells(line)
        assert source
        for row in sorted(TABLE[column], key=len, reverse=True):
            if re.search(rf"(?:^|, ){re.escape(row)}(?:,|$)", rows):
                named.append(row)
    assert sorted(named) == sorted(TABLE[column])


def test_cells_are_of_the_legend():
    assert {cell for rows in TABLE.values() for cell in rows.values()} == {"✓", "–", "?", "○"}
    assert [row for row, cell in TABLE["ms_ce"].items() if cell != "✓"] == ["Ascend"]


def test_tests_that_are_named_exist():
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {name}(" in text if name else text


LOGITS = Tensor(np.random.default_rng(0).normal(size=(4, 5)), ms.float32)
LABELS = Tensor([0, 1, 2, 3], ms.int32)
IMAGES = ops.zeros((2, 3, 4, 4)), ops.zeros((2, 4, 4), ms.int32)
OF_NN = {
    "CPU": lambda: nn.CrossEntropyLoss()(LOGITS, LABELS),
    "probabilities": lambda: nn.CrossEntropyLoss()(LOGITS, ops.softmax(LOGITS, 1)),
    "class weights": lambda: nn.CrossEntropyLoss(ops.ones(5))(LOGITS, LABELS),
    "ignore_index": lambda: nn.CrossEntropyLoss(ignore_index=1)(LOGITS, LABELS),
    "label smoothing": lambda: nn.CrossEntropyLoss(label_smoothing=0.1)(LOGITS, LABELS),
    "more axes than (N, C)": lambda: nn.CrossEntropyLoss()(*IMAGES),
    "float64": lambda: nn.CrossEntropyLoss()(LOGITS.astype(ms.float64), LABELS),
    # Σ log p in float16, which overflows
    "16 bits kept in float32 until the end": lambda: nn.CrossEntropyLoss()(
        ops.zeros((3000, 11), ms.float16), ops.zeros(3000, ms.int32)
    ),
}


@pytest.mark.parametrize("row", sorted(OF_NN))
def test_mindspore_nn(row):
    try:
        finite = bool(np.isfinite(OF_NN[row]().astype(ms.float32).asnumpy()))
    except (TypeError, ValueError, RuntimeError):
        finite = False
    assert finite == (TABLE["mindspore.nn"][row] == "✓")


def test_mindspore_nn_has_no_second_derivative():
    assert TABLE["mindspore.nn"]["second derivatives"] == "–"
    loss = nn.CrossEntropyLoss()

    def gradient(logits):
        return ms.grad(lambda inner: loss(inner, LABELS))(logits).sum()

    with pytest.raises(RuntimeError):
        ms.grad(gradient)(LOGITS).asnumpy()


@pytest.mark.mindspore(">=2.8", reason="the table says what MindSpore 2.10 does")
def test_mint_has_no_kernel_on_cpu():
    assert TABLE["mint"]["CPU"] == "–"
    with pytest.raises(RuntimeError, match="LogSoftmaxExt unregistered"):
        mint.nn.CrossEntropyLoss()(LOGITS, LABELS).asnumpy()
    ms.common.api._pynative_executor.clear_res()  # MindSpore 2.9 raises it at the next operator again
