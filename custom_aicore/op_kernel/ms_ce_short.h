// Statistics of many short rows at once: the tile is a matrix with a row in each line, and every instruction repeats over
// the rows.
#ifndef MS_CE_SHORT_H
#define MS_CE_SHORT_H

#include "ms_ce_finish.h"
#include "ms_ce_tiles.h"

namespace ms_ce {

template <typename T>
class ShortRows {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling) {
        dot_ = tiling.dot;
        hasWeight_ = tiling.problem.hasWeight != 0;
        cols_ = static_cast<int32_t>(tiling.problem.cols);
        pitch_ = tiling.tilePitch;
        stride_ = pitch_ / FLOATS_PER_BLOCK;
        chunks_ = static_cast<int32_t>(CeilDiv(cols_, LANES));
        usesOneHot = tiling.path == MS_CE_SHORT && UsesOneHot(tiling.problem);
        if (usesOneHot) {
            padded_ = static_cast<int32_t>(RoundUp(tiling.groupRows, FLOATS_PER_BLOCK));
            pipe.InitBuffer(columnBuffer_, chunks_ * static_cast<int32_t>(kLaneBytes));
            pipe.InitBuffer(classBuffer_, padded_ * static_cast<int32_t>(kBlock));
            pipe.InitBuffer(bitBuffer_, chunks_ * padded_ * BLOCKS_PER_REPEAT);
            markStride_ = static_cast<int32_t>(Min(stride_, BLOCKS_PER_REPEAT));
            pipe.InitBuffer(laneBuffer_, padded_ * markStride_ * static_cast<int32_t>(kBlock));
            NumberColumns();
        }
    }

    // Finds the columns of the rows' classes. A class of no row that counts may equal a column: its logits are 0.
    __aicore__ inline void MarkClasses(const Rows<T>& state, int32_t rows) {
        const Floats classes = classBuffer_.template Get<float>();
        BroadcastRows(classes, state.classId, rows);
        for (int32_t k = 0; k < chunks_; ++k) {
            RowsEqual(Marks(k), columnBuffer_.template Get<float>()[k * LANES], classes, rows);
        }
    }

    // The logit of each row's class from the tile; `scratch` takes a block per row.
    __aicore__ inline void TakeClassLogits(Rows<T>& state, const Floats& x, int32_t rows, const Floats& scratch) {
        if (!usesOneHot) {
            state.FetchClassLogits(x, pitch_);
            return;
        }
        const Floats marked = laneBuffer_.template Get<float>();
        MarkClasses(state, rows);
        RowsSelect(marked, Marks(0), x, Mask(0), rows, markStride_, stride_, 1);
        for (int32_t k = 1; k < chunks_; ++k) {
            RowsReplace(marked, Marks(k), x[k * LANES], Mask(k), rows, stride_);
        }
        RowsReduce<BlockSum>(state.classLogit, marked, Mask(0), rows, markStride_, scratch);
        if (hasWeight_) {
            state.DropWeightless();
        }
    }

    // g -= amount at each row's class, which MarkClasses has found; `amounts` holds a block per row.
    __aicore__ inline void SubtractAtClasses(const Floats& g, const Floats& amounts, int32_t rows) {
        const Floats marked = laneBuffer_.template Get<float>();
        for (int32_t k = 0; k < chunks_; ++k) {
            RowsSelect(marked, Marks(k), amounts, Mask(k), rows, markStride_, 1, 0);
            RowsOperation<SubOperation>(g[k * LANES], g[k * LANES], marked, Mask(k), rows, stride_, stride_,
                                        markStride_, 1);
        }
    }

    // Fetches a tile; where a run of rows does not count its place stays empty.
    __aicore__ inline void Fetch(Tiles<T>& tiles, const Rows<T>& state, int64_t row, int32_t rows) {
        const LocalTensor<T> tile = tiles.Allocate();
        for (int32_t r = 0; r < rows;) {
            const int32_t run = state.RunLength(r, rows - r);
            if (state.Counts(r)) {
                tiles.CopyRows(tile[r * pitch_], row + r, run);
            }
            r += run;
        }
        tiles.Put(tile);
        const Tile whole{0, rows, 0, 0, cols_};
        tiles.FetchFactors(row, whole);
    }

