// Vector instructions: what they compute, the operands they touch and the repeats they cost (256 bytes of the widest
// operand each). A count form covers `count` consecutive elements; a mask form applies a mask to every repeat.
#ifndef MS_CE_HOST_MODEL_VECTOR_H
#define MS_CE_HOST_MODEL_VECTOR_H

#include <type_traits>

#include "tensor.h"

namespace host_model {

constexpr uint32_t kRepeatBytes = 256;

template <typename T>
T* At(uint32_t offset) {
    return reinterpret_cast<T*>(Current()->ub.data() + offset);
}

inline int64_t RepeatsFor(uint64_t bytes) { return static_cast<int64_t>((bytes + kRepeatBytes - 1) / kRepeatBytes); }

inline void BeginVector(const char* what, int64_t count, int64_t repeats) {
    Machine* core = Current();
    if (count <= 0) core->Fail(std::string(what) + " gets a count of " + std::to_string(count));
    core->Tick(PIPE_VECTOR);
    core->counters.Begin(what, repeats);
}

// Bank groups of an instruction's operands, repeat by repeat; strides are in blocks.
inline void CountBanks(uint32_t repeats, uint32_t d, uint32_t dStride, uint32_t a, uint32_t aStride) {
    Counters& counters = Current()->counters;
    for (uint32_t r = 0; r < repeats; ++r) {
        counters.Operand(0, d + r * dStride * kBlockBytes);
        counters.Operand(1, a + r * aStride * kBlockBytes);
    }
}
inline void CountBanks(uint32_t repeats, uint32_t d, uint32_t dStride, uint32_t a, uint32_t aStride, uint32_t b,
                       uint32_t bStride, uint32_t aBlocks, uint32_t bBlocks) {
    CountBanks(repeats, d, dStride, a, aStride);
    Counters& counters = Current()->counters;
    for (uint32_t r = 0; r < repeats; ++r) {
        counters.Operand(2, b + r * bStride * kBlockBytes);
        counters.Sources(a + r * aStride * kBlockBytes, aBlocks, b + r * bStride * kBlockBytes, bBlocks);
    }
}

// Operands are read and written in the same beat, so they may coincide but not overlap in part.
inline void CheckOverlap(uint32_t a, uint64_t aBytes, uint32_t b, uint64_t bBytes, const char* what) {
    const bool coincide = a == b && aBytes == bBytes;
    if (!coincide && a < b + bBytes && b < a + aBytes)
        Current()->Fail(std::string(what) + ": operands overlap in part");
}

// A strided operand of a mask form: `repeats` runs of blocks.
struct Strided {
    uint32_t begin, blockStride, repeatStride;  // bytes, blocks, blocks
    uint32_t Address(uint32_t repeat, uint32_t blockIndex) const {
        return begin + (repeat * repeatStride + blockIndex * blockStride) * kBlockBytes;
    }
};

template <typename T, typename Visit>
void ForEachRun(const Strided& operand, uint32_t mask, uint32_t repeats, Visit visit) {
    constexpr uint32_t kPerBlock = kBlockBytes / sizeof(T);
    const uint32_t runBytes = mask * sizeof(T);
    if (operand.blockStride == 1) {
        if (operand.repeatStride * kBlockBytes == runBytes) {
            visit(operand.begin, runBytes * repeats);
            return;
        }
        for (uint32_t r = 0; r < (operand.repeatStride ? repeats : 1); ++r) visit(operand.Address(r, 0), runBytes);
        return;
    }
    for (uint32_t r = 0; r < (operand.repeatStride ? repeats : 1); ++r)
        for (uint32_t done = 0, b = 0; done < mask; done += kPerBlock, ++b)
            visit(operand.Address(r, b), std::min(kPerBlock, mask - done) * static_cast<uint32_t>(sizeof(T)));
}

template <typename T>
Strided Bind(const AscendC::LocalTensor<T>& tensor, uint32_t blockStride, uint32_t repeatStride, uint32_t mask,
             uint32_t repeats, bool write, const char* what) {
    tensor.RequireAligned(kBlockBytes, what);
    if (mask == 0 || mask * sizeof(T) > kRepeatBytes)
        Current()->Fail(std::string(what) + ": mask of " + std::to_string(mask) + " elements");
    const Strided operand{tensor.Begin(), blockStride, repeatStride};
    ForEachRun<T>(operand, mask, repeats, [&](uint32_t at, uint32_t bytes) {
        tensor.Range(PIPE_VECTOR, at - tensor.Begin(), bytes, write, what);
    });
    return operand;
}

template <typename T>
void RequireRuns(const Strided& operand, uint32_t mask, uint32_t repeats, const char* what) {
    ForEachRun<T>(operand, mask, repeats,
                  [&](uint32_t at, uint32_t bytes) { Current()->RequireWritten(at, bytes, what); });
}

template <typename T, typename F>
void BinaryCount(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,
                 const AscendC::LocalTensor<T>& src1, int32_t count, F f, const char* what) {
    const uint64_t bytes = uint64_t(count > 0 ? count : 0) * sizeof(T);
    BeginVector(what, count, RepeatsFor(bytes));
    for (const auto* t : {&dst, &src0, &src1}) t->RequireAligned(kBlockBytes, what);
    const uint32_t a = src0.Range(PIPE_VECTOR, 0, bytes, false, what),
                   b = src1.Range(PIPE_VECTOR, 0, bytes, false, what);
    const uint32_t d = dst.Range(PIPE_VECTOR, 0, bytes, true, what);
    CheckOverlap(d, bytes, a, bytes, what);
    CheckOverlap(d, bytes, b, bytes, what);
    CountBanks(static_cast<uint32_t>(RepeatsFor(bytes)), d, 8, a, 8, b, 8, kRepeatBlocks, kRepeatBlocks);
    Current()->Issue(PIPE_VECTOR, [=] {
        Current()->RequireWritten(a, bytes, what);
        Current()->RequireWritten(b, bytes, what);
        const T *x = At<T>(a), *y = At<T>(b);
        T* out = At<T>(d);
        for (int32_t i = 0; i < count; ++i) out[i] = f(x[i], y[i]);
        Current()->MarkWritten(d, bytes);
    });
}

template <typename T, typename F>
void BinaryMask(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,
                const AscendC::LocalTensor<T>& src1, uint64_t mask64, uint32_t repeats,
                const AscendC::BinaryRepeatParams& p, F f, const char* what) {
    BeginVector(what, repeats, repeats);
    const uint32_t mask = static_cast<uint32_t>(std::min<uint64_t>(mask64, 1u << 20));
    const Strided a = Bind(src0, p.src0BlkStride, p.src0RepStride, mask, repeats, false, what);
    const Strided b = Bind(src1, p.src1BlkStride, p.src1RepStride, mask, repeats, false, what);
    const Strided d = Bind(dst, p.dstBlkStride, p.dstRepStride, mask, repeats, true, what);
    if (p.dstRepStride == 0 && repeats > 1) Current()->Fail(std::string(what) + ": every repeat writes the same place");
    CountBanks(repeats, d.begin, d.repeatStride, a.begin, a.repeatStride, b.begin, b.repeatStride,
               p.src0BlkStride ? kRepeatBlocks : 1, p.src1BlkStride ? kRepeatBlocks : 1);
    Current()->Issue(PIPE_VECTOR, [=] {
        constexpr uint32_t kPerBlock = kBlockBytes / sizeof(T);
        RequireRuns<T>(a, mask, repeats, what);
        RequireRuns<T>(b, mask, repeats, what);
        const bool dense = a.blockStride == 1 && b.blockStride == 1 && d.blockStride == 1;
        for (uint32_t r = 0; r < repeats; ++r) {
            for (uint32_t done = 0, block = 0; done < mask; ++block) {
                const uint32_t run = dense ? mask : std::min(kPerBlock, mask - done);
                const T *x = At<T>(a.Address(r, block)), *y = At<T>(b.Address(r, block));
                T* out = At<T>(d.Address(r, block));
                for (uint32_t i = 0; i < run; ++i) out[i] = f(x[i], y[i]);
                done += run;
            }
        }
        ForEachRun<T>(d, mask, repeats, [](uint32_t at, uint32_t bytes) { Current()->MarkWritten(at, bytes); });
    });
}

template <typename D, typename S, typename F>
void UnaryCount(const AscendC::LocalTensor<D>& dst, const AscendC::LocalTensor<S>& src, int32_t count, F f,
                const char* what) {
    const uint64_t n = count > 0 ? count : 0;
    BeginVector(what, count, RepeatsFor(n * std::max(sizeof(D), sizeof(S))));
    dst.RequireAligned(kBlockBytes, what);
    src.RequireAligned(kBlockBytes, what);
    const uint32_t a = src.Range(PIPE_VECTOR, 0, n * sizeof(S), false, what);
    const uint32_t d = dst.Range(PIPE_VECTOR, 0, n * sizeof(D), true, what);
    CheckOverlap(d, n * sizeof(D), a, n * sizeof(S), what);
    CountBanks(static_cast<uint32_t>(RepeatsFor(n * std::max(sizeof(D), sizeof(S)))), d,
               8 * sizeof(D) / std::max(sizeof(D), sizeof(S)), a, 8 * sizeof(S) / std::max(sizeof(D), sizeof(S)));
    Current()->Issue(PIPE_VECTOR, [=] {
        Current()->RequireWritten(a, n * sizeof(S), what);
        const S* x = At<S>(a);
        D* out = At<D>(d);
        for (uint64_t i = 0; i < n; ++i) out[i] = f(x[i]);
        Current()->MarkWritten(d, n * sizeof(D));
    });
}

template <typename T, typename F>
void UnaryMask(const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src, uint64_t mask64,
               uint32_t repeats, const AscendC::UnaryRepeatParams& p, F f, const char* what) {
    BeginVector(what, repeats, repeats);
    const uint32_t mask = static_cast<uint32_t>(std::min<uint64_t>(mask64, 1u << 20));
    const Strided a = Bind(src, p.srcBlkStride, p.srcRepStride, mask, repeats, false, what);
    const Strided d = Bind(dst, p.dstBlkStride, p.dstRepStride, mask, repeats, true, what);
    if (p.dstRepStride == 0 && repeats > 1) Current()->Fail(std::string(what) + ": every repeat writes the same place");
    if (a.blockStride != 1 || d.blockStride != 1)
        Current()->Fail(std::string(what) + ": block strides are not modelled");
    CountBanks(repeats, d.begin, d.repeatStride, a.begin, a.repeatStride);
    Current()->Issue(PIPE_VECTOR, [=] {
        RequireRuns<T>(a, mask, repeats, what);
        for (uint32_t r = 0; r < repeats; ++r) {
            const T* x = At<T>(a.Address(r, 0));
            T* out = At<T>(d.Address(r, 0));
            for (uint32_t i = 0; i < mask; ++i) out[i] = f(x[i]);
        }
        ForEachRun<T>(d, mask, repeats, [](uint32_t at, uint32_t bytes) { Current()->MarkWritten(at, bytes); });
    });
}

// One value per repeat, `dstRepStride` elements apart. Pairwise, so that the order does not depend on the mask's length.
template <typename F>
void ReduceRepeats(const AscendC::LocalTensor<float>& dst, const AscendC::LocalTensor<float>& src, int32_t mask,
                   AscendC::RepeatTime repeatTime, int32_t dstRepStride, int32_t srcBlkStride, int32_t srcRepStride,
                   float identity, F f, const char* what) {
    const uint32_t repeats = repeatTime.value;
    BeginVector(what, repeats, repeats);
    if (srcBlkStride != 1) Current()->Fail(std::string(what) + ": block strides are not modelled");
    const Strided a = Bind(src, 1, AscendC::Stride16(srcRepStride), mask, repeats, false, what);
    const uint32_t bytes = ((repeats - 1) * dstRepStride + 1) * sizeof(float);
    const uint32_t d = dst.Range(PIPE_VECTOR, 0, bytes, true, what);
    Current()->Issue(PIPE_VECTOR, [=] {
        RequireRuns<float>(a, mask, repeats, what);
        for (uint32_t r = 0; r < repeats; ++r) {
            float lanes[64];
            for (int i = 0; i < 64; ++i) lanes[i] = i < mask ? At<float>(a.Address(r, 0))[i] : identity;
            for (int half = 32; half; half /= 2)
                for (int i = 0; i < half; ++i) lanes[i] = f(lanes[i], lanes[i + half]);
            const uint32_t at = d + r * dstRepStride * sizeof(float);
            *At<float>(at) = lanes[0];
            Current()->MarkWritten(at, sizeof(float));
        }
    });
}

// Eight values per repeat, one of each block; what a block yields that the mask leaves out is not known.
template <typename F>
void ReduceBlocks(const AscendC::LocalTensor<float>& dst, const AscendC::LocalTensor<float>& src, int32_t mask,
                  AscendC::RepeatTime repeatTime, int32_t dstRepStride, int32_t srcBlkStride, int32_t srcRepStride, F f,
                  const char* what) {
    constexpr uint32_t kPerBlock = kBlockBytes / sizeof(float);
    const uint32_t repeats = repeatTime.value;
    BeginVector(what, repeats, repeats);
    if (srcBlkStride != 1) Current()->Fail(std::string(what) + ": block strides are not modelled");
    dst.RequireAligned(kBlockBytes, what);
    const Strided a = Bind(src, 1, AscendC::Stride16(srcRepStride), mask, repeats, false, what);
    const uint32_t stride = dstRepStride * kBlockBytes, bytes = (repeats - 1) * stride + kBlockBytes;
    const uint32_t d = dst.Range(PIPE_VECTOR, 0, bytes, true, what);
    if (d < a.Address(repeats - 1, 0) + mask * sizeof(float) && a.begin < d + bytes)
        Current()->Fail(std::string(what) + ": operands overlap");
    CountBanks(repeats, d, dstRepStride, a.begin, a.repeatStride);
    Current()->Issue(PIPE_VECTOR, [=] {
        RequireRuns<float>(a, mask, repeats, what);
        for (uint32_t r = 0; r < repeats; ++r) {
            const uint32_t at = d + r * stride;
            Current()->MarkUnwritten(at, kBlockBytes);
            for (uint32_t block = 0; block * kPerBlock < static_cast<uint32_t>(mask); ++block) {
                const float* x = At<float>(a.Address(r, block));
                const uint32_t count = std::min(kPerBlock, static_cast<uint32_t>(mask) - block * kPerBlock);
                float value = x[0];
                for (uint32_t i = 1; i < count; ++i) value = f(value, x[i]);
                At<float>(at)[block] = value;
                Current()->MarkWritten(at + block * sizeof(float), sizeof(float));
            }
        }
    });
}

}  // namespace host_model

#endif
