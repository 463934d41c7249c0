// The vector API by its public signatures (asc-devkit, include/basic_api), on top of vector.h. Repeat times and strides are
// parameters that check their range, since an implicit conversion to uint8_t would drop the high bits in silence.
#ifndef MS_CE_HOST_MODEL_INSTRUCTIONS_H
#define MS_CE_HOST_MODEL_INSTRUCTIONS_H

#include "vector.h"

namespace host_model {

// Exponential of fp32, to about one unit in the last place: argument reduction by ln 2 and a polynomial, so that the
// compiler vectorises it.
inline float Exponential(float x) {
    constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    const float clamped = x < -87.5f ? -87.5f : (x > 89.0f ? 89.0f : x);
    const float shifted = clamped * kLog2E + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = clamped - n * kLn2High - n * kLn2Low;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t exponent;
    std::memcpy(&exponent, &shifted, sizeof(exponent));
    // Two factors of 2^(n/2) keep the scale in range for every n that can arise.
    const int32_t scale = exponent - 0x4b400000, first = scale / 2, second = scale - first;
    const int32_t firstBits = (first + 127) << 23, secondBits = (second + 127) << 23;
    float a, b;
    std::memcpy(&a, &firstBits, sizeof(a));
    std::memcpy(&b, &secondBits, sizeof(b));
    const float y = p * a * b;
    return x < -87.5f ? 0.0f : y;
}

// Whether a maximum of NaN and a number is NaN is not documented; a launch says which it is.
template <typename T>
T Larger(T a, T b, bool dropsNotANumber) {
    if (a != a) return dropsNotANumber ? b : a;
    if (b != b) return dropsNotANumber ? a : b;
    return b > a ? b : a;
}

// fp32 as 16 bits. In saturation mode, which the chip starts in, NaN becomes 0 and inf the largest number.
template <typename T>
T Narrow(float value, bool saturates) {
    constexpr bool kBfloat = std::is_same_v<T, bfloat16_t>;
    if (saturates && value != value) value = 0.0f;
    T narrow;
    if constexpr (kBfloat)
        narrow.bits = AscendC::BfloatBits(value);
    else
        narrow = static_cast<T>(value);
    uint16_t bits;
    std::memcpy(&bits, &narrow, sizeof(bits));
    constexpr uint16_t kInfinity = kBfloat ? 0x7f80 : 0x7c00;
    if (saturates && (bits & 0x7fff) == kInfinity) --bits;
    std::memcpy(&narrow, &bits, sizeof(bits));
    return narrow;
}
constexpr uint64_t kSaturationOff = 1ull << 48;  // bit of the control register

}  // namespace host_model

