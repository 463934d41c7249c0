// How a problem is cut into pieces: one plain struct and one pure function, included by op_host, by the kernels and by the
// tests. Needs <cstdint> only.
#ifndef MS_CE_TILING_H
#define MS_CE_TILING_H

#include <cstdint>

enum MsCeKind : int32_t {
    MS_CE_FORWARD = 0,
    MS_CE_BACKWARD = 1,
    MS_CE_PROB_FORWARD = 2,
    MS_CE_PROB_BACKWARD = 3,
    MS_CE_NLL_FORWARD = 4,
    MS_CE_NLL_BACKWARD = 5,
    MS_CE_PARTIAL = 6,
    MS_CE_FORWARD_GRAD = 7,
};

enum MsCeReduction : int32_t { MS_CE_NONE = 0, MS_CE_MEAN = 1, MS_CE_SUM = 2 };

// What is summed beside exp(x): nothing, x (label smoothing), w·x (smoothing with weights) or w·q'·x (probabilities).
enum MsCeDot : int32_t { MS_CE_DOT_NONE = 0, MS_CE_DOT_UNIFORM = 1, MS_CE_DOT_WEIGHTED = 2, MS_CE_DOT_PROB = 3 };

// SHORT: rows are batched and handled as a matrix. LONG: a row takes one or more tiles, several rows share a tile where
// they fit. SPLIT: fewer rows than cores, so every row is cut into slices and the slices' statistics are combined.
enum MsCePath : int32_t { MS_CE_SHORT = 0, MS_CE_LONG = 1, MS_CE_SPLIT = 2 };

struct MsCeProblem {
    int64_t rows;
    int64_t cols;
    int64_t ignoreIndex;
    int64_t classOffset;   // class id of column 0
    int64_t totalClasses;  // classes of the whole row; cols unless the vocabulary is sharded
    int64_t ubBytes;
    int32_t cores;
    int32_t kind;
    int32_t reduction;
    int32_t logitsBytes;
    int32_t targetBytes;
    int32_t hasWeight;
    float labelSmoothing;
    float zLoss;
};

struct MsCeTiling {
    MsCeProblem problem;
    int32_t path;
    int32_t dot;
    int32_t usedCores;
    int32_t groupRows;  // rows whose targets, statistics and results are handled together
    int32_t tileCols;   // elements of a row in one tile
    int32_t tilePitch;  // unified buffer elements from one row of a tile to the next
    int32_t tileRows;   // rows in one tile
    int32_t tilesPerRow;
    int32_t slices;  // slices of a row, 1 unless the path is SPLIT
    int32_t sliceCols;
    int32_t outputTiles;  // gradient tiles on their way out
    int32_t ringTiles;    // input tiles in the unified buffer; a whole row where the row is resident
    int32_t resident;     // FORWARD_GRAD: a row stays in the unified buffer between its two passes
    int64_t workspaceBytes;
};

