// Cuts a problem into pieces: a pure function, for op_host and the tests. C++11, since CANN compiles op_host so.
#ifndef MS_CE_PLAN_H
#define MS_CE_PLAN_H

#include "../op_kernel/ms_ce_tiling.h"

namespace ms_ce {

constexpr int64_t kShortCols = 1024;   // up to here rows are handled as a matrix
constexpr int64_t kCopyBytes = 16384;  // below this a copy does not reach the bandwidth of global memory
constexpr int64_t kFewRows = 16;       // of a tile of short rows
constexpr int64_t kLookupRowsPerCore = 16;
constexpr int64_t kLookupRows = 1024;   // rows of a group where only one element of each is read
constexpr int64_t kFixedBytes = 12544;  // accumulators, every block's record, lane counts, constants
constexpr int64_t kSmallTileBytes =
    4096;                            // weights or a row stay in the unified buffer where tiles of this size still fit
constexpr int64_t kKeptRows = 8;     // of a group of rows that stay, one at a time
constexpr int64_t kKeptStep = 512;   // their tiles are whole multiples: 64 elements' maxima then fill whole blocks
constexpr int64_t kKeptBytes = 640;  // factor of a row and what it is made of

inline int32_t DotOf(const MsCeProblem& p) {
    if (HasProbabilities(p.kind)) return MS_CE_DOT_PROB;
    if (p.kind == MS_CE_NLL_FORWARD || p.kind == MS_CE_NLL_BACKWARD || p.labelSmoothing == 0.0f) return MS_CE_DOT_NONE;
    return p.hasWeight ? MS_CE_DOT_WEIGHTED : MS_CE_DOT_UNIFORM;
}

// Unified buffer bytes for one element of a tile, with `ring` input tiles and `outputs` gradient tiles. `keeps`: weights
// are not in tiles but stay.
inline int64_t BytesPerElement(const MsCeProblem& p, int32_t dot, int64_t ring, int64_t outputs, bool scratch,
                               bool keeps) {
    int64_t bytes = ring * p.logitsBytes;  // logits as they come
    if (p.logitsBytes != 4) bytes += 4;    // the same in fp32
    if (TakesStatistics(p.kind) && scratch) bytes += ScratchBytes(kLaneBytes, dot) / kLaneBytes - 1;
    if (WritesGradient(p.kind)) bytes += outputs * p.logitsBytes;  // gradient on its way out
    if (UsesWeights(p, dot) && !keeps) bytes += 2 * 4;             // weights
    if (dot == MS_CE_DOT_WEIGHTED) bytes += 4;                     // weight times logit
    if (dot == MS_CE_DOT_PROB) bytes += 2 * p.logitsBytes + 4;     // probabilities, and w·q' in fp32
    return bytes;
}

// Bytes a row needs beside its elements. A row value takes 4 bytes, broadcast to a block it takes 32.
inline int64_t BytesPerRow(const MsCeProblem& p, int32_t dot, bool laneSums, bool lookups) {
    int64_t bytes = 65;                // two sets of targets and four values of each, words to compare, bits
    if (lookups) bytes += 2 * kBlock;  // class logits as they are fetched
    if (TakesStatistics(p.kind)) bytes += 6 * 4 + kBlock + 6 * 4;  // row statistics and results on their way out
    if (WritesGradient(p.kind)) bytes += 8 * 4 + 3 * kBlock;       // coefficients
    // A row by its class, 64 columns at most, the class in a block, and bits of all columns.
    if (!lookups && UsesOneHot(p))
        bytes += Min(RoundUp(p.cols, kBlock / p.logitsBytes), kLanes) * 4 + kBlock + CeilDiv(p.cols, kLanes) * 8;
    const int64_t pitch = RoundUp(p.cols, kBlock / p.logitsBytes);
    if (TakesStatistics(p.kind) && laneSums) bytes += 2 * (lookups ? kLaneBytes : LaneBlocks(pitch) * kBlock);
    int64_t lanes = 0;
    if (TakesStatistics(p.kind) && dot != MS_CE_DOT_NONE) lanes += 3;
    if (WritesGradient(p.kind) && dot == MS_CE_DOT_WEIGHTED) lanes += 1;
    return bytes + lanes * kLaneBytes;
}

// Bytes of the weights that stay.
inline int64_t KeptBytes(const MsCeTiling& t) {
    return t.keepsWeights ? RoundUp(t.sliceCols, kLanes) * static_cast<int64_t>(sizeof(float)) : 0;
}

// What is reserved beside tiles and rows. Values of rows are kept for 64 rows at least: one set of them, or two where
// the next rows are loaded while these are at work. Short rows have numbers of their columns beside that, and room to
// place their lanes in bank groups.
inline int64_t FixedBytes(const MsCeTiling& t, bool isShort) {
    if (isShort) return kFixedBytes + 2560 + 2 * kBankGroups * kBlock;
    const bool twoSets = t.path == MS_CE_SPLIT || t.problem.kind == MS_CE_FORWARD_GRAD;
    return kFixedBytes + (twoSets ? 3776 : 1152);
}

// Short rows in one tile, with `outputs` gradient tiles.
inline int64_t ShortRowsOf(const MsCeTiling& t, int64_t pitch, int64_t outputs) {
    const MsCeProblem& p = t.problem;
    const int64_t perRow = pitch * BytesPerElement(p, t.dot, t.ringTiles, outputs, false, true) +
                           BytesPerRow(p, t.dot, p.cols > kLanes, false);
    return Min((p.ubBytes - FixedBytes(t, true) - KeptBytes(t)) / perRow, kMaxCopyRows) / 8 * 8;
}

// Rows as a matrix; false where fewer than 8 fit.
inline bool TileShort(MsCeTiling& t, int64_t rowsPerCore) {
    const MsCeProblem& p = t.problem;
    const int64_t pitch = RoundUp(p.cols, kBlock / p.logitsBytes);
    t.keepsWeights = UsesWeights(p, t.dot);
    // The forward operators need a tile no longer once it has been cast.
    t.ringTiles = p.logitsBytes != 4 && !WritesGradient(p.kind) ? 1 : 2;
    // A second gradient tile is worth less than twice the rows in one, between whose steps the vector pipe waits.
    t.outputTiles = ShortRowsOf(t, pitch, 2) < kFewRows && ShortRowsOf(t, pitch, 1) >= kFewRows ? 1 : 2;
    const int64_t fit = ShortRowsOf(t, pitch, t.outputTiles);
    if (p.cols > kShortCols || fit < 8) return false;
    t.path = MS_CE_SHORT;
    t.tileRows = static_cast<int32_t>(RoundUp(CeilDiv(rowsPerCore, CeilDiv(rowsPerCore, fit)), 8));
    t.groupRows = t.tileRows;
    t.tileCols = static_cast<int32_t>(p.cols);
    t.tilePitch = static_cast<int32_t>(pitch);
    t.tilesPerRow = 1;
    t.resident = 1;
    return true;
}

// Elements of the largest tile that leaves room for `group` rows' values.
inline int64_t LargestTile(const MsCeTiling& t, int64_t group, int64_t ring, int64_t outputs) {
    const MsCeProblem& p = t.problem;
    const int64_t space =
        p.ubBytes - FixedBytes(t, false) - KeptBytes(t) - RoundUp(group, 8) * BytesPerRow(p, t.dot, true, true);
    return Max(0, space) / BytesPerElement(p, t.dot, ring, outputs, true, t.keepsWeights != 0) / kLanes * kLanes;
}

// A row of several tiles may stay in the unified buffer as a ring of smaller tiles; one gradient tile instead of two makes
// room for more logits. Returns the tile's elements, 0 where the row does not fit.
inline int64_t RingTile(MsCeTiling& t, int64_t cols) {
    for (int64_t outputs = 2; outputs >= 1; --outputs) {
        for (int64_t ring = 3; ring <= kMaxRing; ++ring) {
            const int64_t fit = LargestTile(t, 1, ring, outputs);
            if (fit * ring < cols) continue;
            t.ringTiles = static_cast<int32_t>(ring);
            t.outputTiles = static_cast<int32_t>(outputs);
            return fit;
        }
    }
    return 0;
}

// A row of several tiles may stay in the unified buffer in fp32, with a value for every 64 elements, beside two tiles
// on their way in and two on their way out. Returns a tile's elements, 0 where there is no room. Smoothing with
// weights, which takes the row twice, is left to the other forms.
inline int64_t KeptTile(const MsCeTiling& t, int64_t cols) {
    const MsCeProblem& p = t.problem;
    if (t.dot == MS_CE_DOT_WEIGHTED) return 0;
    const int64_t row = RoundUp(cols, kLanes) * 4 + RoundUp(CeilDiv(cols, kLanes), kLanes) * 4 + kKeptBytes;
    const int64_t space = p.ubBytes - FixedBytes(t, false) - row - kKeptRows * BytesPerRow(p, t.dot, true, true);
    const int64_t copy = p.logitsBytes != 4 ? 4 : 0;  // the row is it
    const int64_t bytes = BytesPerElement(p, t.dot, 2, 2, true, true) - copy;
    const int64_t fit = Min(Max(0, space) / bytes, kCopyBytes / p.logitsBytes) / kKeptStep * kKeptStep;
    return fit * p.logitsBytes < kSmallTileBytes ? 0 : fit;
}

inline void TileLong(MsCeTiling& t, int64_t cols, int64_t rowsPerCore) {
    const MsCeProblem& p = t.problem;
    const int64_t group = t.path == MS_CE_SPLIT ? 1 : (t.dot == MS_CE_DOT_NONE ? 32 : 16);
    const bool together = p.kind == MS_CE_FORWARD_GRAD;
    t.ringTiles = 2;
    t.outputTiles = 2;
    t.resident = 1;
    t.keepsWeights = UsesWeights(p, t.dot);
    int64_t fit = LargestTile(t, group, 2, 2);
    if (t.keepsWeights && fit < Min(cols, kSmallTileBytes / p.logitsBytes)) {
        t.keepsWeights = 0;
        fit = LargestTile(t, group, 2, 2);
    }
    int64_t rows = group;
    if (together && cols > fit) {
        fit = KeptTile(t, cols);
        t.keepsRow = fit > 0 ? 1 : 0;
        if (!t.keepsRow) fit = RingTile(t, cols);
        t.resident = fit > 0 ? 1 : 0;
        if (!t.resident) fit = LargestTile(t, 1, 2, 2);
        rows = 1;
    }
    t.tilesPerRow = static_cast<int32_t>(CeilDiv(cols, fit));
    const int64_t step = t.keepsRow ? kKeptStep : kLanes;
    t.tileCols = static_cast<int32_t>(t.tilesPerRow == 1 ? cols : RoundUp(CeilDiv(cols, t.tilesPerRow), step));
    t.tilesPerRow = static_cast<int32_t>(CeilDiv(cols, t.tileCols));
    t.tilePitch = static_cast<int32_t>(RoundUp(t.tileCols, kBlock / p.logitsBytes));
    t.tileRows = static_cast<int32_t>(t.tilesPerRow == 1 ? Max(1, Min(Min(rows, rowsPerCore), fit / t.tilePitch)) : 1);
    t.groupRows = static_cast<int32_t>(t.keepsRow ? kKeptRows : together ? t.tileRows : group);
}

// One element per row is read: rows are spread over the cores, a group of them at a time.
inline void TileLookup(MsCeTiling& t, int64_t cores) {
    const MsCeProblem& p = t.problem;
    t.usedCores = static_cast<int32_t>(Max(1, Min(cores, CeilDiv(p.rows, kLookupRowsPerCore))));
    t.path = MS_CE_LONG;
    t.groupRows = static_cast<int32_t>(kLookupRows);
    t.tileCols = static_cast<int32_t>(p.cols);
    t.tilePitch = static_cast<int32_t>(RoundUp(p.cols, kBlock / p.logitsBytes));
    t.tileRows = 1;
    t.tilesPerRow = 1;
    t.ringTiles = 2;
    t.outputTiles = 2;
    t.resident = 1;
    t.workspaceBytes = kReductions * kMaxCores * kRecordBytes;
}

inline MsCeTiling ComputeTiling(const MsCeProblem& problem) {
    MsCeTiling t{};
    t.problem = problem;
    t.dot = DotOf(problem);
    const int64_t cores = Max(1, Min(problem.cores, kMaxCores));
    const int64_t bytes = problem.rows * problem.cols * problem.logitsBytes;
    // A core gets at least one full copy's worth of logits, so that small problems do not pay for idle cores.
    const int64_t useful = Max(1, Min(cores, CeilDiv(bytes, kCopyBytes)));
    t.slices = 1;
    t.sliceCols = static_cast<int32_t>(problem.cols);
    if (problem.kind == MS_CE_NLL_FORWARD) {
        TileLookup(t, cores);
        return t;
    }
    t.usedCores = static_cast<int32_t>(Max(1, Min(useful, problem.rows)));
    t.path = MS_CE_LONG;
    const int64_t slices = problem.rows > 0 ? useful / problem.rows : 1;
    if (problem.kind != MS_CE_FORWARD_GRAD && slices > 1 && problem.cols > kShortCols) {
        t.path = MS_CE_SPLIT;
        t.sliceCols = static_cast<int32_t>(RoundUp(CeilDiv(problem.cols, slices), kLanes));
        t.slices = static_cast<int32_t>(CeilDiv(problem.cols, t.sliceCols));
        t.usedCores = static_cast<int32_t>(problem.rows * t.slices);
    }
    const int64_t rowsPerCore = Max(1, CeilDiv(problem.rows, t.usedCores));
    if (t.path == MS_CE_SPLIT || !TileShort(t, rowsPerCore)) {
        TileLong(t, t.sliceCols, rowsPerCore);
    }
    const bool holdsAll = t.keepsWeights && t.path != MS_CE_SPLIT && problem.totalClasses == problem.cols;
    t.sharesMass = problem.kind == MS_CE_BACKWARD && t.dot == MS_CE_DOT_WEIGHTED && !holdsAll;
    const int64_t lanes = t.path == MS_CE_SPLIT ? problem.rows * t.slices * 4 * kLaneBytes : 0;
    t.workspaceBytes = kReductions * kMaxCores * kRecordBytes + lanes;
    return t;
}

}  // namespace ms_ce

#endif
