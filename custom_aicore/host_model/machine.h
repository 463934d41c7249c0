// One block of the modelled AI core: its unified buffer, its four pipes and what the hardware would punish.
//
// Instructions are issued by the scalar pipe in program order. Two independent checks look for missing synchronisation:
//  * a vector clock per pipe, advanced by flags: every access to the unified buffer must be ordered after the accesses of
//    other pipes that it conflicts with (32-byte granularity, as the hardware's blocks);
//  * the schedule: pipes named lazy hold their instructions back until a flag forces them, the others run at once, so that
//    a missing flag also shows as a wrong number or as a read of bytes nobody wrote.
#ifndef MS_CE_HOST_MODEL_MACHINE_H
#define MS_CE_HOST_MODEL_MACHINE_H

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "counters.h"
#include "global_memory.h"

namespace host_model {

enum Pipe : int { PIPE_SCALAR = 0, PIPE_VECTOR = 1, PIPE_LOAD = 2, PIPE_STORE = 3, PIPE_KINDS = 4 };
inline const char* const kPipeNames[PIPE_KINDS] = {"S", "V", "MTE2", "MTE3"};

constexpr int kEventIds = 8;

using Clock = std::array<uint32_t, PIPE_KINDS>;

// Where one 32-byte block of the unified buffer was last written and read.
struct BlockHistory {
    uint32_t writeTime = 0;
    int writePipe = PIPE_SCALAR;
    Clock readTime{};
    int64_t writer = -1;  // the vector instruction that wrote it last
};

struct Instruction {
    enum Kind { COMPUTE, SET, WAIT } kind;
    std::function<void()> run;
    int flag = 0;
};

// How the chip is set, which a kernel may not depend on: the control register as the kernel finds it, and what maximum and
// minimum make of NaN, which is not documented.
struct Settings {
    uint64_t control = 0;
    bool maximumDropsNotANumber = false;
};

// Flags are named by (source pipe, destination pipe, event id).
inline int FlagIndex(int source, int destination, int id) {
    return (source * PIPE_KINDS + destination) * kEventIds + id;
}

class Machine {
public:
    Machine(int64_t blockIndex, int64_t blockCount, uint32_t capacity, uint32_t lazyPipes, const Settings& chip,
            GlobalMemory* memory)
        : block(blockIndex),
          blocks(blockCount),
          ubCapacity(capacity),
          gm(memory),
          settings(chip),
          control(chip.control),
          lazy_(lazyPipes),
          ub(capacity),
          written_(capacity, 0),
          history_(capacity / kBlockBytes + 1) {
        // NaN in every float format the kernels use, so that a value nobody wrote poisons what it touches.
        std::memset(ub.data(), 0xff, ub.size());
    }

    [[noreturn]] void Fail(const std::string& what) const {
        throw std::runtime_error("block " + std::to_string(block) + ": " + what);
    }

    // ---- unified buffer accesses ----
    void Touch(Pipe pipe, uint32_t begin, uint32_t bytes, bool write, const char* what) {
        if (bytes == 0) return;
        const uint32_t time = clock_[pipe][pipe];
        for (uint32_t b = begin / kBlockBytes; b <= (begin + bytes - 1) / kBlockBytes; ++b) {
            BlockHistory& h = history_[b];
            if (h.writePipe != pipe && h.writeTime > clock_[pipe][h.writePipe]) Race(pipe, h.writePipe, b, what);
            if (!write) {
                h.readTime[pipe] = time;
                if (pipe == PIPE_VECTOR) counters.Follows(h.writer);
                continue;
            }
            if (pipe == PIPE_VECTOR) counters.Follows(h.writer);
            h.writer = pipe == PIPE_VECTOR ? counters.instruction : -1;
            for (int other = 0; other < PIPE_KINDS; ++other)
                if (other != pipe && h.readTime[other] > clock_[pipe][other]) Race(pipe, other, b, what);
            h.writeTime = time;
            h.writePipe = pipe;
            h.readTime = Clock{};
        }
    }

    void RequireWritten(uint32_t begin, uint32_t bytes, const char* what) const {
        if (bytes && std::memchr(written_.data() + begin, 0, bytes))
            Fail(std::string(what) + " reads unified buffer bytes nobody wrote, in [" + std::to_string(begin) + ", " +
                 std::to_string(begin + bytes) + ")");
    }

    void MarkWritten(uint32_t begin, uint32_t bytes) { std::memset(written_.data() + begin, 1, bytes); }
    void MarkUnwritten(uint32_t begin, uint32_t bytes) {
        std::memset(written_.data() + begin, 0, bytes);
        std::memset(ub.data() + begin, 0xff, bytes);
    }

