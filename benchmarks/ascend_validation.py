"""The cost model on the vendor's own kernels, against the vendor's own measurements of them.

    python benchmarks/ascend_validation.py [--markdown]

Each kernel is written down as its public source has it: instructions, repeats, waits. Vector time: the sample Add, the
sample of bank conflicts, the reduction kernel HcPreInvRms (1,019 profiles), the micro-benchmark TADD (403 rows).
Whole operators: Cast and HcPreInvRms. What calibrates the model (Casts below a megabyte the launch, the sample Add and
the copy sample the bandwidths) is not shown as if it had been predicted.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass

import ascend_tables as tables
from ascend_cost import memory_microseconds, vector_cycles

REDUCTION = "tests/st/ops_accuracy/theo_ops/hc_pre_invrms/hc_pre_invrms.csv"
TADD = (
    "core/backend/engineering_costmodel/op_model/pto/tadd_shape_results.csv",
    "core/backend/engineering_costmodel/op_model/pto/warmup_10_tadd.csv",
)


@dataclass(frozen=True)
class Check:
    """µs or cycles of one kernel, by the model and measured."""

    kernel: str
    unit: str
    model: float
    measured: float

    @property
    def error(self) -> float:
        return self.model / self.measured - 1


def add_sample() -> list[Check]:
    """Every tile is one Add that begins when its copies have arrived."""
    chip = tables.chip("910B1")
    checks = []
    for layout, elements in tables.ADD_TILES.items():
        core = tables.ADD_ELEMENTS / chip.cores
        conflicts = core / 128 if layout == "two sources in one bank group" else 0.0
        cycles = sum(vector_cycles({"Add": (core / 128, 0)}, conflicts, core / elements))
        checks.append(Check(f"Add, {layout}", "µs", cycles / chip.clock, tables.ADD_VECTOR[layout]))
    return checks


def bank_sample() -> list[Check]:
    """1000 additions of 64 repeats to one destination. The block that moves by one a repeat lies in the other source's
    eight bank groups every other time."""
    conflicts = {
        "no conflict": 0,
        "two sources in one bank group": 64,
        "one block a repeat, moving": 32,
        "one block a repeat, apart": 0,
    }
    clock = tables.PROFILED_CLOCK["910B1"]
    return [
        Check(
            f"1000 Adds, {name}",
            "µs",
            1000 * sum(vector_cycles({"Add": (64, 1)}, conflicts[name])) / clock,
            ticks / 50,
        )
        for name, ticks in tables.BANK_TICKS.items()
    ]


def reduction_row(elements: int) -> float:
    """Cycles of a row of HcPreInvRms: cast, square, four reductions of a quarter each behind a barrier, two of their
    results, and five instructions for one number."""
    repeats = elements / 64
    work = {
        "Cast": (repeats, 1),
        "Mul": (repeats, 1),
        "WholeReduceSum": (repeats + 4 + 1, 6),
        "Muls": (1, 1),
        "Adds": (1, 1),
        "Duplicate": (1, 1),
        "Sqrt": (1, 1),
        "Div": (1, 0),
    }
    return sum(vector_cycles(work, 0, 1))


def reduction() -> tuple[list[Check], list[Check]]:
    """Vector time and whole operator, medians of each shape."""
    chip = tables.chip("910B1")
    groups: dict[tuple[str, int], list[dict[str, str]]] = {}
    for row in tables.rows(REDUCTION):
        groups.setdefault((row["Input Shapes"], int(row["Block Dim"])), []).append(row)
    vector, whole = [], []
    for (shape, blocks), profiles in sorted(groups.items()):
        rows, parts, width = map(int, shape.strip('"').split(","))
        busy = math.ceil(rows / blocks) * reduction_row(parts * width) / chip.clock
        memory = memory_microseconds(chip, rows * parts * width * 2, rows * 4)
        name = f"HcPreInvRms {rows}x{parts * width} bfloat16, {len(profiles)} profiles"
        time = max(tables.launch_all(blocks) + busy, tables.launch_start(blocks) + memory)
        vector.append(Check(name, "µs", busy, _median(profiles, "aiv_vec_time(us)")))
        whole.append(Check(name, "µs", time, _median(profiles, "Task Duration(us)")))
    return vector, whole


def tadd() -> list[Check]:
    """One Add of tiles in one bank group, begun on an idle pipe and waited for."""
    checks = []
    for path in TADD:
        for row in tables.rows(path):
            blocks = float(row["vec_block"])
            conflicts = float(row["vec_bank_group_conflict"])
            cycles = sum(vector_cycles({"Add": (blocks, 1)}, conflicts, 1))
            name = f"TADD {row['dtype']} {row['row']}x{row['col']}"
            checks.append(Check(name, "cycles", cycles, float(row["vec_cycles"])))
    return checks


def casts() -> list[Check]:
    chip = tables.chip("910B1")
    return [
        Check(
            f"Cast, {c.bytes / 1e6:.1f} MB in and out",
            "µs",
            max(
                tables.launch_all(c.blocks),
                tables.launch_start(c.blocks) + c.bytes / chip.both,
            ),
            c.microseconds,
        )
        for c in tables.casts()
        if c.bytes >= tables.SMALL_CAST_BYTES
    ]


def _median(profiles: list[dict[str, str]], column: str) -> float:
    return statistics.median(float(p[column]) for p in profiles)


def errors() -> dict[str, float]:
    """Median sizes of the errors: of vector time by kernel, and of whole operators."""
    vector, whole = reduction()
    kinds = {
        "Add sample": add_sample(),
        "bank conflict sample": bank_sample(),
        "HcPreInvRms": vector,
        "TADD": tadd(),
    }
    result = {
        name: statistics.median(abs(c.error) for c in checks) for name, checks in kinds.items()
    }
    result["vector time"] = statistics.median(result.values())
    result["whole operators"] = statistics.median(abs(c.error) for c in [*casts(), *whole])
    return result


def print_report(markdown: bool) -> None:
    vector, whole = reduction()
    tadds = tadd()
    lines = [*add_sample(), *bank_sample(), *vector]
    typical = statistics.median(c.error for c in tadds)
    table = [("vector time", "model", "measured", "error")]
    table += [
        (c.kernel, f"{c.model:.2f} µs", f"{c.measured:.2f} µs", f"{c.error:+.1%}") for c in lines
    ]
    table.append((f"TADD, {len(tadds)} rows, median", "", "", f"{typical:+.1%}"))
    table.append(("whole operators", "", "", ""))
    table += [
        (c.kernel, f"{c.model:.2f} µs", f"{c.measured:.2f} µs", f"{c.error:+.1%}")
        for c in [*casts(), *whole]
    ]
    for i, line in enumerate(table):
        if markdown:
            print("| " + " | ".join(line) + " |" + ("\n|---|---|---|---|" if i == 0 else ""))
        else:
            print(f"{line[0]:48}{line[1]:>14}{line[2]:>14}{line[3]:>9}")
    print("\nmedian size of the error:")
    for name, error in errors().items():
        print(f"- {name}: {error:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="as docs/ascend.md shows it")
    print_report(parser.parse_args().markdown)


if __name__ == "__main__":
    main()