    // Zeros where rows were not fetched, so that their statistics are finite; what they yield is multiplied by 0.
    __aicore__ inline void FillGaps(const LocalTensor<T>& tile, const Rows<T>& state, int32_t rows) {
        const auto words = tile.template ReinterpretCast<int32_t>();
        const int32_t wordsPerRow = pitch_ * static_cast<int32_t>(sizeof(T)) / static_cast<int32_t>(sizeof(int32_t));
        for (int32_t r = 0; r < rows;) {
            const int32_t run = state.RunLength(r, rows - r);
            if (!state.Counts(r)) {
                AscendC::Duplicate(words[r * wordsPerRow], 0, run * wordsPerRow);
            }
            r += run;
        }
    }

    // Takes the statistics of x (destroyed; `into` may be x) and describes where they lie.
    __aicore__ inline StatisticsView Statistics(Tiles<T>& tiles, Lanes& lanes, const Floats& x, const Floats& into,
                                                int32_t rows) {
        StatisticsView view;
        view.count = tiles.laneCounts;
        view.countStride = 0;
        view.mass = tiles.mass;
        view.hasDot = false;
        view.hasSums = chunks_ > 1;
        Floats v = tiles.laneCounts;
        if (dot_ == MS_CE_DOT_PROB) {
            v = tiles.WeightedProbabilities(Tile{0, rows, 0, 0, cols_});
            view.count = v;
            view.countStride = stride_;
        }
        if (chunks_ == 1) {
            if (into.GetPhyAddr() != x.GetPhyAddr()) {
                AscendC::Adds(into, x, 0.0f, rows * pitch_);
            }
            view.maximum = into;
            view.stride = stride_;
            view.lanes = cols_;
            return view;
        }
        lanes.Place(x);
        view.maximum = lanes.maximum;
        view.stride = lanes.stride;
        view.lanes = LANES;
        TakeMaxima(lanes, x, rows);
        for (int32_t k = 0; k < chunks_; ++k) {
            RowsOperation<SubOperation>(into[k * LANES], x[k * LANES], k % 2 ? lanes.maximum : lanes.sum, Mask(k), rows,
                                        stride_, stride_, lanes.stride, 1);
        }
        if (dot_ != MS_CE_DOT_NONE) {
            view.hasDot = true;
            SumDots(tiles, lanes, into, v, rows);
        }
        if (dot_ == MS_CE_DOT_PROB) {
            FoldRows(lanes.count, v, rows);
            view.count = lanes.count;
            view.countStride = BLOCKS_PER_REPEAT;
        }
        for (int32_t k = 0; k < chunks_; ++k) {
            RowsExp(into[k * LANES], Mask(k), rows, stride_);
        }
        SumRows(lanes, into, rows);
        return view;
    }

    __aicore__ inline int32_t Mask(int32_t chunk) const {
        return static_cast<int32_t>(Min(LANES, cols_ - chunk * LANES));
    }

    bool usesOneHot = false;

private:
    __aicore__ inline LocalTensor<uint8_t> Marks(int32_t chunk) {
        return bitBuffer_.template Get<uint8_t>()[chunk * padded_ * BLOCKS_PER_REPEAT];
    }

    // 0, 1, 2 and so on: eight by the scalar pipe, each step doubles them.
    __aicore__ inline void NumberColumns() {
        const Floats columns = columnBuffer_.template Get<float>();
        for (int32_t i = 0; i < FLOATS_PER_BLOCK; ++i) {
            columns.SetValue(i, static_cast<float>(i));
        }
        Synchronise<HardEvent::S_V>();
        for (int32_t count = FLOATS_PER_BLOCK; count < chunks_ * LANES; count *= 2) {
            const int32_t more = count < chunks_ * LANES - count ? count : chunks_ * LANES - count;
            AscendC::Adds(columns[count], columns, static_cast<float>(count), more);
        }
    }

