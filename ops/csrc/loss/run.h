// Cuts a problem into units of rows, runs them on the pool, and adds their sums in order.
#ifndef MS_CE_RUN_H_
#define MS_CE_RUN_H_

#include <vector>

#include "loss/problem.h"
#include "platform/kernels.h"
#include "platform/tensor.h"

namespace ms_ce {

// Throws if a target is out of range.
UnitSums RunRows(const Problem& problem, Kernels::RowRange kernel, const Tensor& logits);

void Add(const UnitSums& unit, UnitSums* totals);

const Kernels& KernelsFor(const Problem& problem);

// d loss / d weight, summed over rows that come all at once or in chunks.
class WeightGradient {
 public:
  // What reduces the loss of all rows, and their lse; it must outlive this.
  explicit WeightGradient(const Problem& whole);

  void Add(const Problem& rows);
  // Of all rows that were added.
  void Store(const Tensor& out);

 private:
  const Problem& whole_;
  const bool vanishes_, divided_;
  std::vector<double> grad_, hits_;  // of each class
};

void FillZeros(void* data, size_t bytes);

void StoreDouble(double value, const Tensor& out, int64_t index = 0);

// Of float64; 0 stays 0.
void Negate(const Tensor& tensor);

// What a mean or a sum over rows returns of their sum.
double Reduced(const Problem& problem, double sum, double divisor);

bool StreamPays(const Tensor& out);

}  // namespace ms_ce

#endif  // MS_CE_RUN_H_
