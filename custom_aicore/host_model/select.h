// Comparison, selection by bits, and gathering of every other element, by their public signatures.
#ifndef MS_CE_HOST_MODEL_SELECT_H
#define MS_CE_HOST_MODEL_SELECT_H

#include "instructions.h"

namespace AscendC {

enum class CMPMODE : uint8_t { LT = 0, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR = 0, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };

struct GatherMaskParams {
    GatherMaskParams(const uint8_t blockStride, const uint16_t repeats, const uint16_t repeatStride,
                     const uint8_t patternStride)
        : src0BlockStride(blockStride),
          repeatTimes(repeats),
          src0RepeatStride(repeatStride),
          src1RepeatStride(patternStride) {}
    uint8_t src0BlockStride;
    uint16_t repeatTimes, src0RepeatStride;
    uint8_t src1RepeatStride;
};

// A bit for each of 64 lanes, eight bytes a repeat one after another. The mask has no effect on this chip.
template <typename T, typename U, bool isSetMask = true>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
             const uint64_t, const RepeatTime repeatTime, const BinaryRepeatParams& p) {
    static_assert(sizeof(T) == 4 && sizeof(U) == 1, "the model compares 32-bit elements");
    auto* core = host_model::Current();
    if (cmpMode != CMPMODE::EQ) core->Fail("Compare: only equality is modelled, the only one that int32 has");
    const uint32_t repeats = repeatTime.value, bytes = repeats * 8;
    host_model::BeginVector("Compare", repeats, repeats);
    const auto a = host_model::Bind(src0, p.src0BlkStride, p.src0RepStride, 64, repeats, false, "Compare");
    const auto b = host_model::Bind(src1, p.src1BlkStride, p.src1RepStride, 64, repeats, false, "Compare");
    dst.RequireAligned(host_model::kBlockBytes, "Compare");
    const uint32_t d = dst.Range(host_model::PIPE_VECTOR, 0, bytes, true, "Compare");
    host_model::CountBanks(repeats, d, 0, a.begin, a.repeatStride, b.begin, b.repeatStride,
                           p.src0BlkStride ? host_model::kRepeatBlocks : 1,
                           p.src1BlkStride ? host_model::kRepeatBlocks : 1);
    core->Issue(host_model::PIPE_VECTOR, [=] {
        host_model::RequireRuns<T>(a, 64, repeats, "Compare");
        host_model::RequireRuns<T>(b, 64, repeats, "Compare");
        for (uint32_t r = 0; r < repeats; ++r) {
            uint64_t bits = 0;
            for (uint32_t lane = 0; lane < 64; ++lane) {
                const T x = host_model::At<T>(a.Address(r, lane / 8))[lane % 8];
                const T y = host_model::At<T>(b.Address(r, lane / 8))[lane % 8];
                bits |= uint64_t(x == y) << lane;
            }
            std::memcpy(host_model::At<uint8_t>(d + r * 8), &bits, 8);
        }
        host_model::Current()->MarkWritten(d, bytes);
    });
}

template <typename T, typename U>
void Compare(const LocalTensor<U>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, CMPMODE cmpMode,
             uint32_t count) {
    if (count % 64) host_model::Current()->Fail("Compare: a count that is no multiple of 256 bytes");
    Compare(dst, src0, src1, cmpMode, 64, count / 64, BinaryRepeatParams());
}