    // The maximum over x[r][64·k + l] in `maximum` and in `sum`. Each takes every other k, whose bank groups it keeps
    // clear of: two chains, of which one does not wait for the other. A lane of nothing but -inf has LOWEST, since -inf
    // could not be subtracted from itself.
    __aicore__ inline void TakeMaxima(Lanes& lanes, const Floats& x, int32_t rows) {
        const int32_t stride = lanes.stride;
        RowsMaxs(lanes.sum, x, LOWEST, LANES, rows, stride, stride_);
        RowsMaxs(lanes.maximum, x[LANES], LOWEST, Mask(1), rows, stride, stride_);
        for (int32_t k = 2; k < chunks_; ++k) {
            const Floats& at = k % 2 ? lanes.maximum : lanes.sum;
            RowsOperation<MaxOperation>(at, at, x[k * LANES], Mask(k), rows, stride, stride, stride_, 1);
        }
        const int32_t both = chunks_ == 2 ? Mask(1) : LANES;
        RowsOperation<MaxOperation>(lanes.sum, lanes.sum, lanes.maximum, both, rows, stride, stride, stride, 1);
        RowsAdds(lanes.maximum, lanes.sum, 0.0f, LANES, rows, stride, stride);
    }

    // dst[r][l] = Σ x[r][64·k + l].
    __aicore__ inline void FoldRows(const Floats& dst, const Floats& x, int32_t rows) {
        RowsAdds(dst, x, 0.0f, LANES, rows, BLOCKS_PER_REPEAT, stride_);
        for (int32_t k = 1; k < chunks_; ++k) {
            RowsOperation<AddOperation>(dst, dst, x[k * LANES], Mask(k), rows, BLOCKS_PER_REPEAT, BLOCKS_PER_REPEAT,
                                        stride_, 1);
        }
    }

    // lanes.sum is the same by halves, so that few instructions wait for others; x is destroyed. Sources that are an
    // odd number of 64 apart lie in different bank groups.
    __aicore__ inline void SumRows(Lanes& lanes, const Floats& x, int32_t rows) {
        for (int32_t chunks = chunks_; chunks > 1;) {
            int32_t half = (chunks + 1) / 2;
            half += half % 2 == 0 && half + 1 < chunks ? 1 : 0;
            for (int32_t k = half; k < chunks; ++k) {
                const Floats at = x[(k - half) * LANES];
                RowsOperation<AddOperation>(at, at, x[k * LANES], Mask(k), rows, stride_, stride_, stride_, 1);
            }
            chunks = half;
        }
        RowsAdds(lanes.sum, x, 0.0f, LANES, rows, lanes.stride, stride_);
    }

    __aicore__ inline void SumDots(Tiles<T>& tiles, Lanes& lanes, const Floats& x, const Floats& v, int32_t rows) {
        if (dot_ == MS_CE_DOT_UNIFORM) {
            FoldRows(lanes.dotSum, x, rows);
            return;
        }
        const bool perRow = dot_ == MS_CE_DOT_PROB;
        const Floats weights = perRow ? v : tiles.KeptWeights();
        for (int32_t k = 0; k < chunks_; ++k) {
            const Floats product = k == 0 ? lanes.dotSum : lanes.scratch;
            // v = 0 must contribute 0 even where x is -inf; x itself stays as it is, with its NaN.
            RowsMaxs(product, x[k * LANES], LOWEST, Mask(k), rows, BLOCKS_PER_REPEAT, stride_);
            RowsOperation<MulOperation>(product, product, weights[k * LANES], Mask(k), rows, BLOCKS_PER_REPEAT,
                                        BLOCKS_PER_REPEAT, perRow ? stride_ : 0, 1);
            if (k > 0) {
                RowsOperation<AddOperation>(lanes.dotSum, lanes.dotSum, product, Mask(k), rows, BLOCKS_PER_REPEAT,
                                            BLOCKS_PER_REPEAT, BLOCKS_PER_REPEAT, 1);
            }
        }
    }

    bool hasWeight_ = false;
    int32_t dot_, cols_, pitch_, stride_, chunks_;
    int32_t padded_ = 0;
    int32_t markStride_ = 0;  // blocks from row to row of what is selected by class
    AscendC::TBuf<AscendC::TPosition::VECCALC> columnBuffer_, classBuffer_, bitBuffer_, laneBuffer_;
};

}  // namespace ms_ce

#endif