namespace AscendC {

#define MS_CE_MODEL_BINARY(NAME, EXPRESSION)                                                                          \
    template <typename T, bool isSetMask = true>                                                                      \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, uint64_t mask,       \
              const RepeatTime repeatTime, const BinaryRepeatParams& repeatParams) {                                  \
        [[maybe_unused]] const bool drops = host_model::Current()->settings.maximumDropsNotANumber;                   \
        host_model::BinaryMask(                                                                                       \
            dst, src0, src1, mask, repeatTime.value, repeatParams, [=](T a, T b) -> T { return EXPRESSION; }, #NAME); \
    }                                                                                                                 \
    template <typename T>                                                                                             \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,                      \
              const int32_t& count) {                                                                                 \
        [[maybe_unused]] const bool drops = host_model::Current()->settings.maximumDropsNotANumber;                   \
        host_model::BinaryCount(                                                                                      \
            dst, src0, src1, count, [=](T a, T b) -> T { return EXPRESSION; }, #NAME);                                \
    }

MS_CE_MODEL_BINARY(Add, a + b)
MS_CE_MODEL_BINARY(Sub, a - b)
MS_CE_MODEL_BINARY(Mul, a* b)
MS_CE_MODEL_BINARY(Div, a / b)
MS_CE_MODEL_BINARY(Max, host_model::Larger(a, b, drops))
#undef MS_CE_MODEL_BINARY

#define MS_CE_MODEL_BINARY_SCALAR(NAME, EXPRESSION)                                                               \
    template <typename T, bool isSetMask = true>                                                                  \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask,          \
              const RepeatTime repeatTime, const UnaryRepeatParams& repeatParams) {                               \
        const T b = scalarValue;                                                                                  \
        [[maybe_unused]] const bool drops = host_model::Current()->settings.maximumDropsNotANumber;               \
        host_model::UnaryMask(                                                                                    \
            dst, src, mask, repeatTime.value, repeatParams, [=](T a) -> T { return EXPRESSION; }, #NAME);         \
    }                                                                                                             \
    template <typename T, bool isSetMask = true>                                                                  \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, const int32_t& count) { \
        const T b = scalarValue;                                                                                  \
        [[maybe_unused]] const bool drops = host_model::Current()->settings.maximumDropsNotANumber;               \
        host_model::UnaryCount(                                                                                   \
            dst, src, count, [=](T a) -> T { return EXPRESSION; }, #NAME);                                        \
    }

MS_CE_MODEL_BINARY_SCALAR(Adds, a + b)
MS_CE_MODEL_BINARY_SCALAR(Muls, a* b)
MS_CE_MODEL_BINARY_SCALAR(Maxs, host_model::Larger(a, b, drops))
MS_CE_MODEL_BINARY_SCALAR(Mins, (b < a ? b : a))
#undef MS_CE_MODEL_BINARY_SCALAR

// Bit mask form, one repeat: only lanes whose bit is set are read and written.
template <typename T, bool isSetMask = true>
void Adds(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue, uint64_t mask[],
          const RepeatTime repeatTime, const UnaryRepeatParams&) {
    static_assert(sizeof(T) == 4, "the model knows the bit mask of 32-bit elements");
    const uint64_t bits = mask[0];
    auto* core = host_model::Current();
    if (repeatTime.value != 1 || bits == 0 || mask[1] != 0) core->Fail("Adds: bit mask form with an unusable mask");
    host_model::BeginVector("Adds", 1, 1);
    dst.RequireAligned(host_model::kBlockBytes, "Adds");
    src.RequireAligned(host_model::kBlockBytes, "Adds");
    const T scalar = scalarValue;
    for (int lane = 0; lane < 64; ++lane) {
        if (!(bits >> lane & 1)) continue;
        const uint32_t a = src.Range(host_model::PIPE_VECTOR, lane * sizeof(T), sizeof(T), false, "Adds");
        const uint32_t d = dst.Range(host_model::PIPE_VECTOR, lane * sizeof(T), sizeof(T), true, "Adds");
        core->Issue(host_model::PIPE_VECTOR, [core, a, d, scalar] {
            core->RequireWritten(a, sizeof(T), "Adds");
            *host_model::At<T>(d) = *host_model::At<T>(a) + scalar;
            core->MarkWritten(d, sizeof(T));
        });
    }
}

#define MS_CE_MODEL_UNARY(NAME, EXPRESSION)                                                                     \
    template <typename T, bool isSetMask = true>                                                                \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask, const RepeatTime repeatTime, \
              const UnaryRepeatParams& repeatParams) {                                                          \
        host_model::UnaryMask(                                                                                  \
            dst, src, mask, repeatTime.value, repeatParams, [](T a) -> T { return EXPRESSION; }, #NAME);        \
    }                                                                                                           \
    template <typename T>                                                                                       \
    void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count) {                     \
        host_model::UnaryCount(                                                                                 \
            dst, src, count, [](T a) -> T { return EXPRESSION; }, #NAME);                                       \
    }

MS_CE_MODEL_UNARY(Exp, host_model::Exponential(a))
MS_CE_MODEL_UNARY(Ln, std::log(a))
#undef MS_CE_MODEL_UNARY

template <typename T, typename U>
void Axpy(const LocalTensor<T>& dst, const LocalTensor<U>& src, const U& scalarValue, const int32_t& count) {
    static_assert(std::is_same_v<T, U>, "the model knows Axpy of equal types");
    const T scalar = scalarValue;
    host_model::BinaryCount(
        dst, dst, src, count, [scalar](T a, T b) -> T { return a + b * scalar; }, "Axpy");
}

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count) {
    const uint64_t bytes = uint64_t(count > 0 ? count : 0) * sizeof(T);
    host_model::BeginVector("Duplicate", count, host_model::RepeatsFor(bytes));
    dst.RequireAligned(host_model::kBlockBytes, "Duplicate");
    const uint32_t d = dst.Range(host_model::PIPE_VECTOR, 0, bytes, true, "Duplicate");
    const T value = scalarValue;
    for (int64_t r = 0; r < host_model::RepeatsFor(bytes); ++r)
        host_model::Current()->counters.Operand(0, d + static_cast<uint32_t>(r) * host_model::kRepeatBytes);
    host_model::Current()->Issue(host_model::PIPE_VECTOR, [=] {
        for (int32_t i = 0; i < count; ++i) host_model::At<T>(d)[i] = value;
        host_model::Current()->MarkWritten(d, bytes);
    });
}

