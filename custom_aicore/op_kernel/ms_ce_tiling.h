// What op_host tells the kernels: a problem and how it is cut into pieces, with the few functions that both sides use.
// op_host/ms_ce_plan.h does the cutting. C++11, since CANN compiles op_host so; needs <cstdint> only.
#ifndef MS_CE_TILING_H
#define MS_CE_TILING_H

#include <cstdint>

// In a kernel a function without __aicore__ is one of the host.
#ifdef __aicore__
#define MS_CE_BOTH_SIDES __aicore__ inline
#else
#define MS_CE_BOTH_SIDES inline
#endif

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
    int32_t outputTiles;   // gradient tiles on their way out
    int32_t ringTiles;     // input tiles in the unified buffer; a whole row where its logits stay
    int32_t resident;      // FORWARD_GRAD: a row stays in the unified buffer between its two passes
    int32_t keepsRow;      // FORWARD_GRAD: it stays in fp32, as exponentials, and not as the logits that came
    int32_t keepsWeights;  // the weights of the columns stay in the unified buffer
    int32_t sharesMass;    // BACKWARD: each block adds up a share of the weights, which SyncAll brings together
    int64_t workspaceBytes;
};

namespace ms_ce {

constexpr int64_t kLanes = 64;  // fp32 elements of one vector repeat
constexpr int64_t kBlock = 32;  // bytes; what unified buffer addresses are aligned to
constexpr int64_t kBankGroups =
    16;                          // of the unified buffer: two sources of an instruction should lie in different ones
constexpr int64_t kMaxRing = 6;  // of 8 event ids, two stay free for the tiles of weights
constexpr int64_t kLaneBytes = kLanes * 4;
constexpr int64_t kRecordBytes = 128;  // what a block leaves for a reduction over blocks
constexpr int64_t kMaxCores = 64;
constexpr int64_t kMaxCopyRows = 4095;  // blocks of one DataCopyPad
constexpr int64_t kReductions = 2;      // total weight before the gradient, then the loss

MS_CE_BOTH_SIDES int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
MS_CE_BOTH_SIDES int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
MS_CE_BOTH_SIDES int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
MS_CE_BOTH_SIDES int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

MS_CE_BOTH_SIDES bool WritesGradient(int32_t kind) {
    return kind == MS_CE_BACKWARD || kind == MS_CE_PROB_BACKWARD || kind == MS_CE_NLL_BACKWARD ||
           kind == MS_CE_FORWARD_GRAD;
}
MS_CE_BOTH_SIDES bool HasProbabilities(int32_t kind) {
    return kind == MS_CE_PROB_FORWARD || kind == MS_CE_PROB_BACKWARD;
}
MS_CE_BOTH_SIDES bool TakesStatistics(int32_t kind) {
    return kind == MS_CE_FORWARD || kind == MS_CE_PROB_FORWARD || kind == MS_CE_PARTIAL || kind == MS_CE_FORWARD_GRAD;
}
// Whether a tile of weights goes with a tile of logits.
MS_CE_BOTH_SIDES bool UsesWeights(const MsCeProblem& p, int32_t dot) {
    return dot == MS_CE_DOT_WEIGHTED || (dot == MS_CE_DOT_PROB && p.hasWeight);
}

// Whether the class of each row is found by comparing it with the numbers of all columns, 64 at a time, and not looked up
// by the scalar pipe: of short rows with few columns.
constexpr int64_t kOneHotCols = 256;
MS_CE_BOTH_SIDES bool UsesOneHot(const MsCeProblem& p) {
    return p.cols <= kOneHotCols && !HasProbabilities(p.kind) && p.kind != MS_CE_NLL_FORWARD;
}

// Blocks from row to row of the 64 maxima and of the 64 sums of short rows, `pitch` floats each: as far apart in the 16
// bank groups as the rows themselves, so that what keeps clear of one row's logits keeps clear of every row's.
MS_CE_BOTH_SIDES int64_t LaneBlocks(int64_t pitch) { return 8 + (pitch / 8 + 8) % kBankGroups; }

// Bytes of scratch for the statistics of a tile of long rows: an eighth of its elements and a 64th as floats, in whole
// blocks, or half of them where the exponentials have to be apart from the logits.
MS_CE_BOTH_SIDES int64_t ScratchBytes(int64_t elements, int32_t dot) {
    return RoundUp(dot == MS_CE_DOT_NONE || dot == MS_CE_DOT_UNIFORM ? elements : 2 * elements, kLaneBytes) +
           kLaneBytes;
}

}  // namespace ms_ce

#endif
