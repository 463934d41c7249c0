// Every operator's kernel for one dtype of logits (DTYPE_LOGITS), behind a C entry for tests.
#include "../op_host/ms_ce_plan.h"
#include "launch.h"

#define DTYPE_LOG_PROB DTYPE_LOGITS

#include "../op_kernel/ms_ce_backward.cpp"
#include "../op_kernel/ms_ce_forward.cpp"
#include "../op_kernel/ms_ce_forward_grad.cpp"
#include "../op_kernel/ms_ce_nll_backward.cpp"
#include "../op_kernel/ms_ce_nll_forward.cpp"
#include "../op_kernel/ms_ce_partial.cpp"
#include "../op_kernel/ms_ce_prob_backward.cpp"
#include "../op_kernel/ms_ce_prob_forward.cpp"

extern "C" int host_model_launch(const char* kernel, host_model::LaunchRequest* request) {
    const std::string name = kernel;
    if (name == "ms_ce_backward") return host_model::Launch(&ms_ce_backward, *request);
    if (name == "ms_ce_forward") return host_model::Launch(&ms_ce_forward, *request);
    if (name == "ms_ce_forward_grad") return host_model::Launch(&ms_ce_forward_grad, *request);
    if (name == "ms_ce_nll_backward") return host_model::Launch(&ms_ce_nll_backward, *request);
    if (name == "ms_ce_nll_forward") return host_model::Launch(&ms_ce_nll_forward, *request);
    if (name == "ms_ce_partial") return host_model::Launch(&ms_ce_partial, *request);
    if (name == "ms_ce_prob_backward") return host_model::Launch(&ms_ce_prob_backward, *request);
    if (name == "ms_ce_prob_forward") return host_model::Launch(&ms_ce_prob_forward, *request);
    std::strcpy(request->message, "no such kernel");
    return 1;
}

extern "C" void host_model_tiling(const MsCeProblem* problem, MsCeTiling* tiling) {
    *tiling = ms_ce::ComputeTiling(*problem);
}
