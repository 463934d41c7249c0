// Tiles of logits, weights and probabilities: fetching them and taking their statistics.
#ifndef MS_CE_TILES_H
#define MS_CE_TILES_H

#include "ms_ce_online.h"
#include "ms_ce_rows.h"

namespace ms_ce {

// A tile: `rows` rows from row `row` of the group, columns [begin, begin + cols).
struct Tile {
    int32_t row;
    int32_t rows;
    int32_t index;
    int64_t begin;
    int32_t cols;
};

// Walks the tiles of a group's rows that count; rows that do not are never fetched.
template <typename T>
class TileWalk {
public:
    __aicore__ inline TileWalk(const MsCeTiling& tiling, const Rows<T>& rows, int32_t count, int64_t begin, int64_t end)
        : tiling_(tiling), rows_(rows), count_(count), begin_(begin), end_(end) {
        tile.row = 0;
        SkipToRow();
    }

    __aicore__ inline bool Done() const { return tile.row >= count_; }

    __aicore__ inline void Next() {
        if (tile.begin + tile.cols < end_) {
            ++tile.index;
            SetColumns();
            return;
        }
        tile.row += tile.rows;
        SkipToRow();
    }

    Tile tile;

private:
    __aicore__ inline void SkipToRow() {
        while (tile.row < count_ && !rows_.Counts(tile.row)) {
            ++tile.row;
        }
        tile.index = 0;
        tile.rows = Done() ? 0 : rows_.RunLength(tile.row, tiling_.tileRows);
        SetColumns();
    }

    __aicore__ inline void SetColumns() {
        tile.begin = begin_ + static_cast<int64_t>(tile.index) * tiling_.tileCols;
        tile.cols = static_cast<int32_t>(Min(tiling_.tileCols, end_ - tile.begin));
    }

