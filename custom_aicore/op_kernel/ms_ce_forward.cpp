// MsCeForward: (logits, target, weight) -> (loss, total_weight, lse, error), class targets.
#include "ms_ce_statistics.h"

extern "C" __global__ __aicore__ void ms_ce_forward(GM_ADDR logits, GM_ADDR target, GM_ADDR weight, GM_ADDR loss,
                                                    GM_ADDR total_weight, GM_ADDR lse, GM_ADDR error, GM_ADDR workspace,
                                                    GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(MsCeTiling);
    GET_TILING_DATA_WITH_STRUCT(MsCeTiling, tilingData, tiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // SyncAll needs it
    AscendC::TPipe pipe;
    ms_ce::Statistics<DTYPE_LOGITS> kernel;
    const ms_ce::ForwardAddresses gm{
        logits, target, weight, loss, total_weight, lse, nullptr, error, AscendC::GetUserWorkspace(workspace)};
    kernel.Init(pipe, tilingData, gm);
    kernel.Process();
}
