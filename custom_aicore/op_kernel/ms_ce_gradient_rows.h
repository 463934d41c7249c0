// The backward operators: one read of the logits, one write of the gradient. Rows that do not count are written without
// being read.
#ifndef MS_CE_GRADIENT_ROWS_H
#define MS_CE_GRADIENT_ROWS_H

#include "ms_ce_gradient.h"
#include "ms_ce_totals.h"

namespace ms_ce {

// Global memory of a backward operator; an input that the operator does not have is null.
struct BackwardAddresses {
    GM_ADDR gradLoss;
    GM_ADDR logits;
    GM_ADDR target;
    GM_ADDR weight;
    GM_ADDR lse;
    GM_ADDR mass;
    GM_ADDR totalWeight;
    GM_ADDR gradLogits;
    GM_ADDR workspace;
};

template <typename T>
class GradientRows {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling, const BackwardAddresses& gm) {
        tiling_ = tiling;
        const MsCeProblem& p = tiling.problem;
        gradLoss_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.gradLoss));
        lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.lse));
        mass_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.mass));
        rows_[0].Init(pipe, tiling, gm.target, gm.weight, nullptr);
        if (tiling.path == MS_CE_SHORT) {
            rows_[1].Init(pipe, tiling, gm.target, gm.weight, nullptr);
        }
        tiles_.Init(pipe, tiling, gm.logits, gm.weight, gm.target);
        gradient_.Init(pipe, tiling, gm.gradLogits);
        short_.Init(pipe, tiling);
        padded_ = static_cast<int32_t>(RoundUp(tiling.groupRows, FLOATS_PER_BLOCK));
        pipe.InitBuffer(rowBuffer_, 3 * padded_ * static_cast<int32_t>(sizeof(float)));
        upstream_ = rowBuffer_.template Get<float>();
        rowLse_ = upstream_[padded_];
        rowMass_ = upstream_[2 * padded_];
        hasLogits_ = p.kind != MS_CE_NLL_BACKWARD;
        if (p.reduction != MS_CE_NONE) {
            common_ = gradLoss_.GetValue(0);
        }
        if (p.reduction == MS_CE_MEAN) {
            GlobalTensor<float> totalWeight;
            totalWeight.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.totalWeight));
            const float total = totalWeight.GetValue(0);
            // Every row ignored: the mean is NaN and its gradient 0.
            common_ = total == 0.0f ? 0.0f : common_ / total;
        }
        if (tiling.sharesMass) {
            totals_.Init(pipe, tiling, gm.workspace);
        }
        AscendC::Duplicate(upstream_, common_, padded_);
        AscendC::Duplicate(rowLse_, 0.0f, 2 * padded_);
    }

    __aicore__ inline void Process() {
        const int64_t block = AscendC::GetBlockIdx();
        const MsCeProblem& p = tiling_.problem;
        const int64_t control = KeepNotANumber();
        const float sharedMass = tiling_.sharesMass ? SharedMass(block) : 0.0f;
        const int64_t begin = tiling_.path == MS_CE_SPLIT ? block % tiling_.slices * tiling_.sliceCols : 0;
        const int64_t end = Min(begin + tiling_.sliceCols, p.cols);
        tiles_.Open(begin, end);
        SetMass(sharedMass);
        if (tiling_.path == MS_CE_SPLIT) {
            Long(block / tiling_.slices, 1, begin, end);
        } else {
            const int64_t first = block * p.rows / tiling_.usedCores;
            const int64_t last = (block + 1) * p.rows / tiling_.usedCores;
            if (tiling_.path == MS_CE_SHORT) {
                Short(first, last);
            } else {
                for (int64_t row = first; row < last; row += tiling_.groupRows) {
                    Long(row, static_cast<int32_t>(Min(tiling_.groupRows, last - row)), 0, p.cols);
                }
            }
        }
        tiles_.Close();
        RestoreControl(control);
    }

