// MsCeProbBackward: (grad_loss, logits, target, weight, lse, mass, total_weight) -> grad_logits, probability targets.
#include "ms_ce_gradient_rows.h"

extern "C" __global__ __aicore__ void ms_ce_prob_backward(GM_ADDR grad_loss, GM_ADDR logits, GM_ADDR target,
                                                          GM_ADDR weight, GM_ADDR lse, GM_ADDR mass,
                                                          GM_ADDR total_weight, GM_ADDR grad_logits, GM_ADDR workspace,
                                                          GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(MsCeTiling);
    GET_TILING_DATA_WITH_STRUCT(MsCeTiling, tilingData, tiling);
    (void)workspace;
    AscendC::TPipe pipe;
    ms_ce::GradientRows<DTYPE_LOGITS> kernel;
    const ms_ce::BackwardAddresses gm{grad_loss, logits, target, weight, lse, mass, total_weight, grad_logits, nullptr};
    kernel.Init(pipe, tilingData, gm);
    kernel.Process();
}
