// NLLLoss forward: one element of each row is read.
#ifndef MS_CE_LOOKUP_H
#define MS_CE_LOOKUP_H

#include "ms_ce_totals.h"

namespace ms_ce {

template <typename T>
class Lookup {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling, GM_ADDR logProb, GM_ADDR target,
                                GM_ADDR weight, GM_ADDR loss, GM_ADDR totalWeight, GM_ADDR error, GM_ADDR workspace) {
        tiling_ = tiling;
        logProb_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(logProb));
        loss_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(loss));
        totalWeight_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(totalWeight));
        error_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(error));
        rows_.Init(pipe, tiling, target, weight, &errors_);
        totals_.Init(pipe, tiling, workspace);
        pipe.InitBuffer(sumBuffer_, 2 * static_cast<int32_t>(kLaneBytes));
        pipe.InitBuffer(termBuffer_, tiling.groupRows * static_cast<int32_t>(sizeof(float)));
        pipe.InitBuffer(results_, 2, tiling.groupRows * static_cast<int32_t>(sizeof(float)));
        lossLanes_ = sumBuffer_.template Get<float>();
        weightLanes_ = lossLanes_[LANES];
        term_ = termBuffer_.template Get<float>();
        AscendC::Duplicate(lossLanes_, 0.0f, 2 * LANES);
    }

    __aicore__ inline void Process() {
        const int64_t block = AscendC::GetBlockIdx();
        const int64_t rows = tiling_.problem.rows;
        const int64_t last = (block + 1) * rows / tiling_.usedCores;
        for (int64_t row = block * rows / tiling_.usedCores; row < last; row += tiling_.groupRows) {
            Group(row, static_cast<int32_t>(Min(tiling_.groupRows, last - row)));
        }
        totals_.Publish(1, lossLanes_, weightLanes_, errors_);
        if (block == 0) {
            totals_.Collect(1);
            totals_.Store(loss_, totalWeight_);
            totals_.StoreErrors(error_);
        }
    }

private:
    // loss = -w[y]·log_prob[y], 0 for ignored rows, NaN for a bad target.
    __aicore__ inline void Group(int64_t row, int32_t count) {
        rows_.Load(row, count);
        rows_.FetchClassLogits(logProb_, row);
        Floats loss = results_.template AllocTensor<float>();
        AscendC::Mul(loss, rows_.classLogit, rows_.classWeight, count);
        AscendC::Muls(loss, loss, -1.0f, count);
        AscendC::Mul(loss, loss, rows_.valid, count);
        if (tiling_.problem.reduction != MS_CE_NONE) {
            FoldLanes<AddOperation>(lossLanes_, loss, count, term_);
        }
        AscendC::Adds(term_, rows_.classWeight, 0.0f, count);
        FoldLanes<AddOperation>(weightLanes_, term_, count, term_);
        results_.EnQue(loss);
        loss = results_.template DeQue<float>();
        if (tiling_.problem.reduction == MS_CE_NONE) {
            CopyOut(loss_[row], loss, 1, count, count);
        }
        results_.FreeTensor(loss);
    }

    MsCeTiling tiling_;
    RowErrors errors_;
    GlobalTensor<T> logProb_;
    GlobalTensor<float> loss_, totalWeight_;
    GlobalTensor<int32_t> error_;
    Floats lossLanes_, weightLanes_, term_;
    Rows<T> rows_;
    Totals totals_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuffer_, termBuffer_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> results_;
};

}  // namespace ms_ce

#endif
