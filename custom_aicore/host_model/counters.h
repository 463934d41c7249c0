// What a launch counts, for tests and for the cost model: instructions by kind, waits for earlier ones, bank groups, scalar
// accesses to the unified buffer, blocks of copies that cost more than their bytes, cache hints.
#ifndef MS_CE_HOST_MODEL_COUNTERS_H
#define MS_CE_HOST_MODEL_COUNTERS_H

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace host_model {

constexpr uint32_t kBlockBytes = 32;
constexpr uint32_t kBankGroups = 16;  // of the unified buffer: block number mod 16
constexpr uint32_t kRepeatBlocks = 8;
constexpr uint64_t kLineBytes = 512;  // of global memory: what a block should be aligned to and be at least

struct KindCounts {
    int64_t instructions = 0;
    int64_t repeats = 0;
    int64_t waited = 0;  // times that the vector or the scalar pipe waits until this one is complete
};

// Two sources of one instruction, each from a block number on: a repeat reads `blocks` of each.
inline bool SourcesConflict(uint32_t first, uint32_t firstBlocks, uint32_t second, uint32_t secondBlocks) {
    if (first == second) return false;
    const uint32_t ahead = (second - first) % kBankGroups, behind = (first - second) % kBankGroups;
    return ahead < firstBlocks || behind < secondBlocks;
}

struct Counters {
    std::map<std::string, KindCounts> kinds;
    int64_t vectorRepeats = 0;
    int64_t starts = 0;         // vector instructions before which the vector pipe waits for another pipe
    int64_t bankConflicts = 0;  // repeats whose two sources have blocks in one bank group
    // Repeats by operand (destination, first and second source) and the bank group of their first block.
    std::array<std::array<int64_t, kBankGroups>, 3> groups{};
    int64_t scalarReads = 0, scalarWrites = 0;  // GetValue and SetValue of the unified buffer
    int64_t cacheHints = 0;
    int64_t bypassingBytes = 0;   // read past the L2 cache
    int64_t unalignedBlocks = 0;  // blocks of copies that start inside a line of global memory
    int64_t smallBlockBytes = 0;  // bytes of copies of several blocks that are shorter than a line
    int64_t loneBlocks = 0;       // copies of one block that is shorter than a line

    void Begin(const char* kind, int64_t repeats) {
        KindCounts& counts = kinds[kind];
        ++counts.instructions;
        counts.repeats += repeats;
        vectorRepeats += repeats;
        starts += starts_;
        starts_ = false;
        inFlight_.push_back(&counts);
        ++instruction;
    }

    // The instruction that was begun reads or writes a block that `writer` wrote. Where that one may still be at work the
    // compiler puts a barrier before this one, behind which everything earlier is complete.
    void Follows(int64_t writer) {
        const int64_t oldest = instruction - static_cast<int64_t>(inFlight_.size()) + 1;
        if (writer < oldest || writer >= instruction) return;
        ++inFlight_[writer - oldest]->waited;
        inFlight_.erase(inFlight_.begin(), inFlight_.end() - 1);
    }

    // The scalar pipe waits for the vector pipe.
    void Drain() {
        if (!inFlight_.empty()) ++inFlight_.back()->waited;
        inFlight_.clear();
    }

    // The vector pipe waits for another pipe.
    void WaitsForPipe() { starts_ = true; }

    void Operand(int operand, uint32_t address) { ++groups[operand][address / kBlockBytes % kBankGroups]; }

    void Sources(uint32_t first, uint32_t firstBlocks, uint32_t second, uint32_t secondBlocks) {
        bankConflicts += SourcesConflict(first / kBlockBytes, firstBlocks, second / kBlockBytes, secondBlocks);
    }

    // One block of a copy of `blocks`, at an offset into its tensor.
    void CopiedBlock(uint64_t offset, uint64_t bytes, uint32_t blocks) {
        if (bytes < kLineBytes) {
            if (blocks > 1)
                smallBlockBytes += static_cast<int64_t>(bytes);
            else
                ++loneBlocks;
        } else {
            unalignedBlocks += offset % kLineBytes != 0;
        }
    }

    void Add(const Counters& other) {
        for (const auto& [kind, counts] : other.kinds) {
            KindCounts& sum = kinds[kind];
            sum.instructions += counts.instructions;
            sum.repeats += counts.repeats;
            sum.waited += counts.waited;
        }
        for (size_t operand = 0; operand < groups.size(); ++operand)
            for (uint32_t g = 0; g < kBankGroups; ++g) groups[operand][g] += other.groups[operand][g];
        vectorRepeats += other.vectorRepeats;
        starts += other.starts;
        unalignedBlocks += other.unalignedBlocks;
        smallBlockBytes += other.smallBlockBytes;
        loneBlocks += other.loneBlocks;
        bankConflicts += other.bankConflicts;
        scalarReads += other.scalarReads;
        scalarWrites += other.scalarWrites;
        cacheHints += other.cacheHints;
        bypassingBytes += other.bypassingBytes;
    }

    std::string Json() const {
        std::string text = "{\"kinds\":{";
        const char* separator = "";
        for (const auto& [kind, counts] : kinds) {
            text += separator + ("\"" + kind + "\":[") + std::to_string(counts.instructions) + "," +
                    std::to_string(counts.repeats) + "," + std::to_string(counts.waited) + "]";
            separator = ",";
        }
        text += "},\"groups\":[";
        for (size_t operand = 0; operand < groups.size(); ++operand) {
            text += operand ? ",[" : "[";
            for (uint32_t g = 0; g < kBankGroups; ++g) text += (g ? "," : "") + std::to_string(groups[operand][g]);
            text += "]";
        }
        return text + "],\"vector_repeats\":" + std::to_string(vectorRepeats) +
               ",\"starts\":" + std::to_string(starts) + ",\"unaligned_blocks\":" + std::to_string(unalignedBlocks) +
               ",\"small_block_bytes\":" + std::to_string(smallBlockBytes) +
               ",\"lone_blocks\":" + std::to_string(loneBlocks) +
               ",\"bank_conflicts\":" + std::to_string(bankConflicts) +
               ",\"scalar_reads\":" + std::to_string(scalarReads) +
               ",\"scalar_writes\":" + std::to_string(scalarWrites) + ",\"cache_hints\":" + std::to_string(cacheHints) +
               ",\"bypassing_bytes\":" + std::to_string(bypassingBytes) + "}";
    }

    int64_t instruction = 0;  // number of the vector instruction that was begun last

private:
    std::vector<KindCounts*> inFlight_;  // since the last barrier, the instruction that was begun last included
    bool starts_ = false;
};

}  // namespace host_model

#endif