// Widening takes CAST_NONE; narrowing from fp32 rounds to nearest even with CAST_RINT.
template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const uint32_t count) {
    constexpr bool kWidens = sizeof(T) > sizeof(U) || std::is_same_v<U, int32_t>;
    static_assert(kWidens ? std::is_same_v<T, float> : std::is_same_v<U, float>,
                  "a cast the vector unit does not have");
    if ((roundMode == RoundMode::CAST_NONE) != kWidens)
        host_model::Current()->Fail("Cast: this pair of types does not take this round mode");
    const bool saturates = !(host_model::Current()->control & host_model::kSaturationOff);
    host_model::UnaryCount(
        dst, src, static_cast<int32_t>(count),
        [saturates](U a) -> T {
            if constexpr (std::is_same_v<U, bfloat16_t>)
                return ToFloat(a);
            else if constexpr (!kWidens)
                return host_model::Narrow<T>(a, saturates);
            else
                return static_cast<T>(a);
        },
        "Cast");
}

// Eight values per repeat, each filling one 32-byte block.
template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, const RepeatTime repeatTime,
          const BrcbRepeatParams& repeatParams) {
    static_assert(sizeof(T) == 4, "the model knows Brcb of 32-bit elements");
    const uint32_t repeats = repeatTime.value;
    if (repeatParams.dstBlkStride != 1 || repeatParams.dstRepStride != 8)
        host_model::Current()->Fail("Brcb: only dense output is modelled");
    host_model::BeginVector("Brcb", repeats, repeats);
    src.RequireAligned(host_model::kBlockBytes, "Brcb");
    dst.RequireAligned(host_model::kBlockBytes, "Brcb");
    const uint32_t bytes = repeats * host_model::kBlockBytes;
    const uint32_t a = src.Range(host_model::PIPE_VECTOR, 0, bytes, false, "Brcb");
    const uint32_t d = dst.Range(host_model::PIPE_VECTOR, 0, bytes * 8, true, "Brcb");
    host_model::Current()->Issue(host_model::PIPE_VECTOR, [=] {
        host_model::Current()->RequireWritten(a, bytes, "Brcb");
        for (uint32_t i = 0; i < repeats * 8; ++i)
            for (uint32_t j = 0; j < 8; ++j) host_model::At<T>(d)[i * 8 + j] = host_model::At<T>(a)[i];
        host_model::Current()->MarkWritten(d, bytes * 8);
    });
}

template <typename T, bool isSetMask = true>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask, const int32_t repeatTime,
                    const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride) {
    host_model::ReduceRepeats(
        dst, src, mask, repeatTime, dstRepStride, srcBlkStride, srcRepStride, 0.0f,
        [](float a, float b) { return a + b; }, "WholeReduceSum");
}

template <typename T, bool isSetMask = true>
void WholeReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t mask, const int32_t repeatTime,
                    const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride,
                    ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX) {
    if (order != ReduceOrder::ORDER_ONLY_VALUE) host_model::Current()->Fail("WholeReduceMax: only values are modelled");
    host_model::ReduceRepeats(
        dst, src, mask, repeatTime, dstRepStride, srcBlkStride, srcRepStride, -std::numeric_limits<float>::infinity(),
        [drops = host_model::Current()->settings.maximumDropsNotANumber](float a, float b) {
            return host_model::Larger(a, b, drops);
        },
        "WholeReduceMax");
}

template <typename T, bool isSetMask = true>
void BlockReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const int32_t mask,
                    const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride) {
    host_model::ReduceBlocks(
        dst, src, mask, repeatTime, dstRepStride, srcBlkStride, srcRepStride, [](float a, float b) { return a + b; },
        "BlockReduceSum");
}

template <typename T, bool isSetMask = true>
void BlockReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime, const int32_t mask,
                    const int32_t dstRepStride, const int32_t srcBlkStride, const int32_t srcRepStride) {
    host_model::ReduceBlocks(
        dst, src, mask, repeatTime, dstRepStride, srcBlkStride, srcRepStride,
        [drops = host_model::Current()->settings.maximumDropsNotANumber](float a, float b) {
            return host_model::Larger(a, b, drops);
        },
        "BlockReduceMax");
}

}  // namespace AscendC

#endif
