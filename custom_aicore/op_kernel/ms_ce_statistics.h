// The forward operators: one read of the logits, statistics per row, losses, and the reduction over rows.
#ifndef MS_CE_STATISTICS_H
#define MS_CE_STATISTICS_H

#include "ms_ce_short.h"
#include "ms_ce_totals.h"

namespace ms_ce {

// Global memory of a forward operator; an output that the operator does not have is null.
struct ForwardAddresses {
    GM_ADDR logits;
    GM_ADDR target;
    GM_ADDR weight;
    GM_ADDR loss;
    GM_ADDR totalWeight;
    GM_ADDR lse;
    GM_ADDR mass;
    GM_ADDR error;
    GM_ADDR workspace;
};

template <typename T>
class Statistics {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling, const ForwardAddresses& gm) {
        tiling_ = tiling;
        const bool isPartial = tiling.problem.kind == MS_CE_PARTIAL;
        logits_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(gm.logits));
        loss_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.loss));
        totalWeight_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.totalWeight));
        lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.lse));
        mass_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.mass));
        error_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(gm.error));
        partials_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.workspace) +
                                  kReductions * kMaxCores * RECORD_FLOATS);
        rows_[0].Init(pipe, tiling, gm.target, gm.weight, &errors_);
        // The second set takes the next tile's rows while the first is at work; with SPLIT it serves the pass over slices,
        // whose targets are checked again by the pass that writes results.
        if (tiling.path != MS_CE_LONG) {
            rows_[1].Init(pipe, tiling, gm.target, gm.weight, tiling.path == MS_CE_SPLIT ? nullptr : &errors_);
        }
        tiles_.Init(pipe, tiling, gm.logits, gm.weight, gm.target);
        lanes_.Init(pipe, tiling);
        finisher_.Init(pipe, tiling);
        totals_.Init(pipe, tiling, gm.workspace);
        short_.Init(pipe, tiling);
        if (tiling.path == MS_CE_SPLIT) {
            pipe.InitBuffer(othersBuffer_, 4 * static_cast<int32_t>(kLaneBytes));
        }
        isPartial_ = isPartial;
    }

    __aicore__ inline void Process() {
        const int64_t block = AscendC::GetBlockIdx();
        const int64_t rows = tiling_.problem.rows;
        if (tiling_.path == MS_CE_SPLIT) {
            Split(block);
        } else {
            tiles_.Open(0, tiling_.problem.cols);
            const int64_t first = block * rows / tiling_.usedCores;
            const int64_t last = (block + 1) * rows / tiling_.usedCores;
            if (tiling_.path == MS_CE_SHORT) {
                tiles_.CountLanes(tiling_.problem.cols);
                Short(first, last);
            } else {
                Long(first, last);
            }
        }
        tiles_.Close();
        totals_.Publish(1, finisher_.lossLanes, finisher_.weightLanes, errors_);
        if (block == 0) {
            totals_.Collect(1);
            Store();
        }
    }

