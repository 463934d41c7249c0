// LocalTensor, GlobalTensor, TPipe, TQue and TBuf. A tensor knows the buffer it was cut from, so an access one byte outside
// that buffer fails even where the unified buffer goes on.
#ifndef MS_CE_HOST_MODEL_TENSOR_H
#define MS_CE_HOST_MODEL_TENSOR_H

#include <deque>
#include <memory>
#include <string>

#include "types.h"

namespace AscendC {

struct BufferState {
    enum Stage { FREE, OCCUPIED, QUEUED, DEQUEUED } stage = FREE;
    uint32_t begin = 0, bytes = 0;
    uint32_t generation = 0;  // how often the buffer was allocated; a tensor of an earlier generation is stale
    int enqueueEvent = -1, freeEvent = -1;
};

template <typename T>
class LocalTensor {
public:
    using PrimType = T;
    LocalTensor() = default;
    LocalTensor(std::shared_ptr<BufferState> state, uint32_t begin, uint32_t end)
        : state_(std::move(state)), begin_(begin), end_(end), generation_(state_->generation) {}

    T GetValue(const uint32_t index) const {
        auto* core = host_model::Current();
        core->Tick(host_model::PIPE_SCALAR);
        ++core->counters.scalarReads;
        const uint32_t at = Range(host_model::PIPE_SCALAR, uint64_t(index) * sizeof(T), sizeof(T), false, "GetValue");
        core->RequireWritten(at, sizeof(T), "GetValue");
        T value;
        std::memcpy(&value, core->ub.data() + at, sizeof(T));
        return value;
    }

    template <typename S>
    void SetValue(const uint32_t index, const S value) const {
        auto* core = host_model::Current();
        core->Tick(host_model::PIPE_SCALAR);
        ++core->counters.scalarWrites;
        const uint32_t at = Range(host_model::PIPE_SCALAR, uint64_t(index) * sizeof(T), sizeof(T), true, "SetValue");
        const T converted = static_cast<T>(value);
        std::memcpy(core->ub.data() + at, &converted, sizeof(T));
        core->MarkWritten(at, sizeof(T));
    }

    // CANN's CPU debugger refuses a tensor that starts at the end of its buffer, even where nobody reads it.
    LocalTensor operator[](const uint32_t offset) const {
        LocalTensor out = *this;
        if (begin_ + uint64_t(offset) * sizeof(T) >= end_)
            host_model::Current()->Fail("a tensor starts " + std::to_string(offset) + " elements into one of " +
                                        std::to_string(GetSize()));
        out.begin_ = begin_ + offset * static_cast<uint32_t>(sizeof(T));
        return out;
    }

    template <typename U>
    LocalTensor<U> ReinterpretCast() const {
        LocalTensor<U> out(state_, begin_, end_);
        out.SetGeneration(generation_);
        return out;
    }

    uint64_t GetPhyAddr() const { return begin_; }
    uint32_t GetSize() const { return (end_ - begin_) / sizeof(T); }

    // Checks and records one contiguous access relative to this tensor; returns its unified buffer offset.
    uint32_t Range(host_model::Pipe pipe, uint64_t offset, uint64_t bytes, bool write, const char* what) const {
        auto* core = host_model::Current();
        if (!state_) core->Fail(std::string(what) + " uses a tensor that was never allocated");
        if (state_->generation != generation_ || state_->stage == BufferState::FREE)
            core->Fail(std::string(what) + " uses a tensor that was freed");
        const uint64_t from = begin_ + offset;
        if (from + bytes > end_)
            core->Fail(std::string(what) + " runs past its buffer: bytes [" + std::to_string(from) + ", " +
                       std::to_string(from + bytes) + ") of a buffer that ends at " + std::to_string(end_));
        core->Touch(pipe, static_cast<uint32_t>(from), static_cast<uint32_t>(bytes), write, what);
        return static_cast<uint32_t>(from);
    }

    void RequireAligned(uint32_t alignment, const char* what) const {
        if (begin_ % alignment)
            host_model::Current()->Fail(std::string(what) + " needs an address aligned to " +
                                        std::to_string(alignment) + " bytes, got unified buffer offset " +
                                        std::to_string(begin_));
    }

