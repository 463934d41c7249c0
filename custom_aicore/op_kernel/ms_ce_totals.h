// The reduction over blocks. Every block leaves a record in the workspace; after SyncAll the records are added in block
// order, so the result is the same from run to run.
#ifndef MS_CE_TOTALS_H
#define MS_CE_TOTALS_H

#include "ms_ce_rows.h"

namespace ms_ce {

constexpr int32_t RECORD_FLOATS = static_cast<int32_t>(kRecordBytes / sizeof(float));
constexpr int32_t RECORD_WEIGHT = 8;   // the loss is at 0, each in a block of its own
constexpr int32_t RECORD_ERRORS = 16;  // five int32: bad rows, first bad row and its target, low word first
constexpr int32_t ERROR_WORDS = 8;     // of the error output; the last three are 0

class Totals {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling, GM_ADDR workspace) {
        tiling_ = tiling;
        workspace_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(workspace));
        pipe.InitBuffer(recordBuffer_, static_cast<int32_t>(kRecordBytes));
        pipe.InitBuffer(allBuffer_, tiling.usedCores * static_cast<int32_t>(kRecordBytes));
        pipe.InitBuffer(sumBuffer_, static_cast<int32_t>(kRecordBytes));
        sums = sumBuffer_.Get<float>();
    }

    // `step` tells the two reductions of one kernel apart: a record of the first may still be read while another block
    // writes its record of the second.
    __aicore__ inline void Publish(int32_t step, const Floats& lossLanes, const Floats& weightLanes,
                                   const RowErrors& errors) {
        const Floats record = recordBuffer_.Get<float>();
        AscendC::Duplicate(record, 0.0f, RECORD_FLOATS);
        RowsSum(record, lossLanes, LANES, 1, BLOCKS_PER_REPEAT);
        RowsSum(record[RECORD_WEIGHT], weightLanes, LANES, 1, BLOCKS_PER_REPEAT);
        Synchronise<HardEvent::V_S>();
        WriteErrors(record.ReinterpretCast<int32_t>()[RECORD_ERRORS], errors.badRows, errors.firstBadRow,
                    errors.badTarget);
        Synchronise<HardEvent::S_MTE3>();
        CopyOut(workspace_[At(step, AscendC::GetBlockIdx())], record, 1, RECORD_FLOATS, RECORD_FLOATS);
        AscendC::SyncAll();
    }

    // Adds every block's record; afterwards sums[0] is the loss, sums[RECORD_WEIGHT] the total weight.
    __aicore__ inline void Collect(int32_t step) {
        const Floats all = allBuffer_.Get<float>();
        const int32_t elements = tiling_.usedCores * RECORD_FLOATS;
        CopyIn(all, workspace_[At(step, 0)], 1, elements, elements);
        Synchronise<HardEvent::MTE2_V>();
        AscendC::Duplicate(sums, 0.0f, RECORD_FLOATS);
        for (int32_t b = 0; b < tiling_.usedCores; ++b) {
            AscendC::Add(sums, sums, all[b * RECORD_FLOATS], RECORD_ERRORS);
        }
    }

    // Block 0 writes the reduced loss and the total weight.
    __aicore__ inline void Store(const GlobalTensor<float>& loss, const GlobalTensor<float>& totalWeight) {
        if (tiling_.problem.reduction == MS_CE_MEAN) {
            AscendC::Div(sums, sums, sums[RECORD_WEIGHT], FLOATS_PER_BLOCK);
        }
        Synchronise<HardEvent::V_MTE3>();
        if (tiling_.problem.reduction != MS_CE_NONE) {
            CopyOut(loss, sums, 1, 1, 1);
        }
        CopyOut(totalWeight, sums[RECORD_WEIGHT], 1, 1, 1);
    }

    // Block 0 writes how many targets were bad and which was the first.
    __aicore__ inline void StoreErrors(const GlobalTensor<int32_t>& error) {
        const LocalTensor<int32_t> all = allBuffer_.Get<int32_t>();
        const LocalTensor<int32_t> record = recordBuffer_.Get<int32_t>();
        Synchronise<HardEvent::MTE2_S>();
        Synchronise<HardEvent::MTE3_S>();
        int64_t bad = 0;
        int64_t row = -1;
        int64_t target = 0;
        for (int32_t b = 0; b < tiling_.usedCores; ++b) {
            const LocalTensor<int32_t> of = all[b * RECORD_FLOATS + RECORD_ERRORS];
            if (of.GetValue(0) > 0 && bad == 0) {
                row = Join(of.GetValue(1), of.GetValue(2));
                target = Join(of.GetValue(3), of.GetValue(4));
            }
            bad += of.GetValue(0);
        }
        WriteErrors(record, bad, row, target);
        Synchronise<HardEvent::S_MTE3>();
        CopyOut(error, record, 1, ERROR_WORDS, ERROR_WORDS);
    }

    Floats sums;

private:
    __aicore__ inline int64_t At(int32_t step, int64_t block) const {
        return (step * kMaxCores + block) * RECORD_FLOATS;
    }

    __aicore__ inline int64_t Join(int32_t low, int32_t high) const {
        return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 |
                                    static_cast<uint32_t>(low));
    }

    __aicore__ inline void WriteErrors(const LocalTensor<int32_t>& words, int64_t bad, int64_t row, int64_t target) {
        words.SetValue(0, static_cast<int32_t>(bad));
        words.SetValue(1, static_cast<int32_t>(row));
        words.SetValue(2, static_cast<int32_t>(row >> 32));
        words.SetValue(3, static_cast<int32_t>(target));
        words.SetValue(4, static_cast<int32_t>(target >> 32));
        for (int32_t i = 5; i < ERROR_WORDS; ++i) {
            words.SetValue(i, 0);
        }
    }

    MsCeTiling tiling_;
    GlobalTensor<float> workspace_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> recordBuffer_, allBuffer_, sumBuffer_;
};

}  // namespace ms_ce

#endif
