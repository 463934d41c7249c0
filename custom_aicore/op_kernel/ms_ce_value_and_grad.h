// Loss and gradient in one call. Where a row fits the unified buffer, as exponentials in fp32 or as the logits that
// came, its logits are read once and the gradient is written once; a longer row is read a second time.
#ifndef MS_CE_VALUE_AND_GRAD_H
#define MS_CE_VALUE_AND_GRAD_H

#include "ms_ce_gradient.h"
#include "ms_ce_totals.h"

namespace ms_ce {

// Global memory of the operator.
struct ForwardGradAddresses {
    GM_ADDR logits;
    GM_ADDR target;
    GM_ADDR weight;
    GM_ADDR loss;
    GM_ADDR totalWeight;
    GM_ADDR lse;
    GM_ADDR gradLogits;
    GM_ADDR error;
    GM_ADDR workspace;
};

template <typename T>
class ValueAndGrad {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling, const ForwardGradAddresses& gm) {
        tiling_ = tiling;
        logits_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(gm.logits));
        loss_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.loss));
        totalWeight_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.totalWeight));
        lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(gm.lse));
        error_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(gm.error));
        rows_[0].Init(pipe, tiling, gm.target, gm.weight, &errors_);
        rows_[1].Init(pipe, tiling, gm.target, gm.weight, &errors_);
        tiles_.Init(pipe, tiling, gm.logits, gm.weight, nullptr);
        lanes_.Init(pipe, tiling);
        finisher_.Init(pipe, tiling);
        totals_.Init(pipe, tiling, gm.workspace);
        gradient_.Init(pipe, tiling, gm.gradLogits);
        short_.Init(pipe, tiling);
        const int32_t padded = static_cast<int32_t>(RoundUp(tiling.groupRows, FLOATS_PER_BLOCK));
        pipe.InitBuffer(upstreamBuffer_, padded * static_cast<int32_t>(sizeof(float)));
        upstreamRows_ = upstreamBuffer_.template Get<float>();
        padded_ = padded;
        if (tiling.keepsRow) {
            const int64_t parts = RoundUp(CeilDiv(tiling.problem.cols, LANES), LANES);
            pipe.InitBuffer(partBuffer_, static_cast<int32_t>(parts * static_cast<int64_t>(sizeof(float))));
            parts_ = partBuffer_.template Get<float>();
        }
    }

    __aicore__ inline void Process() {
        const int64_t block = AscendC::GetBlockIdx();
        const int64_t rows = tiling_.problem.rows;
        const int64_t first = block * rows / tiling_.usedCores;
        const int64_t last = (block + 1) * rows / tiling_.usedCores;
        const int64_t control = KeepNotANumber();
        tiles_.Open(0, tiling_.problem.cols);
        if (tiling_.path == MS_CE_SHORT) {
            tiles_.CountLanes(tiling_.problem.cols);
        }
        FindUpstream(first, last);
        if (tiling_.keepsRow) {
            Kept(first, last);
        } else if (tiling_.tilesPerRow == 1) {
            Batched(first, last);
        } else {
            Streamed(first, last);
        }
        tiles_.Close();
        totals_.Publish(1, finisher_.lossLanes, finisher_.weightLanes, errors_);
        if (block == 0) {
            totals_.Collect(1);
            totals_.Store(loss_, totalWeight_);
            totals_.StoreErrors(error_);
        }
        RestoreControl(control);
    }