    const std::shared_ptr<BufferState>& State() const { return state_; }
    uint32_t Begin() const { return begin_; }
    void SetGeneration(uint32_t generation) { generation_ = generation; }

private:
    std::shared_ptr<BufferState> state_;
    uint32_t begin_ = 0, end_ = 0, generation_ = 0;
};

template <typename T>
class GlobalTensor {
public:
    void SetGlobalBuffer(__gm__ T* buffer, uint64_t) { address_ = buffer; }
    void SetGlobalBuffer(__gm__ T* buffer) { address_ = buffer; }
    const __gm__ T* GetPhyAddr() const { return address_; }
    GlobalTensor operator[](const uint64_t offset) const {
        GlobalTensor out = *this;
        out.address_ = address_ + offset;
        return out;
    }

    // How later copies use the L2 cache.
    template <CacheRwMode = CacheRwMode::RW>
    void SetL2CacheHint(CacheMode mode) {
        ++host_model::Current()->counters.cacheHints;
        bypasses_ = mode == CacheMode::CACHE_MODE_DISABLE;
    }
    bool BypassesCache() const { return bypasses_; }

    // A scalar load through the data cache: right for inputs only, since the cache does not see other cores' stores.
    T GetValue(const uint64_t offset) const {
        auto* core = host_model::Current();
        auto& buffer = core->gm->Locate(reinterpret_cast<uint8_t*>(address_ + offset), sizeof(T), "GetValue");
        if (buffer.writable)
            core->Fail("GetValue reads " + buffer.name + " through the data cache, which may be stale");
        buffer.bytesRead += sizeof(T);
        return address_[offset];
    }

private:
    __gm__ T* address_ = nullptr;
    bool bypasses_ = false;
};

// The pipes a queue of this position stands between.
template <TPosition position>
struct QueuePipes {
    static constexpr host_model::Pipe producer =
        position == TPosition::VECIN ? host_model::PIPE_LOAD : host_model::PIPE_VECTOR;
    static constexpr host_model::Pipe consumer =
        position == TPosition::VECIN ? host_model::PIPE_VECTOR : host_model::PIPE_STORE;
};

template <TPosition position, int32_t depth>
class TQue {
public:
    using Pipes = QueuePipes<position>;
    static constexpr bool kIsQueue = true;

    template <typename T>
    LocalTensor<T> AllocTensor() {
        auto* core = host_model::Current();
        for (size_t tried = 0; tried < buffers_.size(); ++tried) {
            auto& state = buffers_[cursor_];
            cursor_ = (cursor_ + 1) % buffers_.size();
            if (state->stage != BufferState::FREE) continue;
            state->stage = BufferState::OCCUPIED;
            ++state->generation;
            if (state->freeEvent >= 0) {
                core->WaitFlag(Pipes::consumer, Pipes::producer, state->freeEvent);
                core->ReleaseEvent(Pipes::consumer, Pipes::producer, state->freeEvent);
                state->freeEvent = -1;
            }
            const uint32_t begin = state->begin, bytes = state->bytes;
            core->Issue(Pipes::producer, [core, begin, bytes] { core->MarkUnwritten(begin, bytes); });
            return LocalTensor<T>(state, begin, begin + bytes);
        }
        core->Fail("AllocTensor finds no free buffer: the core would hang");
    }

    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor) {
        auto* core = host_model::Current();
        auto& state = Own(tensor, "EnQue");
        if (state->stage != BufferState::OCCUPIED && state->stage != BufferState::DEQUEUED)
            core->Fail("EnQue of a tensor that was not allocated");
        if (static_cast<int32_t>(queued_.size()) >= depth) core->Fail("EnQue exceeds the depth of its queue");
        state->stage = BufferState::QUEUED;
        state->enqueueEvent = core->AllocEvent(Pipes::producer, Pipes::consumer);
        core->SetFlag(Pipes::producer, Pipes::consumer, state->enqueueEvent);
        queued_.push_back(state);
        return true;
    }

    template <typename T>
    LocalTensor<T> DeQue() {
        auto* core = host_model::Current();
        if (queued_.empty()) core->Fail("DeQue from an empty queue");
        auto state = queued_.front();
        queued_.pop_front();
        state->stage = BufferState::DEQUEUED;
        core->WaitFlag(Pipes::producer, Pipes::consumer, state->enqueueEvent);
        core->ReleaseEvent(Pipes::producer, Pipes::consumer, state->enqueueEvent);
        return LocalTensor<T>(state, state->begin, state->begin + state->bytes);
    }

    template <typename T>
    void FreeTensor(LocalTensor<T>& tensor) {
        auto* core = host_model::Current();
        auto& state = Own(tensor, "FreeTensor");
        if (state->stage == BufferState::FREE) core->Fail("FreeTensor of a tensor that is already free");
        if (state->stage == BufferState::QUEUED) core->Fail("FreeTensor of a tensor that is still in its queue");
        state->stage = BufferState::FREE;
        state->freeEvent = core->AllocEvent(Pipes::consumer, Pipes::producer);
        core->SetFlag(Pipes::consumer, Pipes::producer, state->freeEvent);
    }

