// Runs a kernel for any number of blocks. Every block is a fibre: it runs until the end of the kernel or until SyncAll,
// where it waits for the others. Blocks run one after another, in rising or falling order.
#ifndef MS_CE_HOST_MODEL_LAUNCH_H
#define MS_CE_HOST_MODEL_LAUNCH_H

#include <ucontext.h>

#include <memory>
#include <string>
#include <utility>

#include "kernel_operator.h"

namespace host_model {

// What a caller of the launcher describes and gets back; arrays have one entry per buffer, the workspace last.
struct LaunchRequest {
    int32_t blocks;
    uint32_t unifiedBufferBytes;
    uint32_t lazyPipes;  // bit 1: V, bit 2: MTE2, bit 3: MTE3 hold back what no flag forces
    uint64_t control;    // the control register as the kernel finds it
    int32_t maximumDropsNotANumber;
    int32_t fallingOrder;
    int32_t buffers;
    uint8_t** bases;
    const int64_t* bytes;
    const int32_t* writable;
    const char** names;
    uint8_t* tiling;
    int64_t* bytesRead;
    int64_t* bytesWritten;
    int64_t* copies;
    int64_t* smallestCopy;
    char counts[4096];  // JSON
    char message[512];
};

struct Fibre {
    std::unique_ptr<Machine> machine;
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    std::string error;
};

class Launcher {
public:
    Launcher(LaunchRequest& request, std::function<void()> kernel) : request_(request), kernel_(std::move(kernel)) {
        for (int32_t i = 0; i < request.buffers; ++i) {
            GlobalBuffer buffer;
            buffer.name = request.names[i];
            buffer.base = request.bases[i];
            buffer.bytes = static_cast<uint64_t>(request.bytes[i]);
            buffer.writable = request.writable[i] != 0;
            memory_.buffers.push_back(buffer);
        }
    }

    int Run() {
        std::string error;
        try {
            RunBlocks();
            memory_.CheckOverlaps();
        } catch (const std::exception& e) {
            error = e.what();
        }
        Report();
        std::strncpy(request_.message, error.c_str(), sizeof(request_.message) - 1);
        request_.message[sizeof(request_.message) - 1] = 0;
        return error.empty() ? 0 : 1;
    }

private:
    static constexpr size_t kStackBytes = 1 << 20;

    static Launcher*& Active() {
        static Launcher* launcher = nullptr;
        return launcher;
    }

    static void Body() {
        Launcher* self = Active();
        Fibre& fibre = *self->current_;
        try {
            self->kernel_();
            fibre.machine->Finish();
        } catch (const std::exception& e) {
            fibre.error = e.what();
        }
        fibre.done = true;
        swapcontext(&fibre.context, &self->home_);
    }

    void Resume(Fibre& fibre) {
        current_ = &fibre;
        Current() = fibre.machine.get();
        swapcontext(&home_, &fibre.context);
        if (!fibre.error.empty()) throw std::runtime_error(fibre.error);
    }

    void RunBlocks() {
        Active() = this;
        YieldToLauncher() = [this] {
            Fibre* fibre = current_;
            swapcontext(&fibre->context, &home_);
        };
        for (int32_t b = 0; b < request_.blocks; ++b) {
            auto fibre = std::make_unique<Fibre>();
            fibre->machine =
                std::make_unique<Machine>(b, request_.blocks, request_.unifiedBufferBytes, request_.lazyPipes,
                                          Settings{request_.control, request_.maximumDropsNotANumber != 0}, &memory_);
            fibre->stack.resize(kStackBytes);
            getcontext(&fibre->context);
            fibre->context.uc_stack.ss_sp = fibre->stack.data();
            fibre->context.uc_stack.ss_size = fibre->stack.size();
            fibre->context.uc_link = nullptr;
            makecontext(&fibre->context, &Launcher::Body, 0);
            fibres_.push_back(std::move(fibre));
        }
        if (request_.fallingOrder) std::reverse(fibres_.begin(), fibres_.end());
        while (!AllDone()) {
            for (auto& fibre : fibres_)
                if (!fibre->done) {
                    fibre->machine->reachedBarrier = false;
                    Resume(*fibre);
                }
            CheckBarrier();
            ++memory_.epoch;
        }
    }

    bool AllDone() const {
        return std::all_of(fibres_.begin(), fibres_.end(), [](const auto& f) { return f->done; });
    }

    void CheckBarrier() const {
        const auto waiting = std::count_if(fibres_.begin(), fibres_.end(), [](const auto& f) { return !f->done; });
        if (waiting != 0 && waiting != static_cast<int64_t>(fibres_.size()))
            throw std::runtime_error("some blocks wait in SyncAll and others have ended: the cores would hang");
    }

    void Report() {
        Counters all;
        for (const auto& fibre : fibres_) all.Add(fibre->machine->counters);
        const std::string counts = all.Json();
        std::memcpy(request_.counts, counts.c_str(), std::min(counts.size() + 1, sizeof(request_.counts)));
        for (int32_t i = 0; i < request_.buffers; ++i) {
            request_.bytesRead[i] = memory_.buffers[i].bytesRead;
            request_.bytesWritten[i] = memory_.buffers[i].bytesWritten;
            request_.copies[i] = memory_.buffers[i].copies;
            request_.smallestCopy[i] = memory_.buffers[i].smallestCopy;
        }
    }

    LaunchRequest& request_;
    std::function<void()> kernel_;
    GlobalMemory memory_;
    std::vector<std::unique_ptr<Fibre>> fibres_;
    Fibre* current_ = nullptr;
    ucontext_t home_;
};

// Calls an operator's entry point with its tensors, the workspace and the tiling data.
template <typename... Parameters, size_t... Index>
int LaunchIndexed(void (*kernel)(Parameters...), LaunchRequest& request, std::index_sequence<Index...>) {
    if (request.buffers + 1 != static_cast<int32_t>(sizeof...(Parameters))) {
        std::strcpy(request.message, "the number of tensors does not fit the kernel");
        return 1;
    }
    uint8_t* arguments[sizeof...(Parameters)];
    for (int32_t i = 0; i < request.buffers; ++i) arguments[i] = request.bases[i];
    arguments[request.buffers] = request.tiling;
    return Launcher(request, [&] { kernel(arguments[Index]...); }).Run();
}

template <typename... Parameters>
int Launch(void (*kernel)(Parameters...), LaunchRequest& request) {
    return LaunchIndexed(kernel, request, std::index_sequence_for<Parameters...>{});
}

}  // namespace host_model

#endif