    const MsCeTiling& tiling_;
    const Rows<T>& rows_;
    int32_t count_;
    int64_t begin_, end_;
};

template <typename T>
class Tiles {
public:
    static constexpr bool kCasts = sizeof(T) != sizeof(float);

    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling, GM_ADDR logits, GM_ADDR weight,
                                GM_ADDR probabilities) {
        tiling_ = tiling;
        const int32_t elements = tiling.tileRows * tiling.tilePitch;
        const int32_t floats = elements * static_cast<int32_t>(sizeof(float));
        logits_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(logits));
        weight_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(weight));
        probabilities_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(probabilities));
        if (WritesGradient(tiling.problem.kind) && tiling.resident) {
            // Nobody reads these again, so the L2 cache need not give up what it has for them.
            logits_.SetL2CacheHint(AscendC::CacheMode::CACHE_MODE_DISABLE);
            if (tiling.dot == MS_CE_DOT_PROB) {
                probabilities_.SetL2CacheHint(AscendC::CacheMode::CACHE_MODE_DISABLE);
            }
        }
        pipe.InitBuffer(logitsQueue_, tiling.ringTiles, elements * static_cast<int32_t>(sizeof(T)));
        if (kCasts || tiling.keepsRow) {
            const int64_t row = RoundUp(tiling.problem.cols, LANES) * static_cast<int64_t>(sizeof(float));
            pipe.InitBuffer(workBuffer_, tiling.keepsRow ? static_cast<int32_t>(row) : floats);
            work = workBuffer_.template Get<float>();
        }
        if (TakesStatistics(tiling.problem.kind) && tiling.path != MS_CE_SHORT) {
            pipe.InitBuffer(scratchBuffer_, ScratchBytes(elements, tiling.dot));
            scratch = scratchBuffer_.template Get<float>();
        }
        pipe.InitBuffer(laneBuffer_, 2 * static_cast<int32_t>(kLaneBytes));
        laneCounts = laneBuffer_.template Get<float>();
        usesWeights_ = UsesWeights(tiling.problem, tiling.dot);
        keepsWeights_ = tiling.keepsWeights != 0;
        if (usesWeights_) {
            weightStep_ = static_cast<int32_t>(RoundUp(keepsWeights_ ? tiling.sliceCols : tiling.tilePitch, LANES));
            pipe.InitBuffer(weightQueue_, keepsWeights_ ? 1 : 2, weightStep_ * static_cast<int32_t>(sizeof(float)));
        }
        if (tiling.dot == MS_CE_DOT_PROB) {
            pipe.InitBuffer(probabilityQueue_, 2, elements * static_cast<int32_t>(sizeof(T)));
        }
        if (tiling.dot == MS_CE_DOT_WEIGHTED || tiling.dot == MS_CE_DOT_PROB) {
            pipe.InitBuffer(productBuffer_, floats);
            product = productBuffer_.template Get<float>();
        }
    }

    // Loads the weights of the columns [begin, end) of every row, where they stay.
    __aicore__ inline void Open(int64_t begin, int64_t end) {
        if (keepsWeights_) {
            keptBegin_ = begin;
            FetchWeights(tiling_.problem.classOffset + begin, static_cast<int32_t>(end - begin));
            keptWeights_ = weightQueue_.template DeQue<float>();
        }
    }

    __aicore__ inline void Close() {
        if (keepsWeights_) {
            weightQueue_.FreeTensor(keptWeights_);
        }
    }

    // laneCounts[l] = Σ v over the columns 64·k + l of a row of class targets, and mass = Σ v: the same for every row.
    // Comes after Open, which must have loaded all that v needs.
    __aicore__ inline void CountLanes(int64_t cols) {
        AscendC::Duplicate(laneCounts, 0.0f, LANES);
        mass = 0.0f;
        if (tiling_.dot == MS_CE_DOT_UNIFORM) {
            AscendC::Adds(laneCounts, laneCounts, static_cast<float>(cols / LANES), LANES);
            if (cols % LANES) {
                AscendC::Adds(laneCounts, laneCounts, 1.0f, static_cast<int32_t>(cols % LANES));
            }
            mass = static_cast<float>(cols);
        } else if (tiling_.dot == MS_CE_DOT_WEIGHTED) {
            for (int64_t begin = 0; begin < cols; begin += tiling_.tileCols) {
                const int32_t count = static_cast<int32_t>(Min(tiling_.tileCols, cols - begin));
                FoldLanes<AddOperation>(laneCounts, keptWeights_[static_cast<uint32_t>(begin)], count, product);
            }
            RowsSum(laneCounts[LANES], laneCounts, LANES, 1, BLOCKS_PER_REPEAT);
            Synchronise<HardEvent::V_S>();
            mass = laneCounts.GetValue(LANES);
            Synchronise<HardEvent::S_V>();
        }
    }

    // laneCounts = the weights of the classes [first, last), 64 sums of them. Comes before Open.
    __aicore__ inline void AddWeights(int64_t first, int64_t last) {
        AscendC::Duplicate(laneCounts, 0.0f, LANES);
        for (int64_t begin = first; begin < last; begin += weightStep_) {
            const int32_t count = static_cast<int32_t>(Min(weightStep_, last - begin));
            FetchWeights(begin, count);
            Floats weights = weightQueue_.template DeQue<float>();
            FoldLanes<AddOperation>(laneCounts, weights, count, weights);
            weightQueue_.FreeTensor(weights);
        }
    }

    __aicore__ inline void Fetch(int64_t groupRow, const Tile& tile) {
        FetchLogits(groupRow, tile);
        FetchFactors(groupRow, tile);
    }

    __aicore__ inline void FetchLogits(int64_t groupRow, const Tile& tile) {
        const int64_t at = (groupRow + tile.row) * tiling_.problem.cols + tile.begin;
        const LocalTensor<T> logits = logitsQueue_.template AllocTensor<T>();
        CopyIn(logits, logits_[at], tile.rows, tile.cols, tiling_.problem.cols);
        logitsQueue_.EnQue(logits);
    }

    // The weights and probabilities of a tile, as far as there are any.
    __aicore__ inline void FetchFactors(int64_t groupRow, const Tile& tile) {
        const int64_t at = (groupRow + tile.row) * tiling_.problem.cols + tile.begin;
        if (usesWeights_ && !keepsWeights_) {
            FetchWeights(tiling_.problem.classOffset + tile.begin, tile.cols);
        }
        if (tiling_.dot == MS_CE_DOT_PROB) {
            const LocalTensor<T> q = probabilityQueue_.template AllocTensor<T>();
            CopyIn(q, probabilities_[at], tile.rows, tile.cols, tiling_.problem.cols);
            probabilityQueue_.EnQue(q);
        }
    }

    // Logits of whole rows, into a part of a tile from Allocate.
    __aicore__ inline void CopyRows(const LocalTensor<T>& dst, int64_t row, int32_t rows) {
        const int64_t cols = tiling_.problem.cols;
        CopyIn(dst, logits_[row * cols], rows, static_cast<int32_t>(cols), cols);
    }

    // Logits of the next tile, rows `Pitch` elements apart. The caller releases them.
    __aicore__ inline LocalTensor<T> Take() { return logitsQueue_.template DeQue<T>(); }
    __aicore__ inline void Release(LocalTensor<T>& logits) { logitsQueue_.FreeTensor(logits); }

    // A tile with room for `rows` rows, to be filled run by run and given to Put.
    __aicore__ inline LocalTensor<T> Allocate() { return logitsQueue_.template AllocTensor<T>(); }
    __aicore__ inline void Put(const LocalTensor<T>& logits) { logitsQueue_.EnQue(logits); }

    __aicore__ inline int32_t Pitch(int32_t cols) const {
        return static_cast<int32_t>(RoundUp(cols, kBlock / static_cast<int64_t>(sizeof(T))));
    }

    // The tile in fp32: the logits themselves, or a cast of them in `work`.
    __aicore__ inline Floats InFloat(const LocalTensor<T>& logits, int32_t elements) {
        if constexpr (kCasts) {
            AscendC::Cast(work, logits, AscendC::RoundMode::CAST_NONE, elements);
            return work;
        } else {
            return logits;
        }
    }

    // A tile of a row that stays, in fp32 at its place in `work`.
    __aicore__ inline void Keep(const LocalTensor<T>& logits, const Tile& tile) {
        const Floats place = KeptTile(tile);
        if constexpr (kCasts) {
            AscendC::Cast(place, logits, AscendC::RoundMode::CAST_NONE, tile.cols);
        } else {
            AscendC::Adds(place, logits, 0.0f, tile.cols);
        }
    }
    __aicore__ inline Floats KeptTile(const Tile& tile) const { return work[static_cast<uint32_t>(tile.begin)]; }

    // The weights of the tile that begins at a column; DropWeights gives them back.
    __aicore__ inline Floats Weights(int64_t begin) {
        if (!keepsWeights_) {
            return weightQueue_.template DeQue<float>();
        }
        return keptWeights_[static_cast<int32_t>(begin - keptBegin_)];
    }
    __aicore__ inline void DropWeights(Floats& weights) {
        if (!keepsWeights_) {
            weightQueue_.FreeTensor(weights);
        }
    }
    // The weights of all columns, where they stay.
    __aicore__ inline const Floats& KeptWeights() const { return keptWeights_; }

    // v = w·((1-ε)·q + ε/C) of the next tile of probabilities, in fp32 with the pitch of the logits.
    __aicore__ inline Floats WeightedProbabilities(const Tile& tile) {
        const MsCeProblem& p = tiling_.problem;
        const int32_t pitch = Pitch(tile.cols);
        const int32_t elements = tile.rows * pitch;
        LocalTensor<T> q = probabilityQueue_.template DeQue<T>();
        if constexpr (kCasts) {
            AscendC::Cast(product, q, AscendC::RoundMode::CAST_NONE, elements);
        } else {
            AscendC::Adds(product, q, 0.0f, elements);
        }
        probabilityQueue_.FreeTensor(q);
        if (p.labelSmoothing != 0.0f) {
            AscendC::Muls(product, product, 1.0f - p.labelSmoothing, elements);
            AscendC::Adds(product, product, p.labelSmoothing / static_cast<float>(p.totalClasses), elements);
        }
        if (p.hasWeight) {
            Floats weights = Weights(tile.begin);
            for (int32_t r = 0; r < tile.rows; ++r) {
                AscendC::Mul(product[r * pitch], product[r * pitch], weights, tile.cols);
            }
            DropWeights(weights);
        }
        return product;
    }

    // Adds a tile of logits to the lanes of its rows. `into` takes the exponentials; it may be the logits in fp32.
    __aicore__ inline void Accumulate(Lanes& lanes, const Tile& tile, const Floats& x, const Floats& into) {
        const int32_t pitch = Pitch(tile.cols);
        if (tiling_.dot == MS_CE_DOT_PROB) {
            const Floats v = WeightedProbabilities(tile);
            for (int32_t r = 0; r < tile.rows; ++r) {
                lanes.Add(tile.row + r, x[r * pitch], tile.cols, into[r * pitch], scratch, v[r * pitch], v[r * pitch]);
            }
        } else if (tiling_.dot == MS_CE_DOT_WEIGHTED) {
            Floats weights = Weights(tile.begin);
            for (int32_t r = 0; r < tile.rows; ++r) {
                lanes.Add(tile.row + r, x[r * pitch], tile.cols, into[r * pitch], scratch, weights, product);
            }
            DropWeights(weights);
        } else {
            for (int32_t r = 0; r < tile.rows; ++r) {
                lanes.Add(tile.row + r, x[r * pitch], tile.cols, into[r * pitch], scratch, scratch, scratch);
            }
        }
    }

    Floats work, scratch, laneCounts, product;  // work: the fp32 copy of a tile, or of a row that stays
    float mass = 0.0f;                          // see CountLanes

private:
    __aicore__ inline void FetchWeights(int64_t firstClass, int32_t count) {
        const Floats weights = weightQueue_.template AllocTensor<float>();
        CopyIn(weights, weight_[firstClass], 1, count, count);
        weightQueue_.EnQue(weights);
    }

    MsCeTiling tiling_;
    bool usesWeights_ = false;
    bool keepsWeights_ = false;
    int32_t weightStep_ = 0;  // classes of one load of weights: whole lanes
    int64_t keptBegin_ = 0;   // the first column of the weights that stay
    GlobalTensor<T> logits_, probabilities_;
    GlobalTensor<float> weight_;
    Floats keptWeights_;
    AscendC::TQue<AscendC::TPosition::VECIN, kMaxRing> logitsQueue_;
    AscendC::TQue<AscendC::TPosition::VECIN, 2> weightQueue_, probabilityQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> workBuffer_, scratchBuffer_, laneBuffer_, productBuffer_;
};

}  // namespace ms_ce

#endif
