"""check_toolchain.py itself: it says what is missing, sees errors of ours among those of the headers, and reads a log.

The run needs checkouts of CANN's public sources: `make check-ascend`. Its last result stands in docs/ascend.md.
"""

from __future__ import annotations

import re

import pytest

from tests.ascend.check_toolchain import HOLDS, STEPS, checkouts, ours_among, where_it_ended
from tests.ascend.host_model import PROJECT


@pytest.mark.parametrize("given", [None, "there"])
def test_what_is_missing_is_named(given, tmp_path, capsys):
    """`there`: a checkout of asc-devkit alone."""
    if given:
        (tmp_path / given).mkdir()
    with pytest.raises(SystemExit) as left:
        checkouts(str(tmp_path / given) if given else None)
    assert left.value.code == 2
    printed = capsys.readouterr().out
    assert ("ASC_DEVKIT is not set" in printed) == (given is None)
    assert all(name in printed for name in list(HOLDS)[1:])


def test_checkouts_are_found_beside_each_other(tmp_path):
    for name in HOLDS:
        (tmp_path / name).mkdir()
    assert checkouts(str(tmp_path / "asc-devkit")) == {name: tmp_path / name for name in HOLDS}


HEADERS = """\
/x/include/kernel_tensor.h: In function ‘void f()’:
/x/include/kernel_tensor.h:3:1: error: of the header's own
/x/impl/vec.h: In instantiation of ‘void Exp(const T&)’:
/w/op_kernel/ms_ce_online.h:80:21:   required from ‘void Add()’
/x/impl/vec.h:9:9: error: of what a kernel asks for
/x/impl/vec.h:10:9: error: the next, which is the header's again
/w/op_kernel/ms_ce_tiles.h:5:5: error: in a kernel
"""


def test_errors_of_ours_are_told_from_the_headers_own():
    assert [line.split(": ")[-1] for line in ours_among(HEADERS)] == [
        "of what a kernel asks for",
        "in a kernel",
    ]


def test_a_log_says_how_far_the_build_came():
    marks = [re.sub(r"\\", "", mark) for _, mark in STEPS]
    log = "\n".join([*marks, "/usr/bin/ld: cannot find -lnnopbase: No such file or directory"])
    reached, errors = where_it_ended(log)
    assert "nnopbase of an installed CANN" in reached
    assert not errors
    broken = "\n".join([*marks[:1], f"{PROJECT}/op_host/ms_ce_host.h:3:1: error: constexpr"])
    assert where_it_ended(broken)[1] == [f"{PROJECT}/op_host/ms_ce_host.h:3:1: error: constexpr"]
    assert where_it_ended("CMake Error: nothing of ours")[1]