    void Init(host_model::Machine* core, uint8_t count, uint32_t bytes) {
        for (uint8_t i = 0; i < count; ++i) {
            auto state = std::make_shared<BufferState>();
            state->bytes = (bytes + host_model::kBlockBytes - 1) / host_model::kBlockBytes * host_model::kBlockBytes;
            state->begin = core->AllocateBuffer(bytes);
            buffers_.push_back(state);
        }
        const auto buffers = buffers_;
        core->AtEnd([core, buffers] {
            for (const auto& state : buffers)
                if (state->stage != BufferState::FREE) core->Fail("a queue tensor is never freed");
        });
        // The end of the pipe collects the flags of freed buffers, as TPipe's destructor does.
        core->BeforeEnd([core, buffers] {
            for (const auto& state : buffers)
                if (state->freeEvent >= 0) core->WaitFlag(Pipes::consumer, Pipes::producer, state->freeEvent);
        });
    }

private:
    template <typename T>
    std::shared_ptr<BufferState>& Own(const LocalTensor<T>& tensor, const char* what) {
        for (auto& state : buffers_)
            if (state == tensor.State()) return state;
        host_model::Current()->Fail(std::string(what) + " of a tensor that belongs to another queue");
    }

    std::vector<std::shared_ptr<BufferState>> buffers_;
    std::deque<std::shared_ptr<BufferState>> queued_;
    size_t cursor_ = 0;
};

template <TPosition position = TPosition::LCM>
class TBuf {
public:
    static constexpr bool kIsQueue = false;
    template <typename T>
    LocalTensor<T> Get() {
        return LocalTensor<T>(state_, state_->begin, state_->begin + state_->bytes);
    }
    void Init(host_model::Machine* core, uint32_t bytes) {
        state_ = std::make_shared<BufferState>();
        state_->stage = BufferState::OCCUPIED;
        state_->bytes = (bytes + host_model::kBlockBytes - 1) / host_model::kBlockBytes * host_model::kBlockBytes;
        state_->begin = core->AllocateBuffer(bytes);
    }

private:
    std::shared_ptr<BufferState> state_;
};

// Source and destination pipe of an event by its name.
constexpr int EventSource(HardEvent event) {
    switch (event) {
        case HardEvent::MTE2_V:
        case HardEvent::MTE2_S:
        case HardEvent::MTE2_MTE3:
            return host_model::PIPE_LOAD;
        case HardEvent::MTE3_V:
        case HardEvent::MTE3_S:
        case HardEvent::MTE3_MTE2:
            return host_model::PIPE_STORE;
        case HardEvent::S_V:
        case HardEvent::S_MTE2:
        case HardEvent::S_MTE3:
            return host_model::PIPE_SCALAR;
        default:
            return host_model::PIPE_VECTOR;
    }
}
constexpr int EventDestination(HardEvent event) {
    switch (event) {
        case HardEvent::V_MTE2:
        case HardEvent::S_MTE2:
        case HardEvent::MTE3_MTE2:
            return host_model::PIPE_LOAD;
        case HardEvent::V_MTE3:
        case HardEvent::S_MTE3:
        case HardEvent::MTE2_MTE3:
            return host_model::PIPE_STORE;
        case HardEvent::V_S:
        case HardEvent::MTE2_S:
        case HardEvent::MTE3_S:
            return host_model::PIPE_SCALAR;
        default:
            return host_model::PIPE_VECTOR;
    }
}

class TPipe {
public:
    TPipe();
    template <class Q>
    bool InitBuffer(Q& queue, uint8_t num, uint32_t len) {
        static_assert(Q::kIsQueue, "a TBuf takes no number of buffers");
        queue.Init(host_model::Current(), num, len);
        return true;
    }
    template <TPosition position>
    bool InitBuffer(TBuf<position>& buf, uint32_t len) {
        buf.Init(host_model::Current(), len);
        return true;
    }
    TEventID FetchEventID(HardEvent evt) {
        return static_cast<TEventID>(host_model::Current()->FetchEvent(EventSource(evt), EventDestination(evt)));
    }
};

inline TPipe::TPipe() { host_model::Current()->pipe = this; }

}  // namespace AscendC

inline AscendC::TPipe* GetTPipePtr() { return static_cast<AscendC::TPipe*>(host_model::Current()->pipe); }

#endif
