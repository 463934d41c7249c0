// Scalar types, enums and parameter structs of the Ascend C API, by the names of the public headers.
#ifndef MS_CE_HOST_MODEL_TYPES_H
#define MS_CE_HOST_MODEL_TYPES_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "machine.h"

#define __aicore__
#define __global__
#define __gm__
#define __ubuf__
#define GM_ADDR __gm__ uint8_t*

inline int64_t get_ctrl() { return static_cast<int64_t>(host_model::Current()->control); }
inline void set_ctrl(uint64_t value) { host_model::Current()->control = value; }

using half = _Float16;

struct bfloat16_t {
    uint16_t bits;
};

namespace AscendC {

enum class TPosition : uint8_t { GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, LCM = VECCALC };
enum class HardEvent : uint8_t {
    MTE2_V,
    V_MTE2,
    MTE3_V,
    V_MTE3,
    V_V,
    MTE3_MTE2,
    MTE2_MTE3,
    S_V,
    V_S,
    S_MTE2,
    MTE2_S,
    S_MTE3,
    MTE3_S
};
enum class RoundMode : uint8_t { CAST_NONE = 0, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };
enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX = 0, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };

enum class CacheMode { CACHE_MODE_DISABLE = 0, CACHE_MODE_NORMAL = 1, CACHE_MODE_LAST = 2, CACHE_MODE_PERSISTENT = 4 };
enum class CacheRwMode { READ = 1, WRITE = 2, RW = 3 };

using TEventID = int8_t;

// An integer of an instruction's encoding. The hardware would silently keep the low bits of a value that does not fit.
template <typename Encoded, int64_t LOW, int64_t HIGH>
struct Encodable {
    template <typename Integer>
    Encodable(Integer v) : value(static_cast<Encoded>(v)) {
        const int64_t wide = static_cast<int64_t>(v);
        if (wide < LOW || wide > HIGH)
            host_model::Current()->Fail("an instruction field holds " + std::to_string(wide) + ", its range is [" +
                                        std::to_string(LOW) + ", " + std::to_string(HIGH) + "]");
    }
    operator Encoded() const { return value; }
    Encoded value;
};

using RepeatTime = Encodable<uint8_t, 1, 255>;
using Stride8 = Encodable<uint8_t, 0, 255>;
using Stride16 = Encodable<uint16_t, 0, 65535>;

struct UnaryRepeatParams {
    UnaryRepeatParams() {}
    UnaryRepeatParams(const Stride16 dstBlkStrideIn, const Stride16 srcBlkStrideIn, const Stride8 dstRepStrideIn,
                      const Stride8 srcRepStrideIn)
        : dstBlkStride(dstBlkStrideIn),
          srcBlkStride(srcBlkStrideIn),
          dstRepStride(dstRepStrideIn),
          srcRepStride(srcRepStrideIn) {}
    uint16_t dstBlkStride = 1, srcBlkStride = 1;
    uint8_t dstRepStride = 8, srcRepStride = 8;
};

struct BinaryRepeatParams {
    BinaryRepeatParams() {}
    BinaryRepeatParams(const Stride8 dstBlkStrideIn, const Stride8 src0BlkStrideIn, const Stride8 src1BlkStrideIn,
                       const Stride8 dstRepStrideIn, const Stride8 src0RepStrideIn, const Stride8 src1RepStrideIn)
        : dstBlkStride(dstBlkStrideIn),
          src0BlkStride(src0BlkStrideIn),
          src1BlkStride(src1BlkStrideIn),
          dstRepStride(dstRepStrideIn),
          src0RepStride(src0RepStrideIn),
          src1RepStride(src1RepStrideIn) {}
    uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1;
    uint8_t dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
};

struct BrcbRepeatParams {
    BrcbRepeatParams() {}
    BrcbRepeatParams(const Stride16 dstBlkStrideIn, const Stride16 dstRepStrideIn)
        : dstRepStride(dstRepStrideIn), dstBlkStride(dstBlkStrideIn) {}
    uint16_t dstRepStride = 8, dstBlkStride = 1;
};

struct DataCopyExtParams {
    DataCopyExtParams() {}
    DataCopyExtParams(const Encodable<uint16_t, 1, 4095> count, const Encodable<uint32_t, 1, 2097151> len,
                      const uint32_t srcStrideIn, const uint32_t dstStrideIn, const uint32_t rsvIn)
        : blockCount(count), blockLen(len), srcStride(srcStrideIn), dstStride(dstStrideIn), rsv(rsvIn) {}
    uint16_t blockCount = 1;
    uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;
};

template <typename T>
struct DataCopyPadExtParams {
    DataCopyPadExtParams() {}
    DataCopyPadExtParams(const bool isPadValue, const uint8_t leftPadValue, const uint8_t rightPadValue, T padValue)
        : isPad(isPadValue), leftPadding(leftPadValue), rightPadding(rightPadValue), paddingValue(padValue) {}
    bool isPad = false;
    uint8_t leftPadding = 0, rightPadding = 0;
    T paddingValue{};
};

inline float ToFloat(const bfloat16_t& value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
}

// Round to nearest even, as CAST_RINT does; a NaN stays a NaN, and inf is inf.
inline uint16_t BfloatBits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return static_cast<uint16_t>(value != value ? (bits >> 16 | 0x40u) : rounded);
}

}  // namespace AscendC

enum pipe_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

#endif
