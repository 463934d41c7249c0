// Vector building blocks: sums and maxima by halves, and operations of a tile with one vector of 64 lanes or with one value
// per row. Within the vector pipe order is kept by the compiler's automatic synchronisation.
#ifndef MS_CE_VECTOR_H
#define MS_CE_VECTOR_H

#include "kernel_operator.h"
#include "ms_ce_tiling.h"

namespace ms_ce {

using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using Floats = AscendC::LocalTensor<float>;

constexpr int32_t LANES = 64;
constexpr int32_t FLOATS_PER_BLOCK = 8;
constexpr int32_t BLOCKS_PER_REPEAT = 8;
// At most 255 repeats fit an instruction; a multiple of 8 keeps every chunk of row results aligned to a block.
constexpr int32_t CHUNK_ROWS = 248;
// Start of a running maximum: unlike -inf it can be subtracted from -inf.
constexpr float LOWEST = -3.4028234e38f;

struct AddOperation {
    template <typename... Arguments>
    static __aicore__ inline void Run(const Arguments&... arguments) {
        AscendC::Add(arguments...);
    }
};
struct SubOperation {
    template <typename... Arguments>
    static __aicore__ inline void Run(const Arguments&... arguments) {
        AscendC::Sub(arguments...);
    }
};
struct MulOperation {
    template <typename... Arguments>
    static __aicore__ inline void Run(const Arguments&... arguments) {
        AscendC::Mul(arguments...);
    }
};
struct MaxOperation {
    template <typename... Arguments>
    static __aicore__ inline void Run(const Arguments&... arguments) {
        AscendC::Max(arguments...);
    }
};

// A reduction: within blocks of 8 and between vectors.
struct BlockSum {
    using Pairwise = AddOperation;
    template <typename... Arguments>
    static __aicore__ inline void Run(const Arguments&... arguments) {
        AscendC::BlockReduceSum(arguments...);
    }
};
struct BlockMaximum {
    using Pairwise = MaxOperation;
    template <typename... Arguments>
    static __aicore__ inline void Run(const Arguments&... arguments) {
        AscendC::BlockReduceMax(arguments...);
    }
};

// Makes one pipe wait for all that another has been given so far.
template <HardEvent event>
__aicore__ inline void Synchronise() {
    const int32_t id = static_cast<int32_t>(GetTPipePtr()->FetchEventID(event));
    AscendC::SetFlag<event>(id);
    AscendC::WaitFlag<event>(id);
}

template <typename T>
__aicore__ inline float ScalarToFloat(T value) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return value;
    } else if constexpr (std::is_same<T, half>::value) {
        return static_cast<float>(value);
    } else {
        return AscendC::ToFloat(value);
    }
}

__aicore__ inline float NotANumber() {
    union {
        uint32_t bits;
        float value;
    } pun = {0x7fc00000u};
    return pun.value;
}

// Bit 48 of the control register. 0, the default, turns NaN into 0 and inf into the largest number where fp32 becomes 16
// bits; with 1 both stay. The intrinsics are used since the API for this bit came with CANN 9.1.
constexpr int64_t KEEPS_NOT_A_NUMBER = 1ll << 48;

// Keeps NaN and inf; returns the register for RestoreControl.
__aicore__ inline int64_t KeepNotANumber() {
    const int64_t control = get_ctrl();
    set_ctrl(control | KEEPS_NOT_A_NUMBER);
    return control;
}

__aicore__ inline void RestoreControl(int64_t control) {
    AscendC::PipeBarrier<PIPE_ALL>();
    set_ctrl(control);
}

// `rows` runs of `count` elements, `stride` elements apart in global memory; each starts a block and its last block is
// filled up with zeros, so that whole tiles can be cast.
template <typename T>
__aicore__ inline void CopyIn(const LocalTensor<T>& dst, const GlobalTensor<T>& src, int32_t rows, int32_t count,
                              int64_t stride) {
    const int32_t perBlock = static_cast<int32_t>(kBlock / sizeof(T));
    const AscendC::DataCopyExtParams params(rows, count * static_cast<int32_t>(sizeof(T)),
                                            static_cast<uint32_t>((stride - count) * sizeof(T)), 0, 0);
    AscendC::DataCopyPadExtParams<T> padding;
    padding.isPad = true;
    padding.rightPadding = static_cast<uint8_t>((perBlock - count % perBlock) % perBlock);
    AscendC::DataCopyPad(dst, src, params, padding);
}

