// Checks of one argument or of the options by themselves, which throw as those of tensor.h.
#ifndef MS_CE_CHECKS_H_
#define MS_CE_CHECKS_H_

#include "interface/operation.h"

namespace ms_ce {

// Of a caller that is not MindSpore anything may come. Sizes of 0 count as 1: kernels multiply some of
// them.
Shape CheckedShape(const char* name, int rank, const int64_t* sizes, Dtype dtype);

void CheckData(const Tensor& tensor);
void CheckFloating(const Tensor& tensor);
void CheckOptions(const Problem& problem);

// With logits (C) the loss of the one row is a scalar as well: a second derivative knows no more than that.
void CheckForm(Form form, const Problem& problem, const Shape& rows);

}  // namespace ms_ce

#endif  // MS_CE_CHECKS_H_