    // A load may see bytes of an output or workspace only where a store is known to have come before it: an earlier one of
    // this block that the load pipe waited for, or one of another block before the last SyncAll.
    void CheckReadable(const GlobalBuffer& buffer, uint64_t begin, uint64_t end) const {
        if (!buffer.writable) return;
        uint64_t covered = begin;
        for (bool grew = true; grew && covered < end;) {
            grew = false;
            for (const WriteRecord& w : buffer.writes) {
                if (w.begin > covered || w.end <= covered || covered >= end) continue;
                const bool ordered =
                    w.epoch < gm->epoch || (w.block == block && HappensBefore(PIPE_STORE, w.time, PIPE_LOAD));
                if (!ordered)
                    Fail("missing synchronisation: a load of " + buffer.name + " may come before the store of block " +
                         std::to_string(w.block));
                covered = w.end;
                grew = true;
            }
        }
        if (covered < end) Fail("a load of " + buffer.name + " reads global memory nobody wrote");
    }

    // ---- instructions and flags ----
    void Tick(Pipe pipe) { ++clock_[pipe][pipe]; }

    uint32_t Now(Pipe pipe) const { return clock_[pipe][pipe]; }
    bool HappensBefore(Pipe source, uint32_t time, Pipe pipe) const {
        return source == pipe || time <= clock_[pipe][source];
    }

    template <typename F>
    void Issue(Pipe pipe, F&& body) {
        if (lazy_ == 0) {
            body();
            return;
        }
        queues_[pipe].push_back({Instruction::COMPUTE, std::forward<F>(body), 0});
        Pump();
    }

    void SetFlag(int source, int destination, int id) {
        const int flag = CheckFlag(source, destination, id);
        if (pending_.count(flag)) Fail("flag " + FlagName(source, destination, id) + " is set twice before a wait");
        Tick(static_cast<Pipe>(source));
        pending_[flag] = clock_[source];
        if (lazy_ == 0 || source == PIPE_SCALAR) {
            ++fired_[flag];
        } else {
            queues_[source].push_back({Instruction::SET, nullptr, flag});
            Pump();
        }
    }

    void WaitFlag(int source, int destination, int id) {
        const int flag = CheckFlag(source, destination, id);
        auto set = pending_.find(flag);
        if (set == pending_.end())
            Fail("waits for flag " + FlagName(source, destination, id) + " that nobody set: the core would hang");
        for (int p = 0; p < PIPE_KINDS; ++p) clock_[destination][p] = std::max(clock_[destination][p], set->second[p]);
        pending_.erase(set);
        if (destination == PIPE_VECTOR) counters.WaitsForPipe();
        if (destination == PIPE_SCALAR && source == PIPE_VECTOR) counters.Drain();
        if (lazy_ == 0) {
            --fired_[flag];
        } else if (destination == PIPE_SCALAR) {
            Force(flag);
            --fired_[flag];
        } else {
            queues_[destination].push_back({Instruction::WAIT, nullptr, flag});
            Pump();
        }
    }

    // PipeBarrier<PIPE_ALL>: everything issued so far is complete and visible to every pipe.
    void Barrier() {
        Drain();
        Clock join{};
        for (const Clock& c : clock_)
            for (int p = 0; p < PIPE_KINDS; ++p) join[p] = std::max(join[p], c[p]);
        clock_.fill(join);
    }

    void Finish() {
        for (const auto& collect : beforeEnd_) collect();
        Drain();
        if (!pending_.empty()) Fail("a flag is left set at the end of the kernel");
        if (control != settings.control) Fail("the control register is left changed at the end of the kernel");
        for (const auto& check : atEnd_) check();
    }

    void BeforeEnd(std::function<void()> collect) { beforeEnd_.push_back(std::move(collect)); }
    void AtEnd(std::function<void()> check) { atEnd_.push_back(std::move(check)); }

    // ---- event ids and buffers, as TPipe hands them out ----
    int AllocEvent(int source, int destination) {
        const int first = FlagIndex(source, destination, 0);
        for (int id = 0; id < kEventIds; ++id)
            if (!eventsTaken_[first + id]) {
                eventsTaken_[first + id] = true;
                return id;
            }
        Fail("all 8 event ids of " + FlagName(source, destination, 0) + " are taken: too many buffers in flight");
    }
    int FetchEvent(int source, int destination) {
        const int id = AllocEvent(source, destination);
        ReleaseEvent(source, destination, id);
        return id;
    }
    void ReleaseEvent(int source, int destination, int id) { eventsTaken_[FlagIndex(source, destination, id)] = false; }

