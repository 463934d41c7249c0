"""One-line faults of the kernels and their tiling, and the tests that must notice each of them.

`make test-mutations` applies them one at a time to a copy of custom_aicore/ and runs the named tests against it, and CI an
eighth of them for each commit; test_mutations.py, part of the suite, checks that the list still fits the sources.
"""

# ruff: noqa: E501

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """`old` occurs once in `file` and becomes `new`; `tests` are arguments of pytest in this folder."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def part(mutations: tuple[Mutation, ...], which: str) -> tuple[Mutation, ...]:
    """The mutations of "2/8", the second of eight parts, which take turns in the list."""
    number, parts = map(int, which.split("/"))
    if not 1 <= number <= parts:
        raise ValueError(f"a part must be 1/{parts} to {parts}/{parts}, got {which}")
    return mutations[number - 1 :: parts]


TILING, VECTOR, ROWS = "../op_host/ms_ce_plan.h", "ms_ce_vector.h", "ms_ce_rows.h"
ONLINE, FINISH, TOTALS = "ms_ce_online.h", "ms_ce_finish.h", "ms_ce_totals.h"
TILES, STATISTICS, GRADIENT = "ms_ce_tiles.h", "ms_ce_statistics.h", "ms_ce_gradient.h"
SHORT, FORWARD = "ms_ce_short.h", "ms_ce_forward.cpp"
GRADIENT_ROWS, BOTH = "ms_ce_gradient_rows.h", "ms_ce_value_and_grad.h"


def both_ways(selection: str) -> tuple[str, ...]:
    return ("test_class_targets.py::test_forward_and_backward", "-k", f"float32 and {selection}")


def together(selection: str) -> tuple[str, ...]:
    return ("test_class_targets.py::test_forward_with_gradient", "-k", f"float32 and {selection}")


def stays(selection: str) -> tuple[str, ...]:
    return ("test_class_targets.py::test_rows_that_stay", "-k", f"float32 and {selection}")


def chip(selection: str) -> tuple[str, ...]:
    return (
        "test_chip.py::test_gradient_of_a_bad_target_and_of_nan_is_nan",
        "-k",
        f"bfloat16 and {selection}",
    )


def costs(selection: str) -> tuple[str, ...]:
    return ("test_traffic.py::test_waits_bank_conflicts_and_scalar_accesses", "-k", selection)


def corner(test: str, selection: str = "") -> tuple[str, ...]:
    wanted = f"not float16 and not bfloat16 {selection}".strip()
    return (f"test_corners.py::{test}", "-k", wanted)


MUTATIONS = (
    Mutation(
        "too little reserved",
        TILING,
        "kFixedBytes = 12544;",
        "kFixedBytes = 1024;",
        ("test_tiling.py::test_residency_is_what_the_documents_say",),
    ),
    Mutation(
        "row buffers forgotten",
        TILING,
        "bytes += 8 * 4 + 3 * kBlock;",
        "bytes += 8 * 4;",
        both_ways("4096x1"),
    ),
    Mutation(
        "workspace of half the lanes",
        TILING,
        "t.slices * 4 * kLaneBytes",
        "t.slices * 2 * kLaneBytes",
        both_ways("3x32000 and all"),
    ),
    Mutation(
        "last tile of a row dropped",
        TILING,
        "t.tilesPerRow = static_cast<int32_t>(CeilDiv(cols, t.tileCols));",
        "t.tilesPerRow = static_cast<int32_t>(cols / t.tileCols);",
        together("7x32000"),
    ),
    Mutation(
        "one buffer too few",
        TILES,
        "pipe.InitBuffer(logitsQueue_, tiling.ringTiles,",
        "pipe.InitBuffer(logitsQueue_, tiling.ringTiles - 1,",
        both_ways("7x32000"),
    ),
    Mutation(
        "tail of a row dropped",
        VECTOR,
        "    if (tail) {\n        Reduction::Run(",
        "    if (tail > 1) {\n        Reduction::Run(",
        both_ways("9x1025"),
    ),
    Mutation(
        "every other repeat left out",
        VECTOR,
        "odd < 2; ++odd",
        "odd < 1; ++odd",
        both_ways("9x1025"),
    ),
    Mutation(
        "values of a reduction over each other",
        VECTOR,
        "        room += (values.count + LANES - 1) / LANES * FLOATS_PER_BLOCK;\n",
        "        room += values.count / LANES * FLOATS_PER_BLOCK;\n",
        both_ways("10x4097 or 7x32000"),
    ),
    Mutation(
        "odd part of a half dropped",
        VECTOR,
        "if (repeats % 2) {",
        "if (repeats % 2 == 3) {",
        together("7x32000 and smooth-weight"),
    ),
    Mutation(
        "tail of a tile dropped",
        VECTOR,
        "    if (tail) {\n        const int32_t at = repeats * LANES;",
        "    if (tail > 1) {\n        const int32_t at = repeats * LANES;",
        both_ways("9x1025"),
    ),
    Mutation(
        "more repeats than fit",
        VECTOR,
        "CHUNK_ROWS = 248;",
        "CHUNK_ROWS = 256;",
        both_ways("1025x8"),
    ),
    Mutation(
        "second chunk of rows over the first",
        VECTOR,
        "Operation::Run(dst[at * dstStride], x[at * xStride]",
        "Operation::Run(dst[at * dstStride], x[0]",
        both_ways("1025x8"),
    ),
    Mutation(
        "last rows not broadcast",
        VECTOR,
        "(chunk + 7) / 8, params",
        "chunk / 8 + (chunk < 8), params",
        both_ways("300x63"),
    ),
    Mutation(
        "padding left undefined",
        VECTOR,
        "(perBlock - count % perBlock) % perBlock",
        "0 * perBlock",
        both_ways("1500x7"),
    ),
    Mutation(
        "class C accepted",
        ROWS,
        "problem_.totalClasses - 1), rows",
        "problem_.totalClasses), rows",
        corner("test_bad_target"),
    ),
    Mutation(
        "negative class accepted",
        ROWS,
        "AscendC::Maxs(bound, words, 0, rows);",
        "AscendC::Maxs(bound, words, -9, rows);",
        corner("test_bad_target"),
    ),
    Mutation(
        "high half of a target dropped",
        ROWS,
        "return targets_.template ReinterpretCast<int64_t>().GetValue(r);",
        "return targets_.GetValue(2 * r);",
        corner("test_bad_target", "and int64"),
    ),
    Mutation(
        "first bad row is the last",
        ROWS,
        "errors_->firstBadRow < 0 || row < errors_->firstBadRow",
        "row >= 0",
        corner("test_bad_target"),
    ),
    Mutation(
        "targets used before they arrive",
        ROWS,
        "        Synchronise<HardEvent::MTE2_V>();\n        Classify(rows);",
        "        Classify(rows);",
        both_ways("5x7 or 300x63"),
    ),
    Mutation(
        "logits overwritten while they are read",
        ROWS,
        "tile.GetValue(r * pitch + LocalClass(r)));\n            }\n        }\n        Synchronise<HardEvent::S_V>();",
        "tile.GetValue(r * pitch + LocalClass(r)));\n            }\n        }",
        both_ways("67x1000"),
    ),
    Mutation(
        "columns numbered from 1",
        SHORT,
        "static_cast<float>(count), more);",
        "static_cast<float>(count + 1), more);",
        both_ways("300x63"),
    ),
    Mutation(
        "classes looked for in the first columns only",
        SHORT,
        "RowsReplace(marked, Marks(k)",
        "RowsReplace(marked, Marks(0)",
        both_ways("70x65"),
    ),
    Mutation(
        "a part of short rows not summed",
        SHORT,
        "for (int32_t k = half; k < chunks; ++k) {",
        "for (int32_t k = half + 1; k < chunks; ++k) {",
        both_ways("70x65"),
    ),
    Mutation(
        "high words of targets not compared",
        ROWS,
        "            AscendC::Select(valid, Bits(0), valid, NotANumber(), orScalar, count);\n            words = TargetWords(1",
        "            words = TargetWords(1",
        corner("test_bad_target", "and int64"),
    ),
    Mutation(
        "foreign classes kept",
        ROWS,
        "if (Counts(r) && !Owns(r)) {",
        "if (Counts(r) && r < 0) {",
        ("test_partial.py", "-k", "float32"),
    ),
    Mutation(
        "maximum skipped",
        ONLINE,
        "        RowsMaximum(tileMaximum_, values.at, values.count, 1, BLOCKS_PER_REPEAT);\n",
        "        AscendC::Duplicate(tileMaximum_, 0.0f, values.count);\n",
        corner("test_large_logits"),
    ),
    Mutation(
        "sum not rescaled",
        ONLINE,
        "        AscendC::Mul(sum[at], sum[at], change_, LANES);\n",
        "",
        both_ways("7x32000"),
    ),
    Mutation(
        "starts from -inf",
        VECTOR,
        "LOWEST = -3.4028234e38f;",
        "LOWEST = -__builtin_inff();",
        corner("test_minus_infinity"),
    ),
    Mutation(
        "a slice's mass taken from its dot",
        ONLINE,
        "count[at], count[at], others[3 * LANES]",
        "count[at], count[at], others[2 * LANES]",
        both_ways("3x32000 and smooth"),
    ),
    Mutation(
        "z-loss doubled",
        FINISH,
        "AscendC::Axpy(loss, term_, p.zLoss, rows);",
        "AscendC::Axpy(loss, term_, 2.0f * p.zLoss, rows);",
        both_ways("70x65"),
    ),
    Mutation(
        "ignored rows counted",
        FINISH,
        "        AscendC::Mul(loss, loss, state.valid, rows);\n",
        "",
        both_ways("70x65 and smooth"),
    ),
    Mutation(
        "row values left undefined",
        FINISH,
        "AscendC::Duplicate(maximum_, 0.0f, 6 * padded_);",
        "AscendC::Duplicate(maximum_, 0.0f, padded_);",
        together("9x1025"),
    ),
    Mutation(
        "a row of -inf is subtracted from itself",
        FINISH,
        "        AscendC::Maxs(maximum_, maximum_, LOWEST, rows);\n",
        "",
        ("test_partial.py::test_block_of_minus_infinity",),
    ),
    Mutation(
        "last block dropped from the sum",
        TOTALS,
        "for (int32_t b = 0; b < tiling_.usedCores; ++b) {\n            AscendC::Add",
        "for (int32_t b = 0; b + 1 < tiling_.usedCores; ++b) {\n            AscendC::Add",
        both_ways("1500x7"),
    ),
    Mutation(
        "blocks do not wait for each other",
        TOTALS,
        "        AscendC::SyncAll();\n",
        "",
        both_ways("1500x7"),
    ),
    Mutation(
        "mean not divided",
        TOTALS,
        "if (tiling_.problem.reduction == MS_CE_MEAN) {",
        "if (tiling_.problem.reduction == MS_CE_MEAN + 9) {",
        both_ways("300x63"),
    ),
    Mutation(
        "record sent before it is complete",
        TOTALS,
        "        Synchronise<HardEvent::S_MTE3>();\n        CopyOut(workspace_",
        "        CopyOut(workspace_",
        both_ways("300x63"),
    ),
    Mutation(
        "a tile past the end of its row",
        TILES,
        "tile.cols = static_cast<int32_t>(Min(tiling_.tileCols, end_ - tile.begin));",
        "tile.cols = tiling_.tileCols;",
        both_ways("1x262144"),
    ),
    Mutation(
        "one tile too far ahead",
        STATISTICS,
        "inFlight < tiling_.ringTiles",
        "inFlight <= tiling_.ringTiles",
        both_ways("7x32000"),
    ),
    Mutation(
        "tile never given back",
        STATISTICS,
        "            tiles_.Release(logits);\n",
        "",
        both_ways("7x32000"),
    ),
    Mutation(
        "lanes stored before they are complete",
        STATISTICS,
        "        Synchronise<HardEvent::V_MTE3>();\n        CopyOut(partials_[At(block, 0)]",
        "        CopyOut(partials_[At(block, 0)]",
        both_ways("3x32000"),
    ),
    Mutation(
        "lanes used before they arrive",
        STATISTICS,
        "            Synchronise<HardEvent::MTE2_V>();\n            lanes_.Merge",
        "            lanes_.Merge",
        both_ways("3x32000"),
    ),
    Mutation(
        "gaps left undefined",
        STATISTICS,
        "        short_.FillGaps(tile, state, count);\n",
        "",
        both_ways("300x63"),
    ),
    Mutation(
        "class added instead of subtracted",
        GRADIENT,
        "-amount, mask, 1",
        "amount, mask, 1",
        both_ways("67x1000"),
    ),
    Mutation(
        "wrong lane of the class",
        GRADIENT,
        "1ull << (column - block)",
        "1ull << ((column - block) / 2)",
        both_ways("67x1000"),
    ),
    Mutation(
        "class at a tile's border missed",
        GRADIENT,
        "column >= 0 && column < cols",
        "column > 0 && column < cols",
        both_ways("7x32000"),
    ),
    Mutation(
        "gradient of z-loss halved",
        GRADIENT,
        "2.0f * p.zLoss, rows",
        "p.zLoss, rows",
        both_ways("70x65"),
    ),
    Mutation(
        "gradient tile never given back",
        GRADIENT,
        "        CopyOut(output_[row * cols + tile.begin], out, tile.rows, tile.cols, cols);\n        outputQueue_.FreeTensor(out);",
        "        CopyOut(output_[row * cols + tile.begin], out, tile.rows, tile.cols, cols);",
        both_ways("7x32000"),
    ),
    Mutation(
        "mean of nothing divides by 0",
        GRADIENT_ROWS,
        "total == 0.0f ? 0.0f : common_ / total",
        "common_ / total",
        corner("test_every_row_ignored"),
    ),
    Mutation(
        "last row of a block dropped",
        GRADIENT_ROWS,
        "const int64_t last = (block + 1) * p.rows / tiling_.usedCores;",
        "const int64_t last = (block + 1) * p.rows / tiling_.usedCores - 1;",
        both_ways("300x63"),
    ),
    Mutation(
        "blocks overlap by a row",
        GRADIENT_ROWS,
        "const int64_t first = block * p.rows / tiling_.usedCores;",
        "const int64_t first = block * p.rows / tiling_.usedCores - (block > 0);",
        both_ways("1025x8 or 1500x7"),
    ),
    Mutation(
        "lse used before it arrives",
        GRADIENT_ROWS,
        "        Synchronise<HardEvent::MTE2_V>();\n",
        "",
        both_ways("10x4097"),
    ),
    Mutation(
        "bad targets counted twice",
        BOTH,
        "            errors_ = RowErrors();\n",
        "",
        corner("test_bad_target"),
    ),
    Mutation(
        "total weight not waited for",
        BOTH,
        "            Synchronise<HardEvent::V_S>();\n            const float total",
        "            const float total",
        together("300x63"),
    ),
    Mutation(
        "gradients saturate",
        GRADIENT_ROWS,
        "control = KeepNotANumber();",
        "control = get_ctrl();",
        chip("6x40 and plain and False"),
    ),
    Mutation(
        "gradients made with the loss saturate",
        BOTH,
        "control = KeepNotANumber();",
        "control = get_ctrl();",
        chip("6x3000 and plain and False"),
    ),
    Mutation(
        "control register left changed",
        VECTOR,
        "    set_ctrl(control);\n",
        "    set_ctrl(control | KEEPS_NOT_A_NUMBER);\n",
        chip("6x40 and plain and False"),
    ),
    Mutation(
        "exponentials of what was clamped",
        ONLINE,
        "            AddExponentials(at, work, elements, scratch);\n            AscendC::Maxs(work, work, LOWEST, elements);\n",
        "            AscendC::Maxs(work, work, LOWEST, elements);\n            AddExponentials(at, work, elements, scratch);\n",
        chip("6x3000 and smoothed and True"),
    ),
    Mutation(
        "short rows clamped in place",
        SHORT,
        "RowsMaxs(product, x[k * LANES], LOWEST, Mask(k), rows, BLOCKS_PER_REPEAT, stride_);",
        "RowsMaxs(x[k * LANES], x[k * LANES], LOWEST, Mask(k), rows, stride_, stride_);\n            RowsMaxs(product, x[k * LANES], LOWEST, Mask(k), rows, BLOCKS_PER_REPEAT, stride_);",
        chip("6x300 and smoothed and True"),
    ),
    Mutation(
        "an operand that starts at its buffer's end",
        VECTOR,
        "    if (tail) {\n        tailSource",
        "    if (repeats) {\n        tailSource",
        both_ways("129x64"),
    ),
    Mutation(
        "cores that do not start together",
        FORWARD,
        "KERNEL_TYPE_MIX_AIV_1_0",
        "KERNEL_TYPE_AIV_ONLY",
        both_ways("5x7 or 70x65"),
    ),
    Mutation(
        "weights fetched by every row",
        TILING,
        "    t.keepsWeights = UsesWeights(p, t.dot);\n    int64_t fit",
        "    t.keepsWeights = 0;\n    int64_t fit",
        ("test_traffic.py::test_a_core_reads_the_weights_once",),
    ),
    Mutation(
        "a share of the weights dropped",
        GRADIENT_ROWS,
        "(block + 1) * classes / tiling_.usedCores);",
        "(block + 1) * classes / tiling_.usedCores - 1);",
        both_ways("3x32000 and all"),
    ),
    Mutation(
        "one more instruction that waits",
        ONLINE,
        "        BroadcastRows(otherChange_, newMaximum_, 1);  // and 64 times\n",
        "        BroadcastRows(otherChange_, newMaximum_, 1);\n        Copy64(otherChange_, otherChange_);\n",
        costs("32000 and forward"),
    ),
    Mutation(
        "one more scalar access a row",
        ROWS,
        "        Synchronise<HardEvent::V_S>();\n        ReadBits(row);\n",
        "        Synchronise<HardEvent::V_S>();\n        ReadBits(row);\n        for (int32_t r = 0; r < count; ++r) valid.GetValue(r);\n",
        costs("64 and forward"),
    ),
    Mutation(
        "sources in one bank group",
        GRADIENT,
        "        AscendC::Exp(g, g, tile.cols);\n",
        "        AscendC::Exp(g, g, tile.cols);\n        AscendC::Max(g, g, g[512 * (tile.cols > 1024)], 64);\n",
        costs("32000 and backward"),
    ),
    Mutation(
        "maxima of a row's last tile forgotten",
        BOTH,
        "for (int32_t index = 0; index <= count; ++index) {",
        "for (int32_t index = 0; index < count; ++index) {",
        stays("41x12301 and sum-smooth"),
    ),
    Mutation(
        "the gradient of one row sent to another",
        BOTH,
        "held_ = row + r;",
        "held_ = row;",
        stays("19x20000 and sum-smooth"),
    ),
    Mutation(
        "targets of two groups in one place",
        BOTH,
        "rows_[(row - first_) / tiling_.groupRows % 2]",
        "rows_[(row - first_) / tiling_.groupRows % 1]",
        stays("41x12301 and sum-weight"),
    ),
    Mutation(
        "rows that do not count are fetched",
        BOTH,
        "ahead_ < loaded_ &&\n                   !StateOf(",
        "ahead_ < first_ &&\n                   !StateOf(",
        stays("19x20000 and sum-smooth"),
    ),
    Mutation(
        "one scale for all rows that stay",
        GRADIENT,
        "Floats scale = scaleBlocks_[row * FLOATS_PER_BLOCK];",
        "Floats scale = scaleBlocks_[row * 0];",
        stays("19x20000 and sum-weight"),
    ),
    Mutation(
        "gradient of z-loss halved in a row that stays",
        GRADIENT,
        "2.0f * p.zLoss * upstream, FLOATS_PER_BLOCK",
        "p.zLoss * upstream, FLOATS_PER_BLOCK",
        stays("19x20000 and sum-weight"),
    ),
    Mutation(
        "what a class has less read before it is complete",
        GRADIENT,
        "        BroadcastRows(scaleBlocks_, scale_, rows);\n        Synchronise<HardEvent::V_S>();\n",
        "        BroadcastRows(scaleBlocks_, scale_, rows);\n",
        stays("19x20000 and sum-smooth"),
    ),
    Mutation(
        "smoothing left out of a row that stays",
        GRADIENT,
        "if (smoothAmount_ != 0.0f) {",
        "if (smoothAmount_ > 1.0f) {",
        stays("19x20000 and sum-smooth"),
    ),
    Mutation(
        "pieces of a row not summed",
        VECTOR,
        "first < count; first += 2 * step",
        "first < count; first += 3 * step",
        stays("19x20000 and sum-smooth"),
    ),
    Mutation(
        "a row that stays without room",
        TILING,
        "RoundUp(cols, kLanes) * 4 + RoundUp(CeilDiv(cols, kLanes), kLanes) * 4 + kKeptBytes",
        "RoundUp(cols, kLanes) * 2",
        stays("32001 and sum-smooth"),
    ),
    Mutation(
        "maxima of every other 64 columns",
        SHORT,
        "lanes.sum, lanes.sum, lanes.maximum, both,",
        "lanes.sum, lanes.sum, lanes.sum, both,",
        corner("test_extreme_logits"),
    ),
    Mutation(
        "lanes in the bank groups of their logits",
        ONLINE,
        "Behind(sumBuffer_.Get<float>(), x, BLOCKS_PER_REPEAT);",
        "Behind(sumBuffer_.Get<float>(), x, 0);",
        costs("1000 and forward"),
    ),
    Mutation(
        "lanes of rows that drift through the bank groups",
        "ms_ce_tiling.h",
        "return 8 + (pitch / 8 + 8) % kBankGroups;",
        "return 8 + 0 * pitch;",
        costs("1000 and forward"),
    ),
    Mutation(
        "sources of a sum in one bank group",
        SHORT,
        "half % 2 == 0 && half + 1 < chunks ? 1 : 0",
        "half % 2 == 0 && half + 1 < chunks ? 0 : 0",
        costs("1000 and forward"),
    ),
    Mutation(
        "one place for float32 tiles",
        TILING,
        "p.logitsBytes != 4 && !WritesGradient(p.kind) ? 1 : 2",
        "p.logitsBytes != 0 && !WritesGradient(p.kind) ? 1 : 2",
        both_ways("4096x1-"),
    ),
    Mutation(
        "what the backward reads again kept from the cache",
        TILES,
        "if (WritesGradient(tiling.problem.kind) && tiling.resident) {",
        "if (tiling.resident) {",
        ("test_traffic.py::test_what_is_read_last_leaves_nothing_in_the_cache",),
    ),
    Mutation(
        "what is read twice kept from the cache",
        TILES,
        "if (WritesGradient(tiling.problem.kind) && tiling.resident) {",
        "if (WritesGradient(tiling.problem.kind)) {",
        ("test_traffic.py::test_what_is_read_last_leaves_nothing_in_the_cache", "-k", "128256"),
    ),
)
