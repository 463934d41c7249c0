"""Docstrings of ms_ce as griffe reads them: arguments that share a line get one each, an example is a section."""

from __future__ import annotations

import re

import griffe

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


class SharedLines(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = _separate(obj.docstring.value)
