// The table of kernels that each instruction set fills (kernels.cc) and dispatch.h chooses from.
#ifndef MS_CE_KERNELS_H_
#define MS_CE_KERNELS_H_

#include "platform/array.h"

namespace ms_ce {

struct Problem;
struct UnitSums;
struct LinearChunk;

// One instruction set's build of the kernels. Each works on rows [first, first + count).
struct Kernels {
  using RowRange = void (*)(const Problem&, int64_t first, int64_t count, UnitSums*);
  const char* name;
  RowRange forward, backward, value_and_grad, partial, partial_backward, double_backward, target_grad;
  RowRange divergence, top_k, count_weight, nll_forward, nll_backward;
  // Adds upstream * d row loss / d weight of classes [first, first + count) over all rows to grad_weight,
  // and the rows whose target is the class to hits.
  void (*weight_grad)(const Problem&, int64_t first, int64_t count, double* grad_weight, double* hits);
  // Of a chunk: each works on a range of its rows, classes or features.
  using ChunkRange = void (*)(const LinearChunk&, int64_t first, int64_t count);
  ChunkRange pack_hidden, logits_of_classes, gradient_of_features, add_gradient_of_classes;
  // Runs of elements, as the accumulation type.
  void (*read)(const Array& from, int64_t first, int64_t count, void* to);
  void (*write)(const void* from, int64_t count, const Array& to, int64_t first);
  void (*store)(double value, const Array&, int64_t index);
  double (*load)(const Array&, int64_t index);
  int64_t (*load_index)(const Array&, int64_t index);
  double (*sum)(const Array&, int64_t count);
  void (*exp)(const float*, float*, int64_t);
  void (*coarse_exp)(const float*, float*, int64_t);
  void (*table_exp)(const float*, float*, int64_t);  // null where the instruction set has none
  void (*log)(const float*, float*, int64_t);
  void (*tanh)(const float*, float*, int64_t);
  void (*exp_double)(const double*, double*, int64_t);
};

}  // namespace ms_ce

#endif  // MS_CE_KERNELS_H_