template <typename T>
__aicore__ inline void CopyOut(const GlobalTensor<T>& dst, const LocalTensor<T>& src, int32_t rows, int32_t count,
                               int64_t stride) {
    const AscendC::DataCopyExtParams params(rows, count * static_cast<int32_t>(sizeof(T)), 0,
                                            static_cast<uint32_t>((stride - count) * sizeof(T)), 0);
    AscendC::DataCopyPad(dst, src, params);
}

__aicore__ inline void Copy64(const Floats& dst, const Floats& src) { AscendC::Adds(dst, src, 0.0f, LANES); }

// accumulator[l] = operation over every x[64·k + l], by halves: about one repeat per 64 elements in all. `scratch` takes
// half the elements and may be x itself where x is not needed afterwards.
template <typename Operation>
__aicore__ inline void FoldLanes(const Floats& accumulator, const Floats& x, int32_t count, const Floats& scratch) {
    const int32_t tail = count % LANES;
    int32_t repeats = count / LANES;
    Floats source = x;
    Floats tailSource;
    if (tail) {
        tailSource = x[repeats * LANES];  // without a tail this would be the end of the buffer, where no tensor starts
    }
    while (repeats > 1) {
        const int32_t half = repeats / 2;
        if (repeats % 2) {
            Operation::Run(accumulator, accumulator, source[(repeats - 1) * LANES], LANES);
        }
        Operation::Run(scratch, source, source[half * LANES], half * LANES);
        source = scratch;
        repeats = half;
    }
    if (repeats == 1) {
        Operation::Run(accumulator, accumulator, source, LANES);
    }
    if (tail) {
        Operation::Run(accumulator, accumulator, tailSource, tail);
    }
}

// dst[b] = reduction of the elements 8·b to 8·b + 7 of x, for `count` elements. Writes whole blocks of dst: 8 values for
// every 64 elements begun. Returns the number of values.
template <typename Reduction>
__aicore__ inline int32_t ReduceBlocks(const Floats& dst, const Floats& x, int32_t count) {
    const int32_t repeats = count / LANES;
    const int32_t tail = count % LANES;
    for (int32_t first = 0; first < repeats; first += CHUNK_ROWS) {
        const int32_t chunk = repeats - first < CHUNK_ROWS ? repeats - first : CHUNK_ROWS;
        Reduction::Run(dst[first * FLOATS_PER_BLOCK], x[first * LANES], chunk, LANES, 1, 1, BLOCKS_PER_REPEAT);
    }
    if (tail) {
        Reduction::Run(dst[repeats * FLOATS_PER_BLOCK], x[repeats * LANES], 1, tail, 1, 1, BLOCKS_PER_REPEAT);
    }
    return (count + FLOATS_PER_BLOCK - 1) / FLOATS_PER_BLOCK;
}

// dst[k] = reduction of the elements 64·k to 64·k + 63 of x, `step` elements at a time: two of these pieces share a
// wait, each in a half of `scratch`, which takes a quarter of `step`. Pieces but the last are whole groups of 512.
template <typename Reduction>
__aicore__ inline void ReduceRepeats(const Floats& dst, const Floats& x, int32_t count, int32_t step,
                                     const Floats& scratch) {
    const int32_t half = step / FLOATS_PER_BLOCK;
    for (int32_t first = 0; first < count; first += 2 * step) {
        const int32_t end = first + 2 * step < count ? first + 2 * step : count;
        for (int32_t begin = first; begin < end; begin += step) {
            const int32_t taken = end - begin < step ? end - begin : step;
            ReduceBlocks<Reduction>(scratch[begin == first ? 0 : half], x[begin], taken);
        }
        for (int32_t begin = first; begin < end; begin += step) {
            const int32_t taken = end - begin < step ? end - begin : step;
            const int32_t values = (taken + FLOATS_PER_BLOCK - 1) / FLOATS_PER_BLOCK;
            ReduceBlocks<Reduction>(dst[begin / LANES], scratch[begin == first ? 0 : half], values);
        }
    }
}

// At most 64 values whose reduction is that of x, in a chain that takes eight elements to one: `scratch` takes an eighth
// of the elements and a 64th, each in whole blocks of 8. x stays as it is.
struct Values {
    Floats at;
    int32_t count;
};
template <typename Reduction>
__aicore__ inline Values FoldBlocks(const Floats& x, int32_t count, const Floats& scratch) {
    Values values{x, count};
    int32_t room = 0;
    while (values.count > LANES) {
        const Floats next = scratch[room];
        room += (values.count + LANES - 1) / LANES * FLOATS_PER_BLOCK;
        values.count = ReduceBlocks<Reduction>(next, values.at, values.count);
        values.at = next;
    }
    return values;
}

