// The rows of a group: their targets are loaded, checked against [0, totalClasses) and turned into values per row that the
// vector pipe uses: `classWeight` (w[y], 0 where the row does not count), `valid` (1; 0 for ignored rows; NaN for a bad target,
// which makes everything of that row NaN), `classLogit` (x[y]) and `classId` (the column of y). All of it is vector work but
// the weights of classes; the scalar pipe reads one word of bits for 64 rows.
#ifndef MS_CE_ROWS_H
#define MS_CE_ROWS_H

#include "ms_ce_vector.h"

namespace ms_ce {

constexpr int32_t TARGET_WORDS = 2;  // int32 words a target may take
constexpr int32_t BIT_SETS = 3;
constexpr int32_t BITS_PER_BYTE = 8;

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
        padded_ = static_cast<int32_t>(RoundUp(tiling.groupRows, LANES));
        const int32_t floats = padded_ * static_cast<int32_t>(sizeof(float));
        const int32_t words = problem_.targetBytes / static_cast<int32_t>(sizeof(int32_t));
        pipe.InitBuffer(targetBuffer_, padded_ * TARGET_WORDS * static_cast<int32_t>(sizeof(int32_t)));
        pipe.InitBuffer(valueBuffer_, 4 * floats);
        pipe.InitBuffer(wordBuffer_, 2 * floats);
        pipe.InitBuffer(bitBuffer_, BIT_SETS * BitBytes());
        if (tiling.path != MS_CE_SHORT) {
            pipe.InitBuffer(slotBuffer_, static_cast<int32_t>(RoundUp(tiling.groupRows, FLOATS_PER_BLOCK) * kBlock));
        }
        valid = valueBuffer_.template Get<float>();
        classWeight = valid[padded_];
        classLogit = valid[2 * padded_];
        classId = valid[3 * padded_];
        targets_ = targetBuffer_.template Get<int32_t>();
        // Comparisons take 64 rows at a time, those behind the last one included.
        AscendC::Duplicate(targets_, 0, padded_ * words);
    }

    // Rows that Load takes at once.
    __aicore__ inline int32_t Capacity() const { return padded_; }

    // Loads and checks the targets of rows [row, row + count).
    __aicore__ inline void Load(int64_t row, int32_t count) {
        count_ = count;
        const int32_t rows = static_cast<int32_t>(RoundUp(count, LANES));
        Synchronise<HardEvent::S_V>();
        AscendC::Duplicate(valid, 1.0f, rows);
        AscendC::Duplicate(classWeight, 1.0f, rows);
        AscendC::Duplicate(classLogit, 0.0f, rows);
        if (HasProbabilities(problem_.kind)) {  // all count, with weight 1 in the mean
            for (int32_t word = 0; word < rows / LANES; ++word) {
                counts_[word] = ~0ull;
                ignored_[word] = 0;
            }
            return;
        }
        const int32_t words = problem_.targetBytes / static_cast<int32_t>(sizeof(int32_t));
        Synchronise<HardEvent::S_MTE2>();
        Synchronise<HardEvent::V_MTE2>();
        CopyIn(targets_, target_[row * words], 1, count * words, count * words);
        Synchronise<HardEvent::MTE2_S>();
        Synchronise<HardEvent::MTE2_V>();
        Classify(rows);
        Synchronise<HardEvent::V_S>();
        ReadBits(row);
        if (problem_.hasWeight) {
            for (int32_t r = 0; r < count; ++r) {
                if (Counts(r)) {
                    classWeight.SetValue(r, weight_.GetValue(Target(r)));
                }
            }
            Synchronise<HardEvent::S_V>();
        }
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
            if (Owns(r) && !IsWeightless(r)) {
                classLogit.SetValue(r, ScalarToFloat(slots.GetValue(r * pitch)));
            }
        }
        Synchronise<HardEvent::S_V>();
    }

    // The same from a tile in the unified buffer, `pitch` elements per row.
    __aicore__ inline void FetchClassLogits(const Floats& tile, int32_t pitch) {
        Synchronise<HardEvent::V_S>();
        for (int32_t r = 0; r < count_; ++r) {
            if (Owns(r) && !IsWeightless(r)) {
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

    // Class logits of rows whose weight is 0 count nothing, even where they are infinite.
    __aicore__ inline void DropWeightless() {
        const LocalTensor<uint8_t> weightless = Bits(0);
        const int32_t rows = static_cast<int32_t>(RoundUp(count_, LANES));
        const Floats zeros = wordBuffer_.template Get<float>();
        AscendC::Duplicate(zeros, 0.0f, rows);
        AscendC::Compare(weightless, classWeight, zeros, AscendC::CMPMODE::EQ, static_cast<uint32_t>(rows));
        AscendC::Select(classLogit, weightless, zeros, classLogit, AscendC::SELMODE::VSEL_TENSOR_TENSOR_MODE,
                        static_cast<uint32_t>(rows));
    }

    __aicore__ inline bool Counts(int32_t r) const { return counts_[r / LANES] >> (r % LANES) & 1; }
    __aicore__ inline bool IsIgnored(int32_t r) const { return ignored_[r / LANES] >> (r % LANES) & 1; }

    // Whether the row's class lies in the columns of this call.
    __aicore__ inline bool Owns(int32_t r) const {
        if (HasProbabilities(problem_.kind) || !Counts(r)) {
            return false;
        }
        if (problem_.cols == problem_.totalClasses) {
            return true;
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

    Floats classWeight, valid, classLogit, classId;

private:
    __aicore__ inline int64_t Target(int32_t r) const {
        if (problem_.targetBytes == static_cast<int32_t>(sizeof(int32_t))) {
            return targets_.GetValue(r);
        }
        return targets_.template ReinterpretCast<int64_t>().GetValue(r);
    }

    __aicore__ inline bool IsWeightless(int32_t r) const {
        return problem_.hasWeight && classWeight.GetValue(r) == 0.0f;
    }

    __aicore__ inline int32_t BitBytes() const {
        return static_cast<int32_t>(RoundUp(padded_ / BITS_PER_BYTE, kBlock));
    }
    __aicore__ inline LocalTensor<uint8_t> Bits(int32_t set) {
        return bitBuffer_.template Get<uint8_t>()[set * BitBytes()];
    }

    // bits = words == value, for 64 rows at a time.
    __aicore__ inline void CompareWords(const LocalTensor<uint8_t>& bits, const LocalTensor<int32_t>& words,
                                        int32_t value, int32_t rows) {
        const LocalTensor<int32_t> values = wordBuffer_.template Get<int32_t>()[padded_];
        AscendC::Duplicate(values, value, rows);
        AscendC::Compare(bits, words, values, AscendC::CMPMODE::EQ, static_cast<uint32_t>(rows));
    }

    // One word of each of the int64 targets: pattern 1 the low ones, 2 the high ones.
    __aicore__ inline LocalTensor<int32_t> TargetWords(uint8_t pattern, int32_t rows) {
        const LocalTensor<int32_t> words = wordBuffer_.template Get<int32_t>();
        const AscendC::GatherMaskParams params(1, static_cast<uint16_t>(TARGET_WORDS * rows / LANES), 8, 0);
        uint64_t taken = 0;
        AscendC::GatherMask(words, targets_, pattern, false, 0, params, taken);
        return words;
    }

    // valid, classWeight and classId of the rows, and the bits of those that count and that are ignored.
    __aicore__ inline void Classify(int32_t rows) {
        const bool wide = problem_.targetBytes == TARGET_WORDS * static_cast<int32_t>(sizeof(int32_t));
        const int32_t low = static_cast<int32_t>(static_cast<uint32_t>(problem_.ignoreIndex));
        const int32_t high = static_cast<int32_t>(problem_.ignoreIndex >> 32);
        const auto count = static_cast<uint32_t>(rows);
        const auto orScalar = AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE;
        const auto orTensor = AscendC::SELMODE::VSEL_TENSOR_TENSOR_MODE;
        LocalTensor<int32_t> words = targets_;
        if (wide) {
            words = TargetWords(2, rows);
            CompareWords(Bits(0), words, 0, rows);
            CompareWords(Bits(1), words, high, rows);
            AscendC::Select(valid, Bits(0), valid, NotANumber(), orScalar, count);
            words = TargetWords(1, rows);
        }
        const LocalTensor<int32_t> bound = wordBuffer_.template Get<int32_t>()[padded_];
        AscendC::Maxs(bound, words, 0, rows);
        AscendC::Mins(bound, bound, static_cast<int32_t>(problem_.totalClasses - 1), rows);
        AscendC::Compare(Bits(0), words, bound, AscendC::CMPMODE::EQ, count);
        AscendC::Select(valid, Bits(0), valid, NotANumber(), orScalar, count);
        if (wide || problem_.ignoreIndex == low) {
            // classLogit is 0 here: what an ignored row's `valid` becomes.
            CompareWords(Bits(2), words, low, rows);
            const Floats either = bound.template ReinterpretCast<float>();
            AscendC::Select(either, Bits(2), classLogit, valid, orTensor, count);
            if (wide) {
                AscendC::Select(valid, Bits(1), either, valid, orTensor, count);
            } else {
                AscendC::Adds(valid, either, 0.0f, rows);
            }
        }
        AscendC::Compare(Bits(0), valid, classWeight, AscendC::CMPMODE::EQ, count);
        AscendC::Compare(Bits(1), valid, classLogit, AscendC::CMPMODE::EQ, count);
        AscendC::Select(classWeight, Bits(0), classWeight, 0.0f, orScalar, count);
        AscendC::Adds(bound, words, static_cast<int32_t>(-problem_.classOffset), rows);
        AscendC::Cast(classId, bound, AscendC::RoundMode::CAST_NONE, count);
    }

    // A word of bits for 64 rows; bad targets are recorded one by one.
    __aicore__ inline void ReadBits(int64_t row) {
        const LocalTensor<uint64_t> counts = Bits(0).template ReinterpretCast<uint64_t>();
        const LocalTensor<uint64_t> ignored = Bits(1).template ReinterpretCast<uint64_t>();
        for (int32_t first = 0; first < count_; first += LANES) {
            const int32_t word = first / LANES;
            const uint64_t rows = count_ - first < LANES ? (1ull << (count_ - first)) - 1 : ~0ull;
            counts_[word] = counts.GetValue(word) & rows;
            ignored_[word] = ignored.GetValue(word) & rows;
            const uint64_t bad = rows & ~(counts_[word] | ignored_[word]);
            for (int32_t r = first; bad != 0 && r < count_ && r < first + LANES; ++r) {
                if (bad >> (r - first) & 1) {
                    RecordBad(row + r, Target(r));
                }
            }
        }
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
    int32_t padded_ = 0;
    uint64_t counts_[kMaxCopyRows / LANES + 1];
    uint64_t ignored_[kMaxCopyRows / LANES + 1];
    GlobalTensor<int32_t> target_;
    GlobalTensor<float> weight_;
    LocalTensor<int32_t> targets_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> targetBuffer_, valueBuffer_, wordBuffer_, bitBuffer_, slotBuffer_;
};

}  // namespace ms_ce

#endif
