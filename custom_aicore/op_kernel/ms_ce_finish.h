// From lane statistics to results: log-sum-exp and loss of a group's rows.
#ifndef MS_CE_FINISH_H
#define MS_CE_FINISH_H

#include "ms_ce_online.h"
#include "ms_ce_rows.h"

namespace ms_ce {

// Weighted sums are scaled by this and back: a term with a -inf logit, held at LOWEST, overflows to -inf as it should.
constexpr float OVERFLOW_SCALE = 18446744073709551616.0f;

template <typename T>
class Finisher {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling) {
        tiling_ = tiling;
        padded_ = static_cast<int32_t>(RoundUp(tiling.groupRows, FLOATS_PER_BLOCK));
        const int32_t bytes = padded_ * static_cast<int32_t>(sizeof(float));
        pipe.InitBuffer(rowBuffer_, 6 * bytes);
        pipe.InitBuffer(blockBuffer_, bytes * FLOATS_PER_BLOCK);
        pipe.InitBuffer(totalBuffer_, 2 * static_cast<int32_t>(kLaneBytes));
        maximum_ = rowBuffer_.Get<float>();
        logSum = maximum_[padded_];
        dot_ = maximum_[2 * padded_];
        mass = maximum_[3 * padded_];
        term_ = maximum_[4 * padded_];
        lse = maximum_[5 * padded_];
        blocks = blockBuffer_.Get<float>();
        lossLanes = totalBuffer_.Get<float>();
        weightLanes = lossLanes[LANES];
        // Whole blocks of row values are broadcast, so what lies behind the last row must be defined.
        AscendC::Duplicate(maximum_, 0.0f, 6 * padded_);
        AscendC::Duplicate(blocks, 0.0f, padded_ * FLOATS_PER_BLOCK);
        AscendC::Duplicate(lossLanes, 0.0f, LANES);
        AscendC::Duplicate(weightLanes, 0.0f, LANES);
        pipe.InitBuffer(results_, 2, 3 * bytes);
    }

    // Row maximum, log of the sum, and where needed the sum and mass of the weighted logits.
    __aicore__ inline void Reduce(int32_t rows, const StatisticsView& view, Lanes& lanes) {
        AscendC::Duplicate(maximum_, 0.0f, padded_);
        RowsReduce<BlockMaximum>(maximum_, view.maximum, view.lanes, rows, view.stride, blocks);
        AscendC::Maxs(maximum_, maximum_, LOWEST, rows);
        BroadcastRows(blocks, maximum_, rows);
        RowsOperation<SubOperation>(view.maximum, view.maximum, blocks, view.lanes, rows, view.stride, view.stride, 1,
                                    0);
        if (tiling_.dot != MS_CE_DOT_NONE) {
            ReduceDot(rows, view, lanes);
        }
        RowsExp(view.maximum, view.lanes, rows, view.stride);
        if (view.hasSums) {
            RowsOperation<MulOperation>(view.maximum, view.maximum, lanes.sum, view.lanes, rows, view.stride,
                                        view.stride, view.stride, 1);
        }
        RowsReduce<BlockSum>(logSum, view.maximum, view.lanes, rows, view.stride, blocks);
        if (Clamps()) {
            AscendC::Axpy(dot_, logSum, 0.0f, rows);  // NaN, which the clamps may have dropped
        }
        AscendC::Ln(logSum, logSum, rows);
        AscendC::Add(lse, maximum_, logSum, rows);
    }

    // Loss and log-sum-exp of the rows, into the totals and, where asked for, to global memory.
    __aicore__ inline void Losses(int64_t row, int32_t rows, const Rows<T>& state, const GlobalTensor<float>& lossOut,
                                  const GlobalTensor<float>& lseOut, const GlobalTensor<float>& massOut) {
        const MsCeProblem& p = tiling_.problem;
        Floats out = results_.template AllocTensor<float>();
        const Floats loss = out[padded_];
        const float smooth = p.labelSmoothing / static_cast<float>(p.totalClasses);
        AscendC::Mul(lse, lse, state.valid, rows);
        Floats finalMass = out[2 * padded_];
        if (HasProbabilities(p.kind)) {
            AscendC::Mul(loss, mass, logSum, rows);
            AscendC::Sub(loss, loss, dot_, rows);
            AscendC::Adds(finalMass, mass, 0.0f, rows);
        } else {
            AscendC::Sub(loss, maximum_, state.classLogit, rows);
            AscendC::Add(loss, loss, logSum, rows);
            AscendC::Mul(loss, loss, state.classWeight, rows);
            if (tiling_.dot != MS_CE_DOT_NONE) {
                AscendC::Muls(loss, loss, 1.0f - p.labelSmoothing, rows);
                AscendC::Mul(term_, logSum, mass, rows);
                AscendC::Sub(term_, term_, dot_, rows);
                AscendC::Axpy(loss, term_, smooth, rows);
            }
        }
        if (p.zLoss != 0.0f) {
            AscendC::Mul(term_, lse, lse, rows);
            AscendC::Axpy(loss, term_, p.zLoss, rows);
        }
        AscendC::Mul(loss, loss, state.valid, rows);
        AscendC::Adds(out, lse, 0.0f, rows);
        if (p.reduction != MS_CE_NONE) {
            FoldLanes<AddOperation>(lossLanes, loss, rows, term_);
        }
        AscendC::Adds(term_, state.classWeight, 0.0f, rows);
        FoldLanes<AddOperation>(weightLanes, term_, rows, term_);
        results_.EnQue(out);
        out = results_.template DeQue<float>();
        CopyOut(lseOut[row], out, 1, rows, rows);
        if (p.reduction == MS_CE_NONE) {
            CopyOut(lossOut[row], out[padded_], 1, rows, rows);
        }
        if (HasProbabilities(p.kind)) {
            CopyOut(massOut[row], out[2 * padded_], 1, rows, rows);
        }
        results_.FreeTensor(out);
    }

