// Chooses the instruction set: the best this CPU runs, or the one MS_CE_ISA or SetIsa() names.
#ifndef MS_CE_DISPATCH_H_
#define MS_CE_DISPATCH_H_

#include "platform/kernels.h"

namespace ms_ce {

const Kernels& SelectKernels(bool double_precision);

// Throws std::runtime_error when this CPU does not run `name`; "" or "auto" restores the default.
void SetIsa(const char* name);

const char* IsaList();  // comma separated, best first

}  // namespace ms_ce

#endif  // MS_CE_DISPATCH_H_
