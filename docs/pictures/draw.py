"""Draws the pictures of docs/guides/sharding.md: `python docs/pictures/draw.py` writes them beside this file."""

from __future__ import annotations

from pathlib import Path

WIDTH, CELL, GAP, LEFT, TOP = 340, 56, 4, 64, 56
COLOURS = ("#8ecae6", "#ffb703", "#90be6d", "#f4978e")


def _text(x: float, y: float, text: str, size: int = 13, anchor: str = "middle") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="#222">{text}</text>'
    )


def _block(x: float, y: float, width: float, height: float, rank: int, text: str) -> list[str]:
    middle = y + height / 2
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{COLOURS[rank]}"/>',
        _text(x + width / 2, middle - 3, f"rank {rank}"),
        _text(x + width / 2, middle + 14, text, 11),
    ]


def _grid(rows: int, columns: int, text: str) -> list[str]:
    """The matrix of logits in blocks, rank by rank."""
    parts = []
    width = (4 * CELL - GAP * (columns - 1)) / columns
    height = (3 * CELL - GAP * (rows - 1)) / rows
    for row in range(rows):
        for column in range(columns):
            x, y = LEFT + column * (width + GAP), TOP + row * (height + GAP)
            parts += _block(x, y, width, height, row * columns + column, text)
    return parts


AXES = [
    _text(LEFT + 2 * CELL, TOP - 10, "classes (vocabulary)", 12),
    f'<g transform="translate({LEFT - 14} {TOP + 1.5 * CELL}) rotate(-90)">'
    + _text(0, 0, "rows (tokens)", 12)
    + "</g>",
]


def _picture(title: str, parts: list[str], foot: str, axes: list[str] = AXES) -> str:
    height = 270
    body = [_text(WIDTH / 2, 22, title, 15), *axes, *parts, _text(WIDTH / 2, height - 14, foot, 12)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'font-family="sans-serif"><title>{title}</title>'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>' + "".join(body) + "</svg>\n"
    )


def _linear() -> str:
    """Hidden states that all ranks hold, times the blocks of the table."""
    left = 24
    parts = [
        f'<rect x="{left}" y="{TOP}" width="64" height="168" rx="4" fill="#dddddd"/>',
        _text(left + 32, TOP + 82, "hidden"),
        _text(left + 32, TOP + 99, "every rank", 11),
        _text(left + 76, TOP + 90, "×", 18),
    ]
    for rank in range(4):
        parts += _block(left + 88 + rank * 54, TOP + 34, 52, 84, rank, "table")
    parts.append(_text(left + 196, TOP + 146, "= a chunk of logits at a time", 12))
    title = "Each rank a block of the table"
    foot = "crosses: 12 bytes a row →, hidden's gradient ←"
    return _picture(title, parts, foot, axes=[])


PICTURES = {
    "rows": _picture(
        "Data parallel: rows are split",
        _grid(3, 1, "its rows, all classes"),
        "crosses: Σ loss and Σ weight, two numbers",
    ),
    "classes": _picture(
        "Vocabulary parallel: classes are split",
        _grid(1, 4, "columns"),
        "crosses: 12 bytes a row, forward only",
    ),
    "mesh": _picture(
        "A mesh of 2 × 2: both",
        _grid(2, 2, "its rows, its classes"),
        "crosses: 12 bytes a row →, two numbers ↓",
    ),
    "linear": _linear(),
}

if __name__ == "__main__":
    for name, text in PICTURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(text, encoding="utf-8")
