// The rows of a group on the scalar pipe: targets are loaded, checked against [0, totalClasses) and turned into three
// values per row that the vector pipe uses: `weight` (w[y], 0 where the row does not count), `valid` (1; 0 for ignored rows;
// NaN for a bad target, which makes everything of that row NaN) and `classLogit` (x[y]).
#ifndef MS_CE_ROWS_H
#define MS_CE_ROWS_H

#include "ms_ce_vector.h"

namespace ms_ce {

constexpr int32_t TARGET_WORDS = 2;  // int32 words a target may take

// Bad targets of a block; the first one is named in the error output.
struct RowErrors {
    int64_t badRows = 0;
    int64_t firstBadRow = -1;
    int64_t badTarget = 0;
};

template <typename T>
class Rows {
public:
    // `errors` collects bad targets; null where another pass over the same rows already does.
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling, GM_ADDR target, GM_ADDR weight,
                                RowErrors* errors) {
        problem_ = tiling.problem;
        errors_ = errors;
        target_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(target));
        weight_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(weight));
        const int32_t padded = static_cast<int32_t>(RoundUp(tiling.groupRows, FLOATS_PER_BLOCK));
        pipe.InitBuffer(targetBuffer_, padded * TARGET_WORDS * static_cast<int32_t>(sizeof(int32_t)));
        pipe.InitBuffer(weightBuffer_, padded * static_cast<int32_t>(sizeof(float)));
        pipe.InitBuffer(validBuffer_, padded * static_cast<int32_t>(sizeof(float)));
        pipe.InitBuffer(logitBuffer_, padded * static_cast<int32_t>(sizeof(float)));
        if (tiling.path != MS_CE_SHORT) {
            pipe.InitBuffer(slotBuffer_, padded * static_cast<int32_t>(kBlock));
        }
        classWeight = weightBuffer_.template Get<float>();
        valid = validBuffer_.template Get<float>();
        classLogit = logitBuffer_.template Get<float>();
        targets_ = targetBuffer_.template Get<int32_t>();
    }

    // Rows of a probability target all count, with weight 1 in the mean.
    __aicore__ inline void LoadProbabilityRows(int32_t count) {
        Synchronise<HardEvent::V_S>();
        count_ = count;
        for (int32_t r = 0; r < count; ++r) {
            valid.SetValue(r, 1.0f);
            classWeight.SetValue(r, 1.0f);
            classLogit.SetValue(r, 0.0f);
        }
        Synchronise<HardEvent::S_V>();
    }

    // Loads and checks the targets of rows [row, row + count).
    __aicore__ inline void Load(int64_t row, int32_t count) {
        if (HasProbabilities(problem_.kind)) {
            LoadProbabilityRows(count);
            return;
        }
        count_ = count;
        const int32_t words = problem_.targetBytes / static_cast<int32_t>(sizeof(int32_t));
        Synchronise<HardEvent::S_MTE2>();
        CopyIn(targets_, target_[row * words], 1, count * words, count * words);
        Synchronise<HardEvent::MTE2_S>();
        Synchronise<HardEvent::V_S>();
        for (int32_t r = 0; r < count; ++r) {
            Check(row + r, r);
        }
        Synchronise<HardEvent::S_V>();
    }

    // Fetches x[y] of the group's rows straight from global memory: for long rows one element each costs nothing.
    __aicore__ inline void FetchClassLogits(const GlobalTensor<T>& logits, int64_t row) {
        const LocalTensor<T> slots = slotBuffer_.template Get<T>();
        const int32_t pitch = static_cast<int32_t>(kBlock / sizeof(T));
        for (int32_t r = 0; r < count_; ++r) {
            if (Owns(r)) {
                CopyIn(slots[r * pitch], logits[(row + r) * problem_.cols + LocalClass(r)], 1, 1, 1);
            }
        }
        Synchronise<HardEvent::MTE2_S>();
        Synchronise<HardEvent::V_S>();
        for (int32_t r = 0; r < count_; ++r) {
            if (Owns(r) && classWeight.GetValue(r) != 0.0f) {
                classLogit.SetValue(r, ScalarToFloat(slots.GetValue(r * pitch)));
            }
        }
        Synchronise<HardEvent::S_V>();
    }

    // The same from a tile in the unified buffer, `pitch` elements per row.
    __aicore__ inline void FetchClassLogits(const Floats& tile, int32_t pitch) {
        Synchronise<HardEvent::V_S>();
        for (int32_t r = 0; r < count_; ++r) {
            if (Owns(r) && classWeight.GetValue(r) != 0.0f) {
                classLogit.SetValue(r, tile.GetValue(r * pitch + LocalClass(r)));
            }
        }
        Synchronise<HardEvent::S_V>();
    }

    // Drops the weight of rows whose class another shard holds.
    __aicore__ inline void KeepOwnedWeights() {
        Synchronise<HardEvent::V_S>();
        for (int32_t r = 0; r < count_; ++r) {
            if (Counts(r) && !Owns(r)) {
                classWeight.SetValue(r, 0.0f);
            }
        }
        Synchronise<HardEvent::S_V>();
    }

    __aicore__ inline bool Counts(int32_t r) const { return valid.GetValue(r) == 1.0f; }
    __aicore__ inline bool IsIgnored(int32_t r) const { return valid.GetValue(r) == 0.0f; }

    // Whether the row's class lies in the columns of this call.
    __aicore__ inline bool Owns(int32_t r) const {
        if (HasProbabilities(problem_.kind) || !Counts(r)) {
            return false;
        }
        const int64_t local = Target(r) - problem_.classOffset;
        return local >= 0 && local < problem_.cols;
    }

    __aicore__ inline int32_t LocalClass(int32_t r) const {
        return static_cast<int32_t>(Target(r) - problem_.classOffset);
    }

    // First of a run of rows from r that all count or all do not, at most `limit` long.
    __aicore__ inline int32_t RunLength(int32_t r, int32_t limit) const {
        int32_t length = 1;
        while (length < limit && r + length < count_ && Counts(r + length) == Counts(r)) {
            ++length;
        }
        return length;
    }

    Floats classWeight, valid, classLogit;

