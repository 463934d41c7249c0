"""Whatever a kernel calls carries __aicore__: without it a function is the host's, which no other compiler notices.

The sources are parsed by clang, and the calls of every kernel followed through all templates that it instantiates.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from clang import cindex
from clang.cindex import CursorKind

from tests.ascend.host_model import PROJECT

ANNOTATION = "aicore"
FUNCTIONS = (
    CursorKind.FUNCTION_DECL,
    CursorKind.CXX_METHOD,
    CursorKind.CONSTRUCTOR,
    CursorKind.FUNCTION_TEMPLATE,
    CursorKind.CONVERSION_FUNCTION,
)
# Compiled in place of kernels.cpp: the kernels, with __aicore__ as a mark that clang keeps.
UNIT = """
#include "types.h"
#undef __aicore__
#define __aicore__ __attribute__((annotate("{annotation}")))
#include "kernel_operator.h"
#define DTYPE_LOGITS {dtype}
#define DTYPE_LOG_PROB {dtype}
{includes}
"""


def parse(project: Path, dtype: str) -> cindex.TranslationUnit:
    kernels = sorted((project / "op_kernel").glob("*.cpp"))
    includes = "\n".join(f'#include "{path}"' for path in kernels)
    unit = project / "unit.cpp"
    text = UNIT.format(annotation=ANNOTATION, dtype=dtype, includes=includes)
    arguments = [
        "-std=c++17",
        f"-I{project / 'host_model'}",
        f"-I{project / 'op_kernel'}",
        *builtin_headers(),
    ]
    parsed = cindex.Index.create().parse(
        str(unit), arguments, [(str(unit), text)], options=cindex.TranslationUnit.PARSE_INCOMPLETE
    )
    errors = [d.spelling for d in parsed.diagnostics if d.severity >= cindex.Diagnostic.Error]
    assert not errors, errors[:5]
    return parsed


def builtin_headers() -> list[str]:
    """The wheel of libclang has no headers of its own; the compiler's serve."""
    where = subprocess.run(
        ["g++", "-print-file-name=include"], capture_output=True, text=True, check=True
    )
    return ["-isystem", where.stdout.strip()]


def own(cursor, project: Path) -> bool:
    file = cursor.location.file
    return file is not None and (project / "op_kernel") in Path(file.name).parents


def is_marked(cursor) -> bool:
    return any(
        c.kind == CursorKind.ANNOTATE_ATTR and c.spelling == ANNOTATION
        for c in cursor.get_children()
    )


def called(cursor):
    """Functions of op_kernel that the body of a cursor names. A name stands for every function of that name, since
    many wait for a template's types."""
    for node in cursor.walk_preorder():
        if node.kind not in (
            CursorKind.CALL_EXPR,
            CursorKind.DECL_REF_EXPR,
            CursorKind.MEMBER_REF_EXPR,
            CursorKind.OVERLOADED_DECL_REF,
        ):
            continue
        target = node.referenced
        if target is None:
            yield from by_name(node.spelling)
        elif target.kind in (CursorKind.OVERLOADED_DECL_REF, *FUNCTIONS):
            # An instance of a template stands for what it was made from; what the compiler adds has no name here.
            yield from by_name(target.spelling)
        if node.kind == CursorKind.CALL_EXPR and not node.spelling:
            yield from (f for token in node.get_tokens() for f in by_name(token.spelling))


_names: dict[str, list] = {}


def by_name(name: str):
    return _names.get(name, [])


def walk(project: Path, dtype: str) -> tuple[set[str], set[str]]:
    """Names of the functions that the kernels reach, and of those among them without __aicore__."""
    unit = parse(project, dtype)
    _names.clear()
    bodies = {}
    ours = [top for top in unit.cursor.get_children() if own(top, project)]
    for cursor in (c for top in ours for c in top.walk_preorder()):
        if cursor.kind in FUNCTIONS:
            _names.setdefault(cursor.spelling, []).append(cursor)
            if cursor.is_definition():
                bodies[cursor.get_usr()] = cursor
    kernels = {path.stem for path in (project / "op_kernel").glob("*.cpp")}
    waiting = [c for name in kernels for c in by_name(name)]
    assert len(waiting) == len(kernels)
    reached, unmarked = {}, {}
    while waiting:
        cursor = waiting.pop()
        if cursor.get_usr() in reached:
            continue
        reached[cursor.get_usr()] = cursor
        definition = bodies.get(cursor.get_usr(), cursor)
        if not is_marked(definition):
            unmarked[cursor.get_usr()] = cursor
        waiting.extend(called(definition))
    return ({c.spelling for c in reached.values()}, {c.spelling for c in unmarked.values()})


def test_all_that_kernels_call_is_theirs():
    """One dtype of logits stands for all: the bodies of templates are walked as they are written."""
    reached, unmarked = walk(PROJECT, "half")
    assert not unmarked
    # Helpers of the tiling, an operation of a template, a call that only a template's types resolve.
    assert {"RoundUp", "HasProbabilities", "Run", "SubtractClasses", "Add"} <= reached
    assert len(reached) > 100


FAULTS = {
    "RoundUp": ("ms_ce_tiling.h", "#define MS_CE_BOTH_SIDES __aicore__ inline"),
    "NotANumber": ("ms_ce_vector.h", "__aicore__ inline float NotANumber"),
    "NotANumberWord": ("ms_ce_gradient.h", "__aicore__ inline int32_t NotANumberWord"),
}


def test_a_function_of_the_host_is_noticed(tmp_path):
    project = tmp_path / "custom_aicore"
    shutil.copytree(PROJECT, project)
    for file, old in FAULTS.values():
        path = project / "op_kernel" / file
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, old.replace("__aicore__ ", "")))
    assert set(FAULTS) <= walk(project, "half")[1]
