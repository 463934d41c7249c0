// MsCeBackward: (grad_loss, logits, target, weight, lse, total_weight) -> grad_logits, class targets. With class_offset it
// is also the backward of MsCePartial: lse is then that of the whole row and grad_loss one value per row.
#include "ms_ce_gradient_rows.h"

extern "C" __global__ __aicore__ void ms_ce_backward(GM_ADDR grad_loss, GM_ADDR logits, GM_ADDR target, GM_ADDR weight,
                                                     GM_ADDR lse, GM_ADDR total_weight, GM_ADDR grad_logits,
                                                     GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(MsCeTiling);
    GET_TILING_DATA_WITH_STRUCT(MsCeTiling, tilingData, tiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // SyncAll needs it
    AscendC::TPipe pipe;
    ms_ce::GradientRows<DTYPE_LOGITS> kernel;
    const ms_ce::BackwardAddresses gm{grad_loss,    logits,      target,
                                      weight,       lse,         nullptr,
                                      total_weight, grad_logits, AscendC::GetUserWorkspace(workspace)};
    kernel.Init(pipe, tilingData, gm);
    kernel.Process();
}