private:
    // The mean divides by the total weight, which must be known before the first gradient is written.
    __aicore__ inline void FindUpstream(int64_t first, int64_t last) {
        upstream_ = 1.0f;
        if (tiling_.problem.reduction == MS_CE_MEAN) {
            const int32_t step = rows_[0].Capacity();
            const Floats weights = rows_[0].classWeight;
            for (int64_t row = first; row < last; row += step) {
                const int32_t count = static_cast<int32_t>(Min(step, last - row));
                rows_[0].Load(row, count);
                FoldLanes<AddOperation>(finisher_.lossLanes, weights, count, weights);
            }
            errors_ = RowErrors();
            totals_.Publish(0, finisher_.lossLanes, finisher_.weightLanes, errors_);
            totals_.Collect(0);
            Synchronise<HardEvent::V_S>();
            const float total = totals_.sums.GetValue(0);
            // Every row ignored: the mean is NaN and its gradient 0.
            upstream_ = total == 0.0f ? 0.0f : 1.0f / total;
            Synchronise<HardEvent::S_V>();
            AscendC::Duplicate(finisher_.lossLanes, 0.0f, LANES);
        }
        AscendC::Duplicate(upstreamRows_, upstream_, padded_);
    }

    // Whole rows in a tile: the next tile is on its way while this one is at work.
    __aicore__ inline void Batched(int64_t first, int64_t last) {
        int32_t current = 0;
        if (first < last) {
            FetchBatch(first, last, current);
        }
        for (int64_t row = first; row < last; row += tiling_.groupRows) {
            const int64_t next = row + tiling_.groupRows;
            if (next < last) {
                FetchBatch(next, last, 1 - current);
            }
            ComputeBatch(row, static_cast<int32_t>(Min(tiling_.groupRows, last - row)), rows_[current]);
            current = 1 - current;
        }
    }

    __aicore__ inline void FetchBatch(int64_t row, int64_t last, int32_t set) {
        const int32_t count = static_cast<int32_t>(Min(tiling_.groupRows, last - row));
        rows_[set].Load(row, count);
        short_.Fetch(tiles_, rows_[set], row, count);
    }

    __aicore__ inline void ComputeBatch(int64_t row, int32_t count, Rows<T>& state) {
        const int32_t pitch = tiling_.tilePitch;
        const bool isShort = tiling_.path == MS_CE_SHORT;
        const Tile whole{0, count, 0, 0, tiling_.tileCols};
        LocalTensor<T> tile = tiles_.Take();
        short_.FillGaps(tile, state, count);
        Floats x = tiles_.InFloat(tile, count * pitch);
        short_.TakeClassLogits(state, x, count, finisher_.blocks);
        const Floats scratch = gradient_.Borrow(tiles_);
        if (isShort) {
            finisher_.Reduce(count, short_.Statistics(tiles_, lanes_, x, scratch, count), lanes_);
        } else {
            lanes_.Clear(count);
            tiles_.Accumulate(lanes_, whole, x, scratch);
            finisher_.Reduce(count, lanes_.View(), lanes_);
        }
        gradient_.GiveBack();
        finisher_.Losses(row, count, state, loss_, lse_, lse_);
        gradient_.SetRows(count, state, upstreamRows_, finisher_.lse, finisher_.mass);
        x = tiles_.InFloat(tile, count * pitch);
        if (isShort) {
            gradient_.ShortTile(tiles_, short_, state, row, count, x);
        } else {
            gradient_.LongTile(tiles_, state, row, whole, x);
        }
        tiles_.Release(tile);
    }

    // One row stays in fp32 until its exponentials have become its gradient; targets and losses are those of a group of
    // rows.
    __aicore__ inline void Kept(int64_t first, int64_t last) {
        first_ = loaded_ = ahead_ = first;
        LoadGroup(last);
        for (int64_t row = first; row < last; row += tiling_.groupRows) {
            LoadGroup(last);
            const int32_t count = static_cast<int32_t>(Min(tiling_.groupRows, last - row));
            Rows<T>& state = StateOf(row);
            if (tiling_.dot != MS_CE_DOT_NONE) {
                AscendC::Duplicate(finisher_.mass, static_cast<float>(tiling_.problem.cols), count);
            }
            gradient_.SetKeptRows(count, state, upstreamRows_, finisher_.mass);
            lanes_.Clear(count);
            for (int32_t r = 0; r < count; ++r) {
                if (state.Counts(r)) {
                    Exchange(row + r);
                    lanes_.TakeRow(r, tiles_.work, static_cast<int32_t>(tiling_.problem.cols), parts_, tiling_.tileCols,
                                   tiles_.scratch);
                    gradient_.SetRow(r, state, lanes_.maximum[r * LANES], lanes_.Total(r), upstream_);
                    held_ = row + r;
                } else {
                    lanes_.Neutralise(r);
                    for (int32_t index = 0; index < tiling_.tilesPerRow; ++index) {
                        Tile tile = TileOf(index);
                        tile.row = r;
                        gradient_.FillRow(state, row, tile);
                    }
                }
            }
            finisher_.Reduce(count, lanes_.View(), lanes_);
            finisher_.Losses(row, count, state, loss_, lse_, lse_);
        }
        Exchange(-1);
    }

    // While the gradient of the row before leaves, tile by tile, the logits of `row` take its place; -1 for none. The
    // maxima of every 64 of them follow a tile behind, so that no instruction waits for the one before.
    __aicore__ inline void Exchange(int64_t row) {
        const int32_t count = tiling_.tilesPerRow;
        for (int32_t index = 0; index <= count; ++index) {
            const bool sends = held_ >= 0 && index < count;
            const bool folds = row >= 0 && index > 0;
            const Tile tile = TileOf(index < count ? index : 0);
            const Tile before = TileOf(index > 0 ? index - 1 : 0);
            const Floats place = tiles_.KeptTile(tile);
            int32_t values = 0;
            if (sends) {
                gradient_.ScaleTile(place, tile);
            }
            if (folds) {
                values = ReduceBlocks<BlockMaximum>(tiles_.scratch, tiles_.KeptTile(before), before.cols);
            }
            if (sends) {
                gradient_.SendTile(held_, place, tile);
            }
            if (row >= 0 && index < count) {
                LocalTensor<T> logits = tiles_.Take();
                tiles_.Keep(logits, tile);
                tiles_.Release(logits);
                --fetched_;
                FetchAhead();
            }
            if (folds) {
                ReduceBlocks<BlockMaximum>(parts_[static_cast<uint32_t>(before.begin / LANES)], tiles_.scratch, values);
            }
        }
        held_ = -1;
    }

    // The targets of the next group, while this one is at work.
    __aicore__ inline void LoadGroup(int64_t last) {
        if (loaded_ < last) {
            const int32_t count = static_cast<int32_t>(Min(tiling_.groupRows, last - loaded_));
            Rows<T>& state = StateOf(loaded_);
            state.Load(loaded_, count);
            state.FetchClassLogits(logits_, loaded_);
            loaded_ += count;
        }
        FetchAhead();
    }

    __aicore__ inline Rows<T>& StateOf(int64_t row) { return rows_[(row - first_) / tiling_.groupRows % 2]; }

    // Keeps as many tiles on their way as there is room for, of rows that count and whose targets are known.
    __aicore__ inline void FetchAhead() {
        while (fetched_ < tiling_.ringTiles) {
            while (aheadTile_ == 0 && ahead_ < loaded_ &&
                   !StateOf(ahead_).Counts(static_cast<int32_t>((ahead_ - first_) % tiling_.groupRows))) {
                ++ahead_;
            }
            if (ahead_ >= loaded_) {
                return;
            }
            tiles_.FetchLogits(ahead_, TileOf(aheadTile_));
            ++fetched_;
            if (++aheadTile_ == tiling_.tilesPerRow) {
                aheadTile_ = 0;
                ++ahead_;
            }
        }
    }

    // A row takes several tiles. A resident row keeps them all until its gradient is done; every tile given back is filled
    // with the next row.
    __aicore__ inline void Streamed(int64_t first, int64_t last) {
        int32_t current = 0;
        fetched_ = 0;
        if (first < last) {
            LoadRow(first, current);
        }
        for (int64_t row = first; row < last; ++row) {
            const int64_t next = row + 1 < last ? row + 1 : -1;
            Rows<T>& state = rows_[current];
            if (state.Counts(0)) {
                Statistics(row);
            } else {
                lanes_.Clear(1);
                lanes_.Neutralise(0);
            }
            if (next >= 0) {
                LoadRow(next, 1 - current);
            }
            const bool nextCounts = next >= 0 && rows_[1 - current].Counts(0);
            fetched_ = 0;
            const int32_t spare = tiling_.resident && state.Counts(0) ? tiling_.ringTiles - tiling_.tilesPerRow : 0;
            while (nextCounts && fetched_ < spare && fetched_ < tiling_.tilesPerRow) {
                tiles_.FetchLogits(next, TileOf(fetched_++));
            }
            finisher_.Reduce(1, lanes_.View(), lanes_);
            finisher_.Losses(row, 1, state, loss_, lse_, lse_);
            gradient_.SetRows(1, state, upstreamRows_, finisher_.lse, finisher_.mass);
            WriteRow(row, state, nextCounts ? next : -1);
            current = 1 - current;
        }
    }

    __aicore__ inline void LoadRow(int64_t row, int32_t set) {
        rows_[set].Load(row, 1);
        rows_[set].FetchClassLogits(logits_, row);
    }

    __aicore__ inline Tile TileOf(int32_t index) const {
        const int64_t begin = static_cast<int64_t>(index) * tiling_.tileCols;
        return Tile{0, 1, index, begin, static_cast<int32_t>(Min(tiling_.tileCols, tiling_.problem.cols - begin))};
    }

    __aicore__ inline void Statistics(int64_t row) {
        lanes_.Clear(1);
        for (int32_t index = 0; index < tiling_.tilesPerRow; ++index) {
            while (fetched_ < tiling_.tilesPerRow && fetched_ < (tiling_.resident ? tiling_.tilesPerRow : index + 2)) {
                tiles_.FetchLogits(row, TileOf(fetched_++));
            }
            const Tile tile = TileOf(index);
            tiles_.FetchFactors(row, tile);
            LocalTensor<T> logits = tiles_.Take();
            const Floats x = tiles_.InFloat(logits, tiles_.Pitch(tile.cols));
            tiles_.Accumulate(lanes_, tile, x, gradient_.Borrow(tiles_));
            gradient_.GiveBack();
            if (tiling_.resident) {
                heldTiles_[index] = logits;
            } else {
                tiles_.Release(logits);
            }
        }
    }

    __aicore__ inline void WriteRow(int64_t row, const Rows<T>& state, int64_t next) {
        int32_t again = 0;
        for (int32_t index = 0; index < tiling_.tilesPerRow; ++index) {
            const Tile tile = TileOf(index);
            if (!state.Counts(0)) {
                gradient_.FillRow(state, row, tile);
                continue;
            }
            while (!tiling_.resident && again < tiling_.tilesPerRow && again < index + 2) {
                tiles_.FetchLogits(row, TileOf(again++));
            }
            tiles_.FetchFactors(row, tile);
            LocalTensor<T> logits = tiling_.resident ? heldTiles_[index] : tiles_.Take();
            const Floats x = tiles_.InFloat(logits, tiles_.Pitch(tile.cols));
            gradient_.LongTile(tiles_, state, row, tile, x);
            tiles_.Release(logits);
            if (tiling_.resident && next >= 0 && fetched_ < tiling_.tilesPerRow) {
                tiles_.FetchLogits(next, TileOf(fetched_++));
            }
        }
    }

    MsCeTiling tiling_;
    float upstream_ = 1.0f;
    int32_t fetched_ = 0;
    int32_t padded_ = 0;
    int64_t first_ = 0;   // rows that stay: the first of this core,
    int64_t loaded_ = 0;  // the first whose target is not known,
    int64_t ahead_ = 0;   // the one that is fetched
    int32_t aheadTile_ = 0;
    int64_t held_ = -1;  // and the one whose exponentials are there
    RowErrors errors_;
    GlobalTensor<T> logits_;
    GlobalTensor<float> loss_, totalWeight_, lse_;
    GlobalTensor<int32_t> error_;
    Floats upstreamRows_, parts_;
    LocalTensor<T> heldTiles_[kMaxRing];
    Rows<T> rows_[2];
    Tiles<T> tiles_;
    Lanes lanes_;
    Finisher<T> finisher_;
    Totals totals_;
    Gradient<T> gradient_;
    ShortRows<T> short_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> upstreamBuffer_, partBuffer_;
};

}  // namespace ms_ce

#endif