    uint32_t AllocateBuffer(uint32_t bytes) {
        const uint32_t rounded = (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
        if (bytes == 0) Fail("a buffer of 0 bytes");
        if (ubUsed_ + rounded > ubCapacity)
            Fail("unified buffer over capacity: " + std::to_string(ubUsed_ + rounded) + " of " +
                 std::to_string(ubCapacity) + " bytes");
        const uint32_t begin = ubUsed_;
        ubUsed_ += rounded;
        return begin;
    }
    void ResetBuffers() { ubUsed_ = 0; }

    const int64_t block, blocks;
    const uint32_t ubCapacity;
    GlobalMemory* const gm;
    const Settings settings;
    uint64_t control;      // the control register
    bool isMixed = false;  // the kernel's type is one that SyncAll may be used in
    Counters counters;
    void* pipe = nullptr;         // the TPipe of the kernel that runs on this block
    bool reachedBarrier = false;  // waiting in SyncAll for the other blocks

private:
    [[noreturn]] void Race(int pipe, int other, uint32_t b, const char* what) const {
        Fail(std::string("missing synchronisation: ") + what + " on " + kPipeNames[pipe] + " touches bytes [" +
             std::to_string(b * kBlockBytes) + ", +32) that " + kPipeNames[other] + " still uses");
    }

    std::string FlagName(int source, int destination, int id) const {
        return std::string(kPipeNames[source]) + "_" + kPipeNames[destination] + "#" + std::to_string(id);
    }

    int CheckFlag(int source, int destination, int id) const {
        if (id < 0 || id >= kEventIds) Fail("event id " + std::to_string(id) + " is outside [0, 8)");
        return FlagIndex(source, destination, id);
    }

    // Runs the head of one pipe; false when the pipe is empty or waits for a flag that has not fired.
    bool Step(int pipe) {
        auto& queue = queues_[pipe];
        if (queue.empty()) return false;
        Instruction& head = queue.front();
        if (head.kind == Instruction::WAIT) {
            if (fired_[head.flag] == 0) return false;
            --fired_[head.flag];
        } else if (head.kind == Instruction::SET) {
            ++fired_[head.flag];
        } else {
            head.run();
        }
        queue.pop_front();
        return true;
    }

    void Pump() {
        for (bool moved = true; moved;) {
            moved = false;
            for (int pipe = PIPE_VECTOR; pipe < PIPE_KINDS; ++pipe)
                if (!(lazy_ >> pipe & 1))
                    while (Step(pipe)) moved = true;
        }
    }

    // Runs just enough of the lazy pipes for a flag to fire.
    void Force(int flag) {
        while (fired_[flag] == 0)
            if (!StepTowards(flag)) Fail("the core would hang: a flag is waited for and no pipe can set it");
    }

    // One instruction of the pipe that sets a flag, or of what that pipe waits for.
    bool StepTowards(int flag) {
        const int source = flag / kEventIds / PIPE_KINDS;
        if (Step(source)) {
            Pump();
            return true;
        }
        const auto& queue = queues_[source];
        return !queue.empty() && queue.front().kind == Instruction::WAIT && StepTowards(queue.front().flag);
    }

    void Drain() {
        for (bool moved = true; moved;) {
            moved = false;
            for (int pipe = PIPE_VECTOR; pipe < PIPE_KINDS; ++pipe)
                while (Step(pipe)) moved = true;
        }
        for (const auto& queue : queues_)
            if (!queue.empty()) Fail("the core would hang: pipes wait for each other");
    }

    const uint32_t lazy_;

public:
    std::vector<uint8_t> ub;

private:
    std::vector<uint8_t> written_;
    std::vector<BlockHistory> history_;
    std::array<Clock, PIPE_KINDS> clock_{};
    std::array<std::deque<Instruction>, PIPE_KINDS> queues_;
    std::map<int, Clock> pending_;                                  // set and not yet waited for, in program order
    std::array<int, PIPE_KINDS * PIPE_KINDS * kEventIds> fired_{};  // set and not yet consumed, in the schedule's order
    std::array<bool, PIPE_KINDS * PIPE_KINDS * kEventIds> eventsTaken_{};
    std::vector<std::function<void()>> beforeEnd_, atEnd_;
    uint32_t ubUsed_ = 0;
};

// The block that runs now; the launcher switches it with the fibre.
inline Machine*& Current() {
    static Machine* machine = nullptr;
    return machine;
}

}  // namespace host_model

#endif
