// What a launch counts, for tests and for the cost model: instructions by kind, waits for the one before, bank groups,
// scalar accesses to the unified buffer, cache hints.
#ifndef MS_CE_HOST_MODEL_COUNTERS_H
#define MS_CE_HOST_MODEL_COUNTERS_H

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <string>

namespace host_model {

constexpr uint32_t kBlockBytes = 32;
constexpr uint32_t kBankGroups = 16;  // of the unified buffer: block number mod 16

struct KindCounts {
    int64_t instructions = 0;
    int64_t repeats = 0;
    int64_t waited = 0;  // times that the next vector instruction reads what this one wrote
};

struct Counters {
    std::map<std::string, KindCounts> kinds;
    int64_t vectorRepeats = 0;
    int64_t bankConflicts = 0;  // repeats whose two sources start in one bank group at different addresses
    // Repeats by operand (destination, first and second source) and the bank group of their first block.
    std::array<std::array<int64_t, kBankGroups>, 3> groups{};
    int64_t scalarReads = 0, scalarWrites = 0;  // GetValue and SetValue of the unified buffer
    int64_t cacheHints = 0;
    int64_t bypassingBytes = 0;  // read past the L2 cache

    void Begin(const char* kind, int64_t repeats) {
        KindCounts& counts = kinds[kind];
        ++counts.instructions;
        counts.repeats += repeats;
        vectorRepeats += repeats;
        previous_ = current_;
        current_ = &counts;
        waits_ = false;
        ++instruction;
    }

    // The instruction that was begun reads a block that `writer` wrote.
    void Reads(int64_t writer) {
        if (waits_ || previous_ == nullptr || writer != instruction - 1) return;
        ++previous_->waited;
        waits_ = true;
    }

    void Operand(int operand, uint32_t address) { ++groups[operand][address / kBlockBytes % kBankGroups]; }

    void Sources(uint32_t first, uint32_t second) {
        bankConflicts += first != second && (first ^ second) / kBlockBytes % kBankGroups == 0;
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
               ",\"bank_conflicts\":" + std::to_string(bankConflicts) +
               ",\"scalar_reads\":" + std::to_string(scalarReads) +
               ",\"scalar_writes\":" + std::to_string(scalarWrites) + ",\"cache_hints\":" + std::to_string(cacheHints) +
               ",\"bypassing_bytes\":" + std::to_string(bypassingBytes) + "}";
    }

    int64_t instruction = 0;  // number of the vector instruction that was begun last

private:
    KindCounts *current_ = nullptr, *previous_ = nullptr;
    bool waits_ = false;
};

}  // namespace host_model

#endif
