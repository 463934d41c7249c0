// Global memory as the launcher registers it: every tensor is a range of bytes, with who wrote what and when.
#ifndef MS_CE_HOST_MODEL_GLOBAL_MEMORY_H
#define MS_CE_HOST_MODEL_GLOBAL_MEMORY_H

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace host_model {

// A run of bytes that one block wrote between two SyncAll; `time` is the store pipe's clock at the last byte.
struct WriteRecord {
    uint64_t begin, end;
    int64_t block;
    int epoch;
    uint32_t time;
};

struct GlobalBuffer {
    std::string name;
    uint8_t* base;
    uint64_t bytes;
    bool writable;
    int64_t bytesRead = 0, bytesWritten = 0, copies = 0, smallestCopy = 0;
    std::vector<WriteRecord> writes;
    std::map<uint64_t, uint64_t> bypassed;  // ranges of bytes that were read past the L2 cache, apart from each other
};

class GlobalMemory {
public:
    std::vector<GlobalBuffer> buffers;
    int epoch = 0;  // number of SyncAll passed

    GlobalBuffer& Locate(const uint8_t* address, uint64_t bytes, const char* what) {
        for (GlobalBuffer& buffer : buffers) {
            if (address < buffer.base || address > buffer.base + buffer.bytes) continue;
            if (address + bytes <= buffer.base + buffer.bytes) return buffer;
            if (address == buffer.base + buffer.bytes) continue;
            throw std::runtime_error(std::string(what) + " runs past the end of " + buffer.name +
                                     " in global memory: bytes [" + std::to_string(address - buffer.base) + ", +" +
                                     std::to_string(bytes) + ") of " + std::to_string(buffer.bytes));
        }
        throw std::runtime_error(std::string(what) + " touches global memory outside every tensor of the kernel");
    }

    static void CountCopy(GlobalBuffer& buffer, int64_t bytes) {
        ++buffer.copies;
        buffer.smallestCopy = buffer.copies == 1 ? bytes : std::min(buffer.smallestCopy, bytes);
    }

    // A read past the L2 cache must be the last one of its bytes: another would wait for the memory again.
    static void CheckLastRead(GlobalBuffer& buffer, uint64_t begin, uint64_t end, bool bypasses) {
        auto& ranges = buffer.bypassed;
        const auto next = ranges.upper_bound(begin);
        const auto before = next == ranges.begin() ? ranges.end() : std::prev(next);
        if ((next != ranges.end() && next->first < end) || (before != ranges.end() && before->second > begin))
            throw std::runtime_error("the kernel reads bytes of " + buffer.name +
                                     " again that it read past the L2 cache");
        if (!bypasses) return;
        if (before != ranges.end() && before->second == begin)
            before->second = end;
        else
            ranges.emplace(begin, end);
    }

    void RecordWrite(GlobalBuffer& buffer, uint64_t begin, uint64_t end, int64_t block, uint32_t time) {
        if (!buffer.writable) throw std::runtime_error("the kernel writes its input " + buffer.name);
        buffer.bytesWritten += static_cast<int64_t>(end - begin);
        if (!buffer.writes.empty()) {
            WriteRecord& last = buffer.writes.back();
            if (last.end == begin && last.block == block && last.epoch == epoch) {
                last.end = end;
                last.time = time;
                return;
            }
        }
        buffer.writes.push_back({begin, end, block, epoch, time});
    }

    // Two blocks may not write the same byte between two SyncAll: which value stays would be chance.
    void CheckOverlaps() const {
        for (const GlobalBuffer& buffer : buffers) {
            std::vector<WriteRecord> sorted = buffer.writes;
            std::sort(sorted.begin(), sorted.end(), [](const WriteRecord& a, const WriteRecord& b) {
                return a.epoch != b.epoch ? a.epoch < b.epoch : a.begin < b.begin;
            });
            uint64_t reached = 0;
            int64_t owner = -1;
            int current = -1;
            for (const WriteRecord& w : sorted) {
                if (w.epoch != current) reached = 0, owner = -1, current = w.epoch;
                if (w.begin < reached && w.block != owner)
                    throw std::runtime_error("blocks " + std::to_string(owner) + " and " + std::to_string(w.block) +
                                             " write the same bytes of " + buffer.name);
                if (w.end > reached) reached = w.end, owner = w.block;
            }
        }
    }
};

}  // namespace host_model

#endif
