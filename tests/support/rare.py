"""Which cases `make test` leaves to the rare tests: about two in three of a test that has many."""

from __future__ import annotations

import zlib

MANY = 20  # cases of one test
FOLDERS = ("integration", "parallel")  # where a case takes a second, not milliseconds
PARTS = 3  # of the rare tests, of which CI runs one for each commit


def part_of(case: str) -> int | None:
    """The part in which a case has its turn, by its name; None for one of `make test`."""
    place, rest = divmod(zlib.crc32(case.encode()), 3)
    return place % PARTS + 1 if rest else None