    // What a shard of the vocabulary contributes to a row: its log-sum-exp, Σ v·x and Σ v, with v = (1-ε)·w_y·1{c=y} +
    // (ε/C)·w_c for class targets.
    __aicore__ inline void Partials(int64_t row, int32_t rows, const Rows<T>& state, const GlobalTensor<float>& lseOut,
                                    const GlobalTensor<float>& dotOut, const GlobalTensor<float>& massOut) {
        const MsCeProblem& p = tiling_.problem;
        const float smooth = p.labelSmoothing / static_cast<float>(p.totalClasses);
        Floats out = results_.template AllocTensor<float>();
        const Floats dot = out[padded_];
        const Floats massRow = out[2 * padded_];
        AscendC::Mul(out, lse, state.valid, rows);
        AscendC::Muls(massRow, state.classWeight, 1.0f - p.labelSmoothing, rows);
        AscendC::Mul(dot, massRow, state.classLogit, rows);
        if (tiling_.dot != MS_CE_DOT_NONE) {
            AscendC::Mul(term_, maximum_, mass, rows);
            AscendC::Add(term_, term_, dot_, rows);
            AscendC::Axpy(dot, term_, smooth, rows);
            AscendC::Axpy(massRow, mass, smooth, rows);
        }
        AscendC::Mul(dot, dot, state.valid, rows);
        AscendC::Mul(massRow, massRow, state.valid, rows);
        results_.EnQue(out);
        out = results_.template DeQue<float>();
        CopyOut(lseOut[row], out, 1, rows, rows);
        CopyOut(dotOut[row], out[padded_], 1, rows, rows);
        CopyOut(massOut[row], out[2 * padded_], 1, rows, rows);
        results_.FreeTensor(out);
    }

    Floats lse, logSum, mass, blocks, lossLanes, weightLanes;

private:
    // Whether -inf is held at LOWEST in `dot`, so that a weight or a probability of 0 makes 0 of it.
    __aicore__ inline bool Clamps() const { return tiling_.dot == MS_CE_DOT_WEIGHTED || tiling_.dot == MS_CE_DOT_PROB; }

    __aicore__ inline void ReduceDot(int32_t rows, const StatisticsView& view, Lanes& lanes) {
        // The maxima stay as they are, with their NaN.
        const bool clamps = Clamps();
        if (clamps) {
            RowsMaxs(lanes.scratch, view.maximum, LOWEST, view.lanes, rows, BLOCKS_PER_REPEAT, view.stride);
        }
        RowsOperation<MulOperation>(lanes.scratch, clamps ? lanes.scratch : view.maximum, view.count, view.lanes, rows,
                                    BLOCKS_PER_REPEAT, clamps ? BLOCKS_PER_REPEAT : view.stride, view.countStride, 1);
        if (view.hasDot) {
            RowsOperation<AddOperation>(lanes.scratch, lanes.scratch, lanes.dotSum, view.lanes, rows, BLOCKS_PER_REPEAT,
                                        BLOCKS_PER_REPEAT, BLOCKS_PER_REPEAT, 1);
        }
        RowsSum(dot_, lanes.scratch, view.lanes, rows, BLOCKS_PER_REPEAT);
        if (clamps) {
            AscendC::Muls(dot_, dot_, OVERFLOW_SCALE, rows);
            AscendC::Muls(dot_, dot_, 1.0f / OVERFLOW_SCALE, rows);
        }
        if (view.countStride == 0) {
            AscendC::Duplicate(mass, view.mass, rows);
        } else {
            RowsSum(mass, view.count, view.lanes, rows, view.countStride);
        }
    }

    MsCeTiling tiling_;
    int32_t padded_ = 0;
    Floats maximum_, dot_, term_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rowBuffer_, blockBuffer_, totalBuffer_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> results_;
};

}  // namespace ms_ce

#endif
