// MsCePartial: (logits, target, weight) -> (lse, dot, mass, error) of a block of the vocabulary. Without smoothing and
// weights dot is the target's logit and mass is 1 where this block holds the target, both 0 elsewhere.
#include "ms_ce_statistics.h"

extern "C" __global__ __aicore__ void ms_ce_partial(GM_ADDR logits, GM_ADDR target, GM_ADDR weight, GM_ADDR lse,
                                                    GM_ADDR dot, GM_ADDR mass, GM_ADDR error, GM_ADDR workspace,
                                                    GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(MsCeTiling);
    GET_TILING_DATA_WITH_STRUCT(MsCeTiling, tilingData, tiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // SyncAll needs it
    AscendC::TPipe pipe;
    ms_ce::Statistics<DTYPE_LOGITS> kernel;
    const ms_ce::ForwardAddresses gm{
        logits, target, weight, dot, nullptr, lse, mass, error, AscendC::GetUserWorkspace(workspace)};
    kernel.Init(pipe, tilingData, gm);
    kernel.Process();
}
