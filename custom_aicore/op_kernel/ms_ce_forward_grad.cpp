// MsCeForwardGrad: (logits, target, weight) -> (loss, total_weight, lse, grad_logits, error): the loss, reduced by mean or
// sum, with its gradient for an upstream gradient of 1.
#include "ms_ce_value_and_grad.h"

extern "C" __global__ __aicore__ void ms_ce_forward_grad(GM_ADDR logits, GM_ADDR target, GM_ADDR weight, GM_ADDR loss,
                                                         GM_ADDR total_weight, GM_ADDR lse, GM_ADDR grad_logits,
                                                         GM_ADDR error, GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(MsCeTiling);
    GET_TILING_DATA_WITH_STRUCT(MsCeTiling, tilingData, tiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // SyncAll needs it
    AscendC::TPipe pipe;
    ms_ce::ValueAndGrad<DTYPE_LOGITS> kernel;
    const ms_ce::ForwardGradAddresses gm{
        logits, target, weight, loss, total_weight, lse, grad_logits, error, AscendC::GetUserWorkspace(workspace)};
    kernel.Init(pipe, tilingData, gm);
    kernel.Process();
}
