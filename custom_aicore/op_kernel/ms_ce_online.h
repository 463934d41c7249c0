// Running statistics of a row: the maximum m, the sum s of exp(x - m), and where the loss needs it the sum `dot` of v·(x - m)
// with the sum `count` of v. Each takes 64 lanes: m is the same in all of a long row, sums are spread over them in any way
// until the row is complete. The scalar pipe is never waited for.
#ifndef MS_CE_ONLINE_H
#define MS_CE_ONLINE_H

#include "ms_ce_vector.h"

namespace ms_ce {

// Where the statistics of a group lie. A stride is in blocks from row to row.
struct StatisticsView {
    Floats maximum;  // per row `lanes` maxima; turned into exp(m - row maximum) here
    int32_t stride;  // of them and of the sums
    int32_t lanes;
    bool hasSums;  // false where every lane holds one logit, whose sum of exponentials is 1
    Floats count;  // sums of v per lane; stride 0 where they are the same for every row
    int32_t countStride;
    float mass;   // Σ v of every row where countStride is 0
    bool hasDot;  // lane sums of v·(x - m) exist; false where each lane holds one logit
};

// The lane sets of a group's rows, 64 floats per row.
class Lanes {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling) {
        const int32_t bytes = tiling.groupRows * static_cast<int32_t>(kLaneBytes);
        dot_ = tiling.dot;
        if (tiling.path != MS_CE_SHORT) {
            pipe.InitBuffer(maximumBuffer_, bytes);
            pipe.InitBuffer(sumBuffer_, bytes);
            maximum = maximumBuffer_.Get<float>();
            sum = sumBuffer_.Get<float>();
        } else if (tiling.problem.cols > LANES) {
            stride = static_cast<int32_t>(LaneBlocks(tiling.tilePitch));
            const int32_t blocks = tiling.groupRows * stride + static_cast<int32_t>(kBankGroups);
            pipe.InitBuffer(maximumBuffer_, blocks * static_cast<int32_t>(kBlock));
            pipe.InitBuffer(sumBuffer_, blocks * static_cast<int32_t>(kBlock));
        }
        if (dot_ != MS_CE_DOT_NONE) {
            pipe.InitBuffer(dotBuffer_, bytes);
            pipe.InitBuffer(countBuffer_, bytes);
            pipe.InitBuffer(scratchBuffer_, bytes);
            dotSum = dotBuffer_.Get<float>();
            count = countBuffer_.Get<float>();
            scratch = scratchBuffer_.Get<float>();
        }
        pipe.InitBuffer(stepBuffer_, (RING + 4 * LANES) * static_cast<int32_t>(sizeof(float)));
        newMaximum_ = stepBuffer_.Get<float>();
        change_ = newMaximum_[RING];
        otherChange_ = change_[LANES];
        product_ = otherChange_[LANES];
        tileMaximum_ = product_[LANES];
        AscendC::Duplicate(tileMaximum_, 0.0f, LANES);  // what lies behind the value is broadcast with it
    }

    // Places the lanes of short rows: the maxima in the bank groups of x, the sums in the eight others.
    __aicore__ inline void Place(const Floats& x) {
        maximum = Behind(maximumBuffer_.Get<float>(), x, 0);
        sum = Behind(sumBuffer_.Get<float>(), x, BLOCKS_PER_REPEAT);
    }

    // Rows that nothing has been added to.
    __aicore__ inline void Clear(int32_t rows) {
        AscendC::Duplicate(maximum, LOWEST, rows * LANES);
        AscendC::Duplicate(sum, 0.0f, rows * LANES);
        if (dot_ != MS_CE_DOT_NONE) {
            AscendC::Duplicate(dotSum, 0.0f, rows * LANES);
            AscendC::Duplicate(count, 0.0f, rows * LANES);
        }
    }