// accumulator = accumulator operation the reduction of x, spread over lanes in any way.
template <typename Reduction>
__aicore__ inline void Accumulate(const Floats& accumulator, const Floats& x, int32_t count, const Floats& scratch) {
    const Values values = FoldBlocks<Reduction>(x, count, scratch);
    Reduction::Pairwise::Run(accumulator, accumulator, values.at, values.count);
}

// dst = x operation `operand` for `rows` rows of `mask` elements. Strides are in blocks from row to row;
// operandBlockStride 0 takes one block for a whole row: one value per row, as Brcb lays it out.
template <typename Operation>
__aicore__ inline void RowsOperation(const Floats& dst, const Floats& x, const Floats& operand, int32_t mask,
                                     int32_t rows, int32_t dstStride, int32_t xStride, int32_t operandStride,
                                     int32_t operandBlockStride) {
    const AscendC::BinaryRepeatParams params(1, 1, operandBlockStride, dstStride, xStride, operandStride);
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        const int32_t at = first * FLOATS_PER_BLOCK;
        Operation::Run(dst[at * dstStride], x[at * xStride], operand[at * operandStride], static_cast<uint64_t>(mask),
                       chunk, params);
    }
}

// dst[i] = x[i] operation operand[i mod 64] (operandBlockStride 1) or operation operand[i mod 8] (0) over a whole tile.
template <typename Operation>
__aicore__ inline void TileOperation(const Floats& dst, const Floats& x, const Floats& operand, int32_t count,
                                     int32_t operandBlockStride) {
    const int32_t repeats = count / LANES;
    const int32_t tail = count % LANES;
    if (repeats) {
        RowsOperation<Operation>(dst, x, operand, LANES, repeats, BLOCKS_PER_REPEAT, BLOCKS_PER_REPEAT, 0,
                                 operandBlockStride);
    }
    if (tail) {
        const int32_t at = repeats * LANES;
        RowsOperation<Operation>(dst[at], x[at], operand, tail, 1, BLOCKS_PER_REPEAT, BLOCKS_PER_REPEAT, 0,
                                 operandBlockStride);
    }
}

constexpr int32_t RING = 2 * LANES;  // floats of one value in every bank group
constexpr int32_t RING_BLOCKS = RING / FLOATS_PER_BLOCK;

// dst = x operation one value over a whole tile; `ring` holds it RING times. Every other repeat of x lies in the same
// eight bank groups, so that each half takes the value from the other eight and never meets it.
template <typename Operation>
__aicore__ inline void TileValueOperation(const Floats& dst, const Floats& x, const Floats& ring, int32_t count) {
    const int32_t bank = static_cast<int32_t>(kBlock);
    const int32_t apart = static_cast<int32_t>((x.GetPhyAddr() - ring.GetPhyAddr()) / bank % RING_BLOCKS);
    const int32_t repeats = count / LANES;
    const int32_t tail = count % LANES;
    for (int32_t odd = 0; odd < 2; ++odd) {
        const Floats value = ring[(apart + (1 - odd) * BLOCKS_PER_REPEAT) % RING_BLOCKS * FLOATS_PER_BLOCK];
        if (repeats > odd) {
            RowsOperation<Operation>(dst[odd * LANES], x[odd * LANES], value, LANES, (repeats - odd + 1) / 2,
                                     RING_BLOCKS, RING_BLOCKS, 0, 0);
        }
        if (tail && repeats % 2 == odd) {
            const int32_t at = repeats * LANES;
            RowsOperation<Operation>(dst[at], x[at], value, tail, 1, BLOCKS_PER_REPEAT, BLOCKS_PER_REPEAT, 0, 0);
        }
    }
}

// One operation of each row with a scalar, `mask` elements of every row.
__aicore__ inline void RowsAdds(const Floats& dst, const Floats& x, float scalar, int32_t mask, int32_t rows,
                                int32_t dstStride, int32_t xStride) {
    const AscendC::UnaryRepeatParams params(1, 1, dstStride, xStride);
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        const int32_t at = first * FLOATS_PER_BLOCK;
        AscendC::Adds(dst[at * dstStride], x[at * xStride], scalar, static_cast<uint64_t>(mask), chunk, params);
    }
}

__aicore__ inline void RowsMaxs(const Floats& dst, const Floats& x, float scalar, int32_t mask, int32_t rows,
                                int32_t dstStride, int32_t xStride) {
    const AscendC::UnaryRepeatParams params(1, 1, dstStride, xStride);
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        const int32_t at = first * FLOATS_PER_BLOCK;
        AscendC::Maxs(dst[at * dstStride], x[at * xStride], scalar, static_cast<uint64_t>(mask), chunk, params);
    }
}

