"""The cost model: µs of an operator from what it counts on the host model and what ascend_tables.py says of it.

    vector = Σ repeats·c + conflicts + Σ waits·interval + starts·head + scalar·s      cycles of the slowest core
    memory = max(read / read bandwidth, (read + written) / bandwidth both ways)        the chip's, shared
    time   = max(launch of all blocks + vector, launch until blocks share the memory + memory)

`conflicts` are repeats whose two sources lie in one bank group, a cycle more each; `waits` are those for an earlier
instruction; `starts` those for another pipe; `scalar` accesses of the scalar pipe to the unified buffer. In copies,
blocks that are unaligned or short count as more bytes; a copy of one short block as the time that the sample measures.
Not counted, because no figure is public: SyncAll, a conflict of a read with a write, the instruction cache, what the
scalar pipe does beside accesses to the unified buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ascend_tables as tables


@dataclass(frozen=True)
class Cost:
    """µs and their parts. Bytes are those of the tensors."""

    read: float
    written: float
    repeats: float
    conflicts: float
    waits: float
    scalar: float
    memory: float
    launch: float
    launch_start: float
    past_cache: float
    """Memory time where all reads go past the L2 cache."""

    @property
    def vector(self) -> float:
        return self.repeats + self.conflicts + self.waits + self.scalar

    def total(self, past_cache: bool = False) -> float:
        memory = self.past_cache if past_cache else self.memory
        return max(self.launch + self.vector, self.launch_start + memory)


def vector_cycles(work: dict[str, tuple[float, float]], conflicts: float = 0, starts: float = 0):
    """Cycles of repeats, of conflicts and of waits, for repeats and waits by the API's name of an instruction."""
    known = tables.instructions()
    repeats = sum(known[name].repeat * count for name, (count, _) in work.items())
    waits = sum(known[name].interval * waited for name, (_, waited) in work.items())
    return repeats, conflicts, waits + starts * known["Add"].head


def memory_microseconds(
    chip: tables.Chip, read: float, written: float, *, past_cache: bool = False
) -> float:
    if past_cache:
        return (read + written) / chip.past_cache
    return max(read / chip.read, (read + written) / chip.both)


def extra_bytes(unaligned_blocks: float, small_block_bytes: float) -> float:
    """What blocks that are unaligned or short count beside their bytes."""
    unaligned = (tables.COPY_UNALIGNED / tables.COPY_ALIGNED - 1) * tables.COPY_BLOCK
    small = tables.COPY_SMALL / tables.COPY_ALIGNED - 1
    return unaligned * unaligned_blocks + small * small_block_bytes


def lone_copy_microseconds() -> float:
    """µs of a core for a copy of one short block."""
    copies = tables.COPY_BYTES / tables.COPY_SMALL_BLOCK / 48
    return (tables.COPY_LONE - tables.launch_start(48)) / copies


def cost(counters, chip: tables.Chip, rows: int, sample: int, blocks: int) -> Cost:
    """From the counters of `sample` rows on `blocks` cores to `rows` rows; the slowest core has whole rows."""
    scale = rows / sample
    slowest = math.ceil(rows / blocks) / (sample / blocks) / blocks
    work = {name: (kind.repeats, kind.waited) for name, kind in counters.kinds.items()}
    parts = vector_cycles(work, counters.bank_conflicts, counters.starts)
    scalar = (counters.scalar_reads + counters.scalar_writes) * tables.scalar_access()
    repeats, conflicts, waits, scalar = (p * slowest / chip.clock for p in (*parts, scalar))
    read, written = sum(counters.read.values()), sum(counters.written.values())
    extra = extra_bytes(counters.unaligned_blocks, counters.small_block_bytes)
    share = extra / (read + written)
    moved = (read * scale * (1 + share), written * scale * (1 + share))
    lone = counters.lone_blocks * scale / blocks * lone_copy_microseconds()
    return Cost(
        read * scale,
        written * scale,
        repeats,
        conflicts,
        waits,
        scalar,
        memory_microseconds(chip, *moved) + lone,
        tables.launch_all(blocks),
        tables.launch_start(blocks),
        memory_microseconds(chip, *moved, past_cache=True) + lone,
    )
