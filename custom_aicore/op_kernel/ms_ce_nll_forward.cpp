// MsCeNllForward: (log_prob, target, weight) -> (loss, total_weight, error).
#include "ms_ce_lookup.h"

extern "C" __global__ __aicore__ void ms_ce_nll_forward(GM_ADDR log_prob, GM_ADDR target, GM_ADDR weight, GM_ADDR loss,
                                                        GM_ADDR total_weight, GM_ADDR error, GM_ADDR workspace,
                                                        GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(MsCeTiling);
    GET_TILING_DATA_WITH_STRUCT(MsCeTiling, tilingData, tiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // SyncAll needs it
    AscendC::TPipe pipe;
    ms_ce::Lookup<DTYPE_LOG_PROB> kernel;
    kernel.Init(pipe, tilingData, log_prob, target, weight, loss, total_weight, error,
                AscendC::GetUserWorkspace(workspace));
    kernel.Process();
}
