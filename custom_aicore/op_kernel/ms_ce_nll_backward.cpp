// MsCeNllBackward: (grad_loss, log_prob, target, weight, total_weight) -> grad_log_prob. log_prob only gives the shape.
#include "ms_ce_gradient_rows.h"

extern "C" __global__ __aicore__ void ms_ce_nll_backward(GM_ADDR grad_loss, GM_ADDR log_prob, GM_ADDR target,
                                                         GM_ADDR weight, GM_ADDR total_weight, GM_ADDR grad_log_prob,
                                                         GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(MsCeTiling);
    GET_TILING_DATA_WITH_STRUCT(MsCeTiling, tilingData, tiling);
    (void)workspace;
    AscendC::TPipe pipe;
    ms_ce::GradientRows<DTYPE_LOG_PROB> kernel;
    const ms_ce::BackwardAddresses gm{grad_loss, log_prob,     target,        weight, nullptr,
                                      nullptr,   total_weight, grad_log_prob, nullptr};
    kernel.Init(pipe, tilingData, gm);
    kernel.Process();
}