namespace ms_ce {

constexpr int64_t kLanes = 64;          // fp32 elements of one vector repeat
constexpr int64_t kBlock = 32;          // bytes; what unified buffer addresses are aligned to
constexpr int64_t kShortCols = 1024;    // up to here rows are handled as a matrix
constexpr int64_t kCopyBytes = 16384;   // below this a copy does not reach the bandwidth of global memory
constexpr int64_t kMaxCopyRows = 4095;  // blocks of one DataCopyPad
constexpr int64_t kMaxRing = 6;         // of 8 event ids, two stay free for the tiles of weights
constexpr int64_t kLookupRowsPerCore = 16;
constexpr int64_t kLookupRows = 1024;   // rows of a group where only one element of each is read
constexpr int64_t kFixedBytes = 11776;  // accumulators, every block's record, lane counts, constants
constexpr int64_t kLaneBytes = kLanes * 4;
constexpr int64_t kRecordBytes = 128;  // what a block leaves for a reduction over blocks
constexpr int64_t kMaxCores = 64;
constexpr int64_t kReductions = 2;  // total weight before the gradient, then the loss

constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

constexpr bool WritesGradient(int32_t kind) {
    return kind == MS_CE_BACKWARD || kind == MS_CE_PROB_BACKWARD || kind == MS_CE_NLL_BACKWARD ||
           kind == MS_CE_FORWARD_GRAD;
}
constexpr bool HasProbabilities(int32_t kind) { return kind == MS_CE_PROB_FORWARD || kind == MS_CE_PROB_BACKWARD; }
constexpr bool TakesStatistics(int32_t kind) {
    return kind == MS_CE_FORWARD || kind == MS_CE_PROB_FORWARD || kind == MS_CE_PARTIAL || kind == MS_CE_FORWARD_GRAD;
}

constexpr int32_t DotOf(const MsCeProblem& p) {
    if (HasProbabilities(p.kind)) return MS_CE_DOT_PROB;
    if (p.kind == MS_CE_NLL_FORWARD || p.kind == MS_CE_NLL_BACKWARD || p.labelSmoothing == 0.0f) return MS_CE_DOT_NONE;
    return p.hasWeight ? MS_CE_DOT_WEIGHTED : MS_CE_DOT_UNIFORM;
}

// Unified buffer bytes for one element of a tile, with `ring` input tiles and `outputs` gradient tiles.
constexpr int64_t BytesPerElement(const MsCeProblem& p, int32_t dot, int64_t ring, int64_t outputs, bool halves) {
    int64_t bytes = ring * p.logitsBytes;                          // logits as they come
    if (p.logitsBytes != 4) bytes += 4;                            // the same in fp32
    if (TakesStatistics(p.kind) && halves) bytes += 2;             // half a tile for sums and maxima by halves
    if (WritesGradient(p.kind)) bytes += outputs * p.logitsBytes;  // gradient on its way out
    if (dot == MS_CE_DOT_WEIGHTED || (dot == MS_CE_DOT_PROB && p.hasWeight)) bytes += 2 * 4;  // weights
    if (dot == MS_CE_DOT_WEIGHTED) bytes += 4;                                                // weight times logit
    if (dot == MS_CE_DOT_PROB) bytes += 2 * p.logitsBytes + 4;  // probabilities, and w·q' in fp32
    return bytes;
}

// Bytes a row needs beside its elements. A row value takes 4 bytes, broadcast to a block it takes 32.
constexpr int64_t BytesPerRow(const MsCeProblem& p, int32_t dot, bool laneSums, bool lookups) {
    int64_t bytes = 48;                // two sets of targets, weights, validity, class logits
    if (lookups) bytes += 2 * kBlock;  // class logits as they are fetched
    if (TakesStatistics(p.kind)) bytes += 6 * 4 + kBlock + 6 * 4;  // row statistics and results on their way out
    if (WritesGradient(p.kind)) bytes += 7 * 4 + 3 * kBlock;       // coefficients
    int64_t lanes = 0;
    if (TakesStatistics(p.kind) && laneSums) lanes += 2;
    if (TakesStatistics(p.kind) && dot != MS_CE_DOT_NONE) lanes += 3;
    if (WritesGradient(p.kind) && dot == MS_CE_DOT_WEIGHTED) lanes += 1;
    return bytes + lanes * kLaneBytes;
}

// Rows as a matrix; false where fewer than 8 fit.
constexpr bool TileShort(MsCeTiling& t, int64_t rowsPerCore) {
    const MsCeProblem& p = t.problem;
    const int64_t pitch = RoundUp(p.cols, kBlock / p.logitsBytes);
    const int64_t perRow =
        pitch * BytesPerElement(p, t.dot, 2, 2, false) + BytesPerRow(p, t.dot, p.cols > kLanes, false);
    const int64_t fit = Min((p.ubBytes - kFixedBytes) / perRow, kMaxCopyRows) / 8 * 8;
    if (p.cols > kShortCols || fit < 8) return false;
    t.path = MS_CE_SHORT;
    t.tileRows = static_cast<int32_t>(RoundUp(CeilDiv(rowsPerCore, CeilDiv(rowsPerCore, fit)), 8));
    t.groupRows = t.tileRows;
    t.tileCols = static_cast<int32_t>(p.cols);
    t.tilePitch = static_cast<int32_t>(pitch);
    t.tilesPerRow = 1;
    t.ringTiles = 2;
    t.outputTiles = 2;
    t.resident = 1;
    return true;
}

// Elements of the largest tile that leaves room for `group` rows' values.
constexpr int64_t LargestTile(const MsCeTiling& t, int64_t group, int64_t ring, int64_t outputs) {
    const MsCeProblem& p = t.problem;
    const int64_t space = p.ubBytes - kFixedBytes - RoundUp(group, 8) * BytesPerRow(p, t.dot, true, true);
    return space / BytesPerElement(p, t.dot, ring, outputs, true) / kLanes * kLanes;
}

// A row of several tiles may stay in the unified buffer as a ring of smaller tiles; one gradient tile instead of two makes
// room for more logits. Returns the tile's elements, 0 where the row does not fit.
constexpr int64_t RingTile(MsCeTiling& t, int64_t cols) {
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

constexpr void TileLong(MsCeTiling& t, int64_t cols, int64_t rowsPerCore) {
    const MsCeProblem& p = t.problem;
    const int64_t group = t.path == MS_CE_SPLIT ? 1 : (t.dot == MS_CE_DOT_NONE ? 32 : 16);
    const bool together = p.kind == MS_CE_FORWARD_GRAD;
    t.ringTiles = 2;
    t.outputTiles = 2;
    t.resident = 1;
    int64_t fit = LargestTile(t, group, 2, 2);
    if (together && cols > fit) {
        fit = RingTile(t, cols);
        t.resident = fit > 0;
        if (!t.resident) fit = LargestTile(t, 1, 2, 2);
    }
    t.tilesPerRow = static_cast<int32_t>(CeilDiv(cols, fit));
    t.tileCols = static_cast<int32_t>(t.tilesPerRow == 1 ? cols : RoundUp(CeilDiv(cols, t.tilesPerRow), kLanes));
    t.tilesPerRow = static_cast<int32_t>(CeilDiv(cols, t.tileCols));
    t.tilePitch = static_cast<int32_t>(RoundUp(t.tileCols, kBlock / p.logitsBytes));
    t.tileRows = static_cast<int32_t>(t.tilesPerRow == 1 ? Max(1, Min(Min(group, rowsPerCore), fit / t.tilePitch)) : 1);
    t.groupRows = static_cast<int32_t>(together ? t.tileRows : group);
}

// One element per row is read: rows are spread over the cores, a group of them at a time.
constexpr void TileLookup(MsCeTiling& t, int64_t cores) {
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

constexpr MsCeTiling ComputeTiling(const MsCeProblem& problem) {
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
    const int64_t lanes = t.path == MS_CE_SPLIT ? problem.rows * t.slices * 4 * kLaneBytes : 0;
    t.workspaceBytes = kReductions * kMaxCores * kRecordBytes + lanes;
    return t;
}

}  // namespace ms_ce

#endif
