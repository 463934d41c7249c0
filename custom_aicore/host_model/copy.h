// Copies between global memory and the unified buffer.
#ifndef MS_CE_HOST_MODEL_COPY_H
#define MS_CE_HOST_MODEL_COPY_H

#include "vector.h"

namespace AscendC {

// Every block lands on a 32-byte boundary; what fills it up is `paddingValue` where isPad asks for it, unknown otherwise.
// srcStride is the gap in global memory in bytes, dstStride the gap in the unified buffer in 32-byte blocks.
template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& dataCopyParams,
                 const DataCopyPadExtParams<T>& padParams) {
    auto* core = host_model::Current();
    const char* what = "DataCopyPad to the unified buffer";
    const uint32_t length = dataCopyParams.blockLen, count = dataCopyParams.blockCount;
    const uint32_t right = padParams.isPad ? padParams.rightPadding * static_cast<uint32_t>(sizeof(T)) : 0;
    if (padParams.isPad && (padParams.leftPadding != 0 || right > host_model::kBlockBytes))
        core->Fail("DataCopyPad: padding beyond one block");
    if (length % sizeof(T)) core->Fail("DataCopyPad: a block that ends inside an element");
    const uint32_t landed =
        (length + right + host_model::kBlockBytes - 1) / host_model::kBlockBytes * host_model::kBlockBytes;
    const uint32_t pitch = landed + dataCopyParams.dstStride * host_model::kBlockBytes;
    dst.RequireAligned(host_model::kBlockBytes, what);
    core->Tick(host_model::PIPE_LOAD);
    const uint8_t* from = reinterpret_cast<const uint8_t*>(src.GetPhyAddr());
    const uint64_t span = uint64_t(count - 1) * (length + dataCopyParams.srcStride) + length;
    auto& buffer = core->gm->Locate(from, span, what);
    for (uint32_t b = 0; b < count; ++b) {
        const uint64_t begin = from - buffer.base + uint64_t(b) * (length + dataCopyParams.srcStride);
        core->CheckReadable(buffer, begin, begin + length);
        core->counters.CopiedBlock(begin, length, count);
        if (src.BypassesCache() || !buffer.bypassed.empty())
            host_model::GlobalMemory::CheckLastRead(buffer, begin, begin + length, src.BypassesCache());
    }
    if (src.BypassesCache()) core->counters.bypassingBytes += int64_t(count) * length;
    buffer.bytesRead += int64_t(count) * length;
    host_model::GlobalMemory::CountCopy(buffer, int64_t(count) * length);
    for (uint32_t b = 0; b < count; ++b) dst.Range(host_model::PIPE_LOAD, uint64_t(b) * pitch, landed, true, what);
    const uint32_t begin = dst.Begin(), gap = dataCopyParams.srcStride;
    const T padding = padParams.paddingValue;
    core->Issue(host_model::PIPE_LOAD, [=] {
        for (uint32_t b = 0; b < count; ++b) {
            const uint32_t at = begin + b * pitch;
            core->MarkUnwritten(at, landed);
            std::memcpy(core->ub.data() + at, from + uint64_t(b) * (length + gap), length);
            for (uint32_t pad = length; pad < length + right; pad += sizeof(T))
                std::memcpy(core->ub.data() + at + pad, &padding, sizeof(T));
            core->MarkWritten(at, length + right);
        }
    });
}

// srcStride is the gap in the unified buffer in 32-byte blocks, dstStride the gap in global memory in bytes.
template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& dataCopyParams) {
    auto* core = host_model::Current();
    const char* what = "DataCopyPad to global memory";
    const uint32_t length = dataCopyParams.blockLen, count = dataCopyParams.blockCount;
    const uint32_t landed = (length + host_model::kBlockBytes - 1) / host_model::kBlockBytes * host_model::kBlockBytes;
    const uint32_t pitch = landed + dataCopyParams.srcStride * host_model::kBlockBytes;
    if (length % sizeof(T)) core->Fail("DataCopyPad: a block that ends inside an element");
    src.RequireAligned(host_model::kBlockBytes, what);
    core->Tick(host_model::PIPE_STORE);
    uint8_t* to = reinterpret_cast<uint8_t*>(const_cast<T*>(dst.GetPhyAddr()));
    const uint64_t gap = dataCopyParams.dstStride, span = uint64_t(count - 1) * (length + gap) + length;
    auto& buffer = core->gm->Locate(to, span, what);
    for (uint32_t b = 0; b < count; ++b) {
        src.Range(host_model::PIPE_STORE, uint64_t(b) * pitch, length, false, what);
        const uint64_t begin = to - buffer.base + uint64_t(b) * (length + gap);
        core->counters.CopiedBlock(begin, length, count);
        core->gm->RecordWrite(buffer, begin, begin + length, core->block, core->Now(host_model::PIPE_STORE));
    }
    host_model::GlobalMemory::CountCopy(buffer, int64_t(count) * length);
    const uint32_t begin = src.Begin();
    core->Issue(host_model::PIPE_STORE, [=] {
        for (uint32_t b = 0; b < count; ++b) {
            core->RequireWritten(begin + b * pitch, length, what);
            std::memcpy(to + uint64_t(b) * (length + gap), core->ub.data() + begin + b * pitch, length);
        }
    });
}

}  // namespace AscendC

#endif