    // Statistics that stay finite, for a row that does not count and is never read.
    __aicore__ inline void Neutralise(int32_t row) {
        AscendC::Duplicate(maximum[row * LANES], 0.0f, LANES);
        AscendC::Duplicate(sum[row * LANES], 1.0f, LANES);
    }

    // Adds x[0, elements) to a row. `work` takes the elements (it may be x), `scratch` what FoldBlocks asks for and, for
    // weighted sums, half of the elements. For these v holds the weights and `product` takes the elements (it may be v).
    __aicore__ inline void Add(int32_t row, const Floats& x, int32_t elements, const Floats& work,
                               const Floats& scratch, const Floats& v, const Floats& product) {
        const int32_t at = row * LANES;
        TakeMaximum(at, x, elements, scratch);
        MoveMaximum(at);
        TileValueOperation<SubOperation>(work, x, newMaximum_, elements);
        if (dot_ == MS_CE_DOT_UNIFORM) {
            Accumulate<BlockSum>(dotSum[at], work, elements, scratch);
            CountElements(count[at], elements);
        } else if (dot_ != MS_CE_DOT_NONE) {
            // v = 0 must contribute 0 even where x is -inf. What a maximum makes of NaN is not documented, so the
            // exponentials are taken before.
            AddExponentials(at, work, elements, scratch);
            AscendC::Maxs(work, work, LOWEST, elements);
            Accumulate<BlockSum>(count[at], v, elements, scratch);
            AscendC::Mul(product, work, v, elements);
            Accumulate<BlockSum>(dotSum[at], product, elements, scratch);
            return;
        }
        AscendC::Exp(work, work, elements);
        Accumulate<BlockSum>(sum[at], work, elements, scratch);
    }

    // Takes a whole row, to which nothing has been added: x[0, elements) becomes exp(x - m). `parts` holds the maximum
    // of every 64 elements and then takes their sums; `step` and `scratch` are those of ReduceRepeats.
    __aicore__ inline void TakeRow(int32_t row, const Floats& x, int32_t elements, const Floats& parts, int32_t step,
                                   const Floats& scratch) {
        const int32_t at = row * LANES;
        const int32_t repeats = (elements + LANES - 1) / LANES;
        TakeMaximum(at, parts, repeats, scratch);
        TileValueOperation<SubOperation>(x, x, newMaximum_, elements);
        Copy64(maximum[at], newMaximum_);
        if (dot_ == MS_CE_DOT_UNIFORM) {
            ReduceRepeats<BlockSum>(parts, x, elements, step, scratch);
            Accumulate<BlockSum>(dotSum[at], parts, repeats, scratch);
            CountElements(count[at], elements);
        }
        AscendC::Exp(x, x, elements);
        ReduceRepeats<BlockSum>(parts, x, elements, step, scratch);
        Accumulate<BlockSum>(sum[at], parts, repeats, scratch);
    }

    // The sum of a row, eight times, until the next row.
    __aicore__ inline Floats Total(int32_t row) {
        RowsSum(tileMaximum_, sum[row * LANES], LANES, 1, BLOCKS_PER_REPEAT);
        BroadcastRows(otherChange_, tileMaximum_, 1);
        return otherChange_;
    }

    // Adds the finished lanes of another slice of the same row; `others` holds its m, s, dot and count one after another.
    __aicore__ inline void Merge(int32_t row, const Floats& others) {
        const int32_t at = row * LANES;
        AscendC::Max(newMaximum_, maximum[at], others, LANES);
        AscendC::Sub(otherChange_, others, newMaximum_, LANES);
        MoveMaximum(at);
        if (dot_ != MS_CE_DOT_NONE) {
            AscendC::Maxs(product_, otherChange_, LOWEST, LANES);
            AscendC::Mul(product_, product_, others[3 * LANES], LANES);
            AscendC::Add(dotSum[at], dotSum[at], product_, LANES);
            AscendC::Add(dotSum[at], dotSum[at], others[2 * LANES], LANES);
            AscendC::Add(count[at], count[at], others[3 * LANES], LANES);
        }
        AscendC::Exp(otherChange_, otherChange_, LANES);
        AscendC::Mul(otherChange_, otherChange_, others[LANES], LANES);
        AscendC::Add(sum[at], sum[at], otherChange_, LANES);
    }