__aicore__ inline void RowsExp(const Floats& x, int32_t mask, int32_t rows, int32_t stride) {
    const AscendC::UnaryRepeatParams params(1, 1, stride, stride);
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        const Floats at = x[first * FLOATS_PER_BLOCK * stride];
        AscendC::Exp(at, at, static_cast<uint64_t>(mask), chunk, params);
    }
}

__aicore__ inline void RowsMaximum(const Floats& dst, const Floats& x, int32_t mask, int32_t rows, int32_t stride) {
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        AscendC::WholeReduceMax(dst[first], x[first * FLOATS_PER_BLOCK * stride], mask, chunk, 1, 1, stride,
                                AscendC::ReduceOrder::ORDER_ONLY_VALUE);
    }
}

__aicore__ inline void RowsSum(const Floats& dst, const Floats& x, int32_t mask, int32_t rows, int32_t stride) {
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        AscendC::WholeReduceSum(dst[first], x[first * FLOATS_PER_BLOCK * stride], mask, chunk, 1, 1, stride);
    }
}

// dst[r] = reduction of `mask` elements of every row. Whole repeats take two steps of eight to one, which cost two sevenths of
// one step of 64 to one; `scratch` takes a block per row, and is defined for whole groups of 8 rows, as dst is then.
template <typename Reduction>
__aicore__ inline void RowsReduce(const Floats& dst, const Floats& x, int32_t mask, int32_t rows, int32_t stride,
                                  const Floats& scratch) {
    if (mask == LANES) {
        for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
            const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
            Reduction::Run(scratch[first * FLOATS_PER_BLOCK], x[first * FLOATS_PER_BLOCK * stride], chunk, LANES, 1, 1,
                           stride);
        }
        ReduceBlocks<Reduction>(dst, scratch, (rows + 7) / 8 * LANES);
    } else if constexpr (std::is_same<Reduction, BlockSum>::value) {
        RowsSum(dst, x, mask, rows, stride);
    } else {
        RowsMaximum(dst, x, mask, rows, stride);
    }
}

// Bits of the lanes of `lanes` that equal the row's value, which fills a block; eight bytes a row.
__aicore__ inline void RowsEqual(const LocalTensor<uint8_t>& bits, const Floats& lanes, const Floats& values,
                                 int32_t rows) {
    const AscendC::BinaryRepeatParams params(1, 1, 0, 8, 0, 1);
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        AscendC::Compare(bits[first * BLOCKS_PER_REPEAT], lanes, values[first * FLOATS_PER_BLOCK], AscendC::CMPMODE::EQ,
                         static_cast<uint64_t>(LANES), chunk, params);
    }
}

// dst = the bit is set ? x : 0 for `mask` elements of each row; a block stride of 0 takes one value per row.
__aicore__ inline void RowsSelect(const Floats& dst, const LocalTensor<uint8_t>& bits, const Floats& x, int32_t mask,
                                  int32_t rows, int32_t dstStride, int32_t xStride, int32_t xBlockStride) {
    const AscendC::BinaryRepeatParams params(1, xBlockStride, 1, dstStride, xStride, dstStride);
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        const int32_t at = first * FLOATS_PER_BLOCK;
        AscendC::Select(dst[at * dstStride], bits[at], x[at * xStride], 0.0f, AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE,
                        static_cast<uint64_t>(mask), chunk, params);
    }
}

// dst = the bit is set ? x : dst.
__aicore__ inline void RowsReplace(const Floats& dst, const LocalTensor<uint8_t>& bits, const Floats& x, int32_t mask,
                                   int32_t rows, int32_t xStride) {
    const AscendC::BinaryRepeatParams params(1, 1, 1, BLOCKS_PER_REPEAT, xStride, BLOCKS_PER_REPEAT);
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        const int32_t at = first * FLOATS_PER_BLOCK;
        const Floats to = dst[at * BLOCKS_PER_REPEAT];
        AscendC::Select(to, bits[at], x[at * xStride], to, AscendC::SELMODE::VSEL_TENSOR_TENSOR_MODE,
                        static_cast<uint64_t>(mask), chunk, params);
    }
}

// One block per row, filled with the row's value. Reads whole blocks of `values`: they are padded to 8 rows.
__aicore__ inline void BroadcastRows(const Floats& dst, const Floats& values, int32_t rows) {
    const AscendC::BrcbRepeatParams params(1, BLOCKS_PER_REPEAT);
    for (int32_t first = 0; first < rows; first += CHUNK_ROWS) {
        const int32_t chunk = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        AscendC::Brcb(dst[first * FLOATS_PER_BLOCK], values[first], (chunk + 7) / 8, params);
    }
}

}  // namespace ms_ce

#endif