private:
    // Σ w over all classes where this block does not hold them: every block adds up its share of them.
    __aicore__ inline float SharedMass(int64_t block) {
        const int64_t classes = tiling_.problem.totalClasses;
        tiles_.AddWeights(block * classes / tiling_.usedCores, (block + 1) * classes / tiling_.usedCores);
        totals_.Publish(0, tiles_.laneCounts, tiles_.laneCounts, RowErrors());
        totals_.Collect(0);
        Synchronise<HardEvent::V_S>();
        const float mass = totals_.sums.GetValue(0);
        Synchronise<HardEvent::S_V>();
        return mass;
    }

    // The mass of smoothed class targets, the same for every row; that of probabilities is an input.
    __aicore__ inline void SetMass(float shared) {
        if (tiling_.dot != MS_CE_DOT_UNIFORM && tiling_.dot != MS_CE_DOT_WEIGHTED) {
            return;
        }
        if (!tiling_.sharesMass) {
            tiles_.CountLanes(tiling_.problem.totalClasses);
        }
        AscendC::Duplicate(rowMass_, tiling_.sharesMass ? shared : tiles_.mass, padded_);
    }

    // Loads the rows' upstream gradient, log-sum-exp and mass, and turns them into coefficients.
    __aicore__ inline void LoadRows(int64_t row, int32_t count, const Rows<T>& state) {
        const MsCeProblem& p = tiling_.problem;
        const bool perRow = p.reduction == MS_CE_NONE;
        Synchronise<HardEvent::V_MTE2>();
        Synchronise<HardEvent::S_MTE2>();
        if (perRow) {
            CopyIn(upstream_, gradLoss_[row], 1, count, count);
        }
        if (hasLogits_) {
            CopyIn(rowLse_, lse_[row], 1, count, count);
        }
        if (HasProbabilities(p.kind)) {
            CopyIn(rowMass_, mass_[row], 1, count, count);
        }
        Synchronise<HardEvent::MTE2_V>();
        gradient_.SetRows(count, state, upstream_, rowLse_, rowMass_);
    }

    __aicore__ inline void Long(int64_t row, int32_t count, int64_t begin, int64_t end) {
        Rows<T>& state = rows_[0];
        state.Load(row, count);
        LoadRows(row, count, state);
        FillRows(row, count, state, begin, end);
        TileWalk<T> ahead(tiling_, state, count, begin, end);
        TileWalk<T> now(tiling_, state, count, begin, end);
        int32_t inFlight = 0;
        for (; !now.Done(); now.Next()) {
            for (; hasLogits_ && !ahead.Done() && inFlight < tiling_.ringTiles; ahead.Next()) {
                tiles_.Fetch(row, ahead.tile);
                ++inFlight;
            }
            if (!hasLogits_) {
                gradient_.LongTile(tiles_, state, row, now.tile, upstream_);
                continue;
            }
            LocalTensor<T> logits = tiles_.Take();
            const Floats x = tiles_.InFloat(logits, now.tile.rows * tiles_.Pitch(now.tile.cols));
            gradient_.LongTile(tiles_, state, row, now.tile, x);
            tiles_.Release(logits);
            --inFlight;
        }
    }

    __aicore__ inline void FillRows(int64_t row, int32_t count, const Rows<T>& state, int64_t begin, int64_t end) {
        for (int32_t r = 0; r < count; ++r) {
            if (state.Counts(r)) {
                continue;
            }
            for (int64_t at = begin; at < end; at += tiling_.tileCols) {
                const Tile tile{r, 1, 0, at, static_cast<int32_t>(Min(tiling_.tileCols, end - at))};
                gradient_.FillRow(state, row, tile);
            }
        }
    }

    __aicore__ inline void Short(int64_t first, int64_t last) {
        int32_t current = 0;
        if (first < last) {
            FetchShort(first, last, current);
        }
        for (int64_t row = first; row < last; row += tiling_.groupRows) {
            const int64_t next = row + tiling_.groupRows;
            if (next < last) {
                FetchShort(next, last, 1 - current);
            }
            ComputeShort(row, static_cast<int32_t>(Min(tiling_.groupRows, last - row)), rows_[current]);
            current = 1 - current;
        }
    }

    __aicore__ inline void FetchShort(int64_t row, int64_t last, int32_t set) {
        const int32_t count = static_cast<int32_t>(Min(tiling_.groupRows, last - row));
        rows_[set].Load(row, count);
        if (hasLogits_) {
            short_.Fetch(tiles_, rows_[set], row, count);
        }
    }

    __aicore__ inline void ComputeShort(int64_t row, int32_t count, Rows<T>& state) {
        LoadRows(row, count, state);
        if (!hasLogits_) {
            gradient_.ShortTile(tiles_, short_, state, row, count, upstream_);
            return;
        }
        LocalTensor<T> tile = tiles_.Take();
        short_.FillGaps(tile, state, count);
        const Floats x = tiles_.InFloat(tile, count * tiling_.tilePitch);
        gradient_.ShortTile(tiles_, short_, state, row, count, x);
        tiles_.Release(tile);
    }

    MsCeTiling tiling_;
    bool hasLogits_ = true;
    float common_ = 0.0f;
    int32_t padded_ = 0;
    GlobalTensor<float> gradLoss_, lse_, mass_;
    Floats upstream_, rowLse_, rowMass_;
    Rows<T> rows_[2];
    Tiles<T> tiles_;
    Gradient<T> gradient_;
    ShortRows<T> short_;
    Totals totals_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rowBuffer_;
};

}  // namespace ms_ce

#endif
