"""ms_ce as griffe reads it: arguments that share a line get one each, an example is a section, defaults are values."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]

# name (type), name (type): text; the types may be missing
_SHARED = re.compile(r"^( +)((?:\w+(?: \([^)]*\))?(?:, | or | and ))+\w+(?: \([^)]*\))?):( .*|)$")
_ARGUMENTS = ("Args:", "Keyword Args:")


def _separate(text: str) -> str:
    lines, within = [], False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            within = line in _ARGUMENTS
            line = "Examples:" if line == "Example:" else line
        found = _SHARED.match(line) if within else None
        if found:
            indent, names, rest = found.groups()
            *others, last = re.split(r", | or | and ", names)
            lines += [f"{indent}{name}: see `{last.partition(' ')[0]}`." for name in others]
            line = f"{indent}{last}:{rest}"
        lines.append(line)
    return "\n".join(lines)


def _defaults() -> dict[str, str]:
    """The names that stand for the defaults of options in signatures, and what they are: rows of the options' table."""
    text = (ROOT / "ops" / "options.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    constants = {
        one.targets[0].id: one.value
        for one in tree.body
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
    }
    found = {"NOT_GIVEN": "None"}
    for row in ast.walk(constants["OPTIONS"]):
        if isinstance(row, ast.Call) and getattr(row.func, "id", "") == "Option":
            name, default = ast.literal_eval(row.args[0]), row.args[1]
            default = constants.get(getattr(default, "id", ""), default)
            found[name.upper()] = ast.unparse(default)
    return found


DEFAULTS = _defaults()


class AsRead(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = _separate(obj.docstring.value)
        if isinstance(obj, griffe.Function):
            for parameter in obj.parameters:
                parameter.default = DEFAULTS.get(str(parameter.default), parameter.default)