private:
    __aicore__ inline void Store() {
        if (isPartial_) {
            totals_.StoreErrors(error_);
        } else {
            totals_.Store(loss_, totalWeight_);
            if (!HasProbabilities(tiling_.problem.kind)) {
                totals_.StoreErrors(error_);
            }
        }
    }

    __aicore__ inline void Short(int64_t first, int64_t last) {
        int32_t current = 0;
        FetchShort(first, last, current);
        for (int64_t row = first; row < last; row += tiling_.groupRows) {
            ComputeShort(row, last, current);
            current = 1 - current;
        }
    }

    __aicore__ inline void FetchShort(int64_t row, int64_t last, int32_t set) {
        if (row < last) {
            const int32_t count = static_cast<int32_t>(Min(tiling_.groupRows, last - row));
            rows_[set].Load(row, count);
            short_.Fetch(tiles_, rows_[set], row, count);
        }
    }

    // The next tile is fetched as soon as it has room: where logits are cast, in the place that the cast leaves.
    __aicore__ inline void ComputeShort(int64_t row, int64_t last, int32_t set) {
        const int32_t count = static_cast<int32_t>(Min(tiling_.groupRows, last - row));
        Rows<T>& state = rows_[set];
        LocalTensor<T> tile = tiles_.Take();
        short_.FillGaps(tile, state, count);
        const Floats x = tiles_.InFloat(tile, count * tiling_.tilePitch);
        if constexpr (Tiles<T>::kCasts) {
            tiles_.Release(tile);
        }
        FetchShort(row + tiling_.groupRows, last, 1 - set);
        short_.TakeClassLogits(state, x, count, finisher_.blocks);
        const StatisticsView view = short_.Statistics(tiles_, lanes_, x, x, count);
        finisher_.Reduce(count, view, lanes_);
        if constexpr (!Tiles<T>::kCasts) {
            tiles_.Release(tile);
        }
        Finish(row, count, state);
    }

    __aicore__ inline void Long(int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row += tiling_.groupRows) {
            const int32_t count = static_cast<int32_t>(Min(tiling_.groupRows, last - row));
            Rows<T>& state = rows_[0];
            state.Load(row, count);
            state.FetchClassLogits(logits_, row);
            Accumulate(row, count, state, 0, tiling_.problem.cols);
            finisher_.Reduce(count, lanes_.View(), lanes_);
            Finish(row, count, state);
        }
    }

    // Lane statistics of columns [begin, end) of a group's rows, copies running ahead of the vector pipe.
    __aicore__ inline void Accumulate(int64_t row, int32_t count, Rows<T>& state, int64_t begin, int64_t end) {
        lanes_.Clear(count);
        for (int32_t r = 0; r < count; ++r) {
            if (!state.Counts(r)) {
                lanes_.Neutralise(r);
            }
        }
        TileWalk<T> ahead(tiling_, state, count, begin, end);
        TileWalk<T> now(tiling_, state, count, begin, end);
        int32_t inFlight = 0;
        for (; !now.Done(); now.Next()) {
            for (; !ahead.Done() && inFlight < tiling_.ringTiles; ahead.Next()) {
                tiles_.Fetch(row, ahead.tile);
                ++inFlight;
            }
            LocalTensor<T> logits = tiles_.Take();
            const Floats x = tiles_.InFloat(logits, now.tile.rows * tiles_.Pitch(now.tile.cols));
            tiles_.Accumulate(lanes_, now.tile, x, x);
            tiles_.Release(logits);
            --inFlight;
        }
    }

    __aicore__ inline void Finish(int64_t row, int32_t count, Rows<T>& state) {
        if (isPartial_) {
            state.KeepOwnedWeights();
            finisher_.Partials(row, count, state, lse_, loss_, mass_);
        } else {
            finisher_.Losses(row, count, state, loss_, lse_, mass_);
        }
    }

    // Every block takes one slice of one row; then the first blocks combine a row each.
    __aicore__ inline void Split(int64_t block) {
        const int64_t row = block / tiling_.slices;
        const int64_t begin = block % tiling_.slices * tiling_.sliceCols;
        const int64_t end = Min(begin + tiling_.sliceCols, tiling_.problem.cols);
        tiles_.Open(begin, end);
        rows_[1].Load(row, 1);
        Accumulate(row, 1, rows_[1], begin, end);
        Synchronise<HardEvent::V_MTE3>();
        CopyOut(partials_[At(block, 0)], lanes_.maximum, 1, LANES, LANES);
        CopyOut(partials_[At(block, 1)], lanes_.sum, 1, LANES, LANES);
        if (tiling_.dot != MS_CE_DOT_NONE) {
            CopyOut(partials_[At(block, 2)], lanes_.dotSum, 1, LANES, LANES);
            CopyOut(partials_[At(block, 3)], lanes_.count, 1, LANES, LANES);
        }
        AscendC::SyncAll();
        if (block < tiling_.problem.rows) {
            Combine(block);
        }
    }

    __aicore__ inline void Combine(int64_t row) {
        Rows<T>& state = rows_[0];
        const Floats others = othersBuffer_.template Get<float>();
        const int32_t sets = tiling_.dot == MS_CE_DOT_NONE ? 2 : 4;
        state.Load(row, 1);
        state.FetchClassLogits(logits_, row);
        lanes_.Clear(1);
        if (!state.Counts(0)) {
            lanes_.Neutralise(0);
        }
        for (int32_t slice = 0; slice < tiling_.slices && state.Counts(0); ++slice) {
            Synchronise<HardEvent::V_MTE2>();
            CopyIn(others, partials_[At(row * tiling_.slices + slice, 0)], 1, sets * LANES, sets * LANES);
            Synchronise<HardEvent::MTE2_V>();
            lanes_.Merge(0, others);
        }
        finisher_.Reduce(1, lanes_.View(), lanes_);
        Finish(row, 1, state);
    }

    __aicore__ inline int64_t At(int64_t item, int32_t set) const { return (item * 4 + set) * LANES; }

    MsCeTiling tiling_;
    bool isPartial_ = false;
    RowErrors errors_;
    GlobalTensor<T> logits_;
    GlobalTensor<float> loss_, totalWeight_, lse_, mass_, partials_;
    GlobalTensor<int32_t> error_;
    Rows<T> rows_[2];
    Tiles<T> tiles_;
    Lanes lanes_;
    Finisher<T> finisher_;
    Totals totals_;
    ShortRows<T> short_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> othersBuffer_;
};

}  // namespace ms_ce

#endif
