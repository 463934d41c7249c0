// Every operator's kernel for one dtype of logits (DTYPE_LOGITS), behind a C entry for tests.
#include "launch.h"

#include "../op_kernel/ms_ce_forward.cpp"
#include "../op_kernel/ms_ce_partial.cpp"
#include "../op_kernel/ms_ce_prob_forward.cpp"

extern "C" int host_model_launch(const char* kernel, host_model::LaunchRequest* request) {
    const std::string name = kernel;
    if (name == "ms_ce_forward") return host_model::Launch(&ms_ce_forward, *request);
    if (name == "ms_ce_prob_forward") return host_model::Launch(&ms_ce_prob_forward, *request);
    if (name == "ms_ce_partial") return host_model::Launch(&ms_ce_partial, *request);
    std::strcpy(request->message, "no such kernel");
    return 1;
}

extern "C" void host_model_tiling(const MsCeProblem* problem, MsCeTiling* tiling) {
    *tiling = ms_ce::ComputeTiling(*problem);
}