    __aicore__ inline StatisticsView View() const {
        return StatisticsView{maximum, BLOCKS_PER_REPEAT, LANES, true, count, BLOCKS_PER_REPEAT, 0.0f, true};
    }

    // Adds 1 to lane l for every element 64·k + l below `elements`.
    __aicore__ inline void CountElements(const Floats& counts, int32_t elements) {
        if (elements / LANES) {
            AscendC::Adds(counts, counts, static_cast<float>(elements / LANES), LANES);
        }
        if (elements % LANES) {
            AscendC::Adds(counts, counts, 1.0f, elements % LANES);
        }
    }

    Floats maximum, sum, dotSum, count, scratch;
    int32_t stride = BLOCKS_PER_REPEAT;  // of maximum and sum, in blocks from row to row

private:
    // The first place of `all` whose bank group is `blocks` behind that of x.
    __aicore__ inline Floats Behind(const Floats& all, const Floats& x, int32_t blocks) const {
        const int32_t bank = static_cast<int32_t>(kBlock);
        const int32_t groups = static_cast<int32_t>(kBankGroups);
        const int32_t apart = static_cast<int32_t>((x.GetPhyAddr() - all.GetPhyAddr()) / bank % groups);
        return all[(apart + blocks) % groups * FLOATS_PER_BLOCK];
    }

    // newMaximum_ = the larger of the row's maximum and that of x, RING times.
    __aicore__ inline void TakeMaximum(int32_t at, const Floats& x, int32_t elements, const Floats& scratch) {
        const Values values = FoldBlocks<BlockMaximum>(x, elements, scratch);
        RowsMaximum(tileMaximum_, values.at, values.count, 1, BLOCKS_PER_REPEAT);
        BroadcastRows(newMaximum_, tileMaximum_, 1);  // the value eight times
        BroadcastRows(otherChange_, newMaximum_, 1);  // and 64 times
        AscendC::Max(newMaximum_, otherChange_, maximum[at], LANES);
        AscendC::Max(newMaximum_[LANES], otherChange_, maximum[at], LANES);
    }

    // Adds exp(x) to a row's sums and leaves x as it is, half of the elements at a time.
    __aicore__ inline void AddExponentials(int32_t at, const Floats& x, int32_t elements, const Floats& half) {
        const int32_t step = static_cast<int32_t>(RoundUp(CeilDiv(elements, 2), LANES));
        for (int32_t first = 0; first < elements; first += step) {
            const int32_t taken = elements - first < step ? elements - first : step;
            AscendC::Exp(half, x[first], taken);
            FoldLanes<AddOperation>(sum[at], half, taken, half);
        }
    }

    // Takes newMaximum_ as the row's maximum and rescales what was summed so far.
    __aicore__ inline void MoveMaximum(int32_t at) {
        AscendC::Sub(change_, maximum[at], newMaximum_, LANES);
        Copy64(maximum[at], newMaximum_);
        if (dot_ != MS_CE_DOT_NONE) {
            // The first change is from LOWEST, with a count of 0: the product must be 0, not 0·inf.
            AscendC::Maxs(change_, change_, LOWEST, LANES);
            AscendC::Mul(product_, change_, count[at], LANES);
            AscendC::Add(dotSum[at], dotSum[at], product_, LANES);
        }
        AscendC::Exp(change_, change_, LANES);
        AscendC::Mul(sum[at], sum[at], change_, LANES);
    }

    int32_t dot_ = MS_CE_DOT_NONE;
    Floats newMaximum_, change_, otherChange_, product_, tileMaximum_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> maximumBuffer_, sumBuffer_, dotBuffer_, countBuffer_, scratchBuffer_,
        stepBuffer_;
};

}  // namespace ms_ce

#endif