private:
    __aicore__ inline int64_t Target(int32_t r) const {
        if (problem_.targetBytes == static_cast<int32_t>(sizeof(int32_t))) {
            return targets_.GetValue(r);
        }
        return targets_.template ReinterpretCast<int64_t>().GetValue(r);
    }

    __aicore__ inline void Check(int64_t row, int32_t r) {
        const int64_t target = Target(r);
        float weight = 0.0f;
        float keep = 1.0f;
        if (target == problem_.ignoreIndex) {
            keep = 0.0f;
        } else if (target < 0 || target >= problem_.totalClasses) {
            keep = NotANumber();
            RecordBad(row, target);
        } else {
            weight = problem_.hasWeight ? weight_.GetValue(target) : 1.0f;
        }
        valid.SetValue(r, keep);
        classWeight.SetValue(r, weight);
        classLogit.SetValue(r, 0.0f);
    }

    __aicore__ inline void RecordBad(int64_t row, int64_t target) {
        if (errors_ == nullptr) {
            return;
        }
        ++errors_->badRows;
        if (errors_->firstBadRow < 0 || row < errors_->firstBadRow) {
            errors_->firstBadRow = row;
            errors_->badTarget = target;
        }
    }

    MsCeProblem problem_;
    RowErrors* errors_ = nullptr;
    int32_t count_ = 0;
    GlobalTensor<int32_t> target_;
    GlobalTensor<float> weight_;
    LocalTensor<int32_t> targets_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> targetBuffer_, weightBuffer_, validBuffer_, logitBuffer_, slotBuffer_;
};

}  // namespace ms_ce

#endif
