// Flags, barriers, SyncAll and the block's coordinates.
#ifndef MS_CE_HOST_MODEL_SYNCHRONISE_H
#define MS_CE_HOST_MODEL_SYNCHRONISE_H

#include "tensor.h"

namespace host_model {

// Hands control to the launcher until every block has come to the same SyncAll.
inline std::function<void()>& YieldToLauncher() {
    static std::function<void()> yield;
    return yield;
}

}  // namespace host_model

namespace AscendC {

template <HardEvent event>
void SetFlag(int32_t eventID) {
    host_model::Current()->SetFlag(EventSource(event), EventDestination(event), eventID);
}

template <HardEvent event>
void WaitFlag(int32_t eventID) {
    host_model::Current()->WaitFlag(EventSource(event), EventDestination(event), eventID);
}

template <pipe_t pipe>
void PipeBarrier() {
    static_assert(pipe == PIPE_ALL || pipe == PIPE_V || pipe == PIPE_MTE2 || pipe == PIPE_MTE3,
                  "a barrier of this pipe");
    // Instructions of one pipe run in order in the model, so a barrier of a single pipe changes nothing.
    if constexpr (pipe == PIPE_ALL) host_model::Current()->Barrier();
}

template <bool isAIVOnly = true>
void SyncAll() {
    host_model::Machine* core = host_model::Current();
    if (!core->isMixed) core->Fail("SyncAll in a kernel whose type is not MIX: the cores may hang");
    core->Barrier();
    core->reachedBarrier = true;
    host_model::YieldToLauncher()();
}

inline int64_t GetBlockIdx() { return host_model::Current()->block; }
inline int64_t GetBlockNum() { return host_model::Current()->blocks; }
inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) { return workspace; }

}  // namespace AscendC

#endif