// dst = the first source where the bit is 1. `second` gives the other value of a repeat and a lane.
template <typename T, typename U, typename Second>
void SelectRepeats(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, uint32_t mask,
                   uint32_t repeats, const BinaryRepeatParams& p, Second second) {
    static_assert(sizeof(T) == 4 && sizeof(U) == 1, "the model selects 32-bit elements");
    auto* core = host_model::Current();
    const auto a = host_model::Bind(src0, p.src0BlkStride, p.src0RepStride, mask, repeats, false, "Select");
    selMask.RequireAligned(host_model::kBlockBytes, "Select");
    const uint32_t s = selMask.Range(host_model::PIPE_VECTOR, 0, repeats * 8, false, "Select");
    const auto d = host_model::Bind(dst, p.dstBlkStride, p.dstRepStride, mask, repeats, true, "Select");
    host_model::CountBanks(repeats, d.begin, d.repeatStride, a.begin, a.repeatStride);
    core->Issue(host_model::PIPE_VECTOR, [=] {
        core->RequireWritten(s, repeats * 8, "Select");
        host_model::RequireRuns<T>(a, mask, repeats, "Select");
        for (uint32_t r = 0; r < repeats; ++r) {
            uint64_t bits;
            std::memcpy(&bits, host_model::At<uint8_t>(s + r * 8), 8);
            for (uint32_t lane = 0; lane < mask; ++lane) {
                const T x = host_model::At<T>(a.Address(r, lane / 8))[lane % 8];
                host_model::At<T>(d.Address(r, lane / 8))[lane % 8] = bits >> lane & 1 ? x : second(r, lane);
            }
        }
        host_model::ForEachRun<T>(d, mask, repeats, [core](uint32_t at, uint32_t n) { core->MarkWritten(at, n); });
    });
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, uint64_t mask, const RepeatTime repeatTime, const BinaryRepeatParams& repeatParams) {
    if (selMode != SELMODE::VSEL_TENSOR_SCALAR_MODE) host_model::Current()->Fail("Select: a scalar needs its mode");
    host_model::BeginVector("Select", repeatTime.value, repeatTime.value);
    SelectRepeats(dst, selMask, src0, static_cast<uint32_t>(mask), repeatTime.value, repeatParams,
                  [src1](uint32_t, uint32_t) { return src1; });
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0, T src1,
            SELMODE selMode, uint32_t count) {
    if (count % 64) host_model::Current()->Fail("Select: the model selects whole repeats");
    Select(dst, selMask, src0, src1, selMode, uint64_t(64), count / 64, BinaryRepeatParams());
}

template <typename T, typename U, bool isSetMask = true>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, uint64_t mask, const RepeatTime repeatTime,
            const BinaryRepeatParams& p) {
    auto* core = host_model::Current();
    if (selMode != SELMODE::VSEL_TENSOR_TENSOR_MODE) core->Fail("Select: two tensors need their mode");
    const uint32_t repeats = repeatTime.value;
    host_model::BeginVector("Select", repeats, repeats);
    const auto b =
        host_model::Bind(src1, p.src1BlkStride, p.src1RepStride, static_cast<uint32_t>(mask), repeats, false, "Select");
    SelectRepeats(dst, selMask, src0, static_cast<uint32_t>(mask), repeats, p, [b, core](uint32_t r, uint32_t lane) {
        const uint32_t at = b.Address(r, lane / 8) + lane % 8 * sizeof(T);
        core->RequireWritten(at, sizeof(T), "Select");
        return *host_model::At<T>(at);
    });
}

template <typename T, typename U>
void Select(const LocalTensor<T>& dst, const LocalTensor<U>& selMask, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, SELMODE selMode, uint32_t count) {
    if (count % 64) host_model::Current()->Fail("Select: the model selects whole repeats");
    Select(dst, selMask, src0, src1, selMode, uint64_t(64), count / 64, BinaryRepeatParams());
}

// Of 64 elements a repeat the first of every two (pattern 1) or the second (pattern 2), one after another.
template <typename T>
void GatherMask(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const uint8_t src1Pattern, const bool reduceMode,
                const uint32_t mask, const GatherMaskParams& p, uint64_t& rsvdCnt) {
    static_assert(sizeof(T) == 4, "the model gathers 32-bit elements");
    auto* core = host_model::Current();
    if (reduceMode || mask != 0 || src1Pattern < 1 || src1Pattern > 2 || p.src0BlockStride != 1 ||
        p.src0RepeatStride != 8)
        core->Fail("GatherMask: only whole dense repeats and patterns 1 and 2 are modelled");
    const uint32_t repeats = p.repeatTimes, first = src1Pattern - 1;
    host_model::BeginVector("GatherMask", repeats, repeats);
    dst.RequireAligned(host_model::kBlockBytes, "GatherMask");
    const auto a = host_model::Bind(src0, 1, 8, 64, repeats, false, "GatherMask");
    const uint32_t d = dst.Range(host_model::PIPE_VECTOR, 0, repeats * 128, true, "GatherMask");
    rsvdCnt = repeats * 32;
    core->Issue(host_model::PIPE_VECTOR, [=] {
        host_model::RequireRuns<T>(a, 64, repeats, "GatherMask");
        for (uint32_t i = 0; i < repeats * 32; ++i) host_model::At<T>(d)[i] = host_model::At<T>(a.begin)[2 * i + first];
        core->MarkWritten(d, repeats * 128);
    });
}

}  // namespace AscendC

#endif
