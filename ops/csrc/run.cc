#include "run.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "thread_pool.h"

namespace ms_ce {
namespace {

// A unit is large enough to hide its bookkeeping and small enough to balance threads. Cut by shape
// alone: the sums' order must not depend on the threads.
constexpr int64_t kUnitElements = 65536;
constexpr int64_t kBlockRows = 64;  // what the kernels that take many rows at a time work on
constexpr int64_t kWeightGradClasses = 1024;

// From here on the gradient evicts what the caller could still use, and reading its lines before
// writing them costs a third of the traffic (docs/kernel.md).
constexpr int64_t kStreamBytes = int64_t{8} << 20;

int64_t RowsPerUnit(const Problem& problem) {
  const int64_t rows = std::max<int64_t>(1, kUnitElements / problem.classes);
  if (problem.inner == 1) return rows < kBlockRows ? rows : rows / kBlockRows * kBlockRows;
  // Whole blocks, or narrower ones where those would be too few to share out.
  const int64_t block = problem.rows >= 16 * kBlockRows ? kBlockRows : kBlockRows / 4;
  return (rows + block - 1) / block * block;
}

void Add(const UnitSums& unit, UnitSums* totals) {
  totals->loss += unit.loss;
  totals->weight += unit.weight;
  totals->z_loss += unit.z_loss;
  totals->entropy += unit.entropy;
  totals->grad_grad_loss += unit.grad_grad_loss;
  totals->grad_grad_z_loss += unit.grad_grad_z_loss;
  totals->correct += unit.correct;
  totals->counted += unit.counted;
  totals->bad_row = std::min(totals->bad_row, unit.bad_row);
}

}  // namespace

const Kernels& KernelsFor(const Problem& problem) {
  return SelectKernels(problem.logits.dtype == Dtype::kFloat64);
}

UnitSums RunRows(const Problem& problem, Kernels::RowRange kernel, const Tensor& logits) {
  const int64_t step = RowsPerUnit(problem);
  const int64_t units = (problem.rows + step - 1) / step;
  std::vector<UnitSums> sums(static_cast<size_t>(units));
  ParallelFor(units, problem.rows * problem.classes, [&](int64_t unit) {
    const int64_t first = unit * step;
    kernel(problem, first, std::min(step, problem.rows - first), &sums[static_cast<size_t>(unit)]);
  });
  UnitSums totals;
  for (const UnitSums& unit : sums) Add(unit, &totals);
  if (totals.bad_row != kNoBadRow) FailOnTarget(problem, logits, totals.bad_row);
  return totals;
}

void RunWeightGrad(const Problem& problem, const Tensor& logits, const Tensor& out) {
  const Kernels& kernels = KernelsFor(problem);
  const UnitSums sums = RunRows(problem, kernels.forward, logits);
  std::vector<double> grad(static_cast<size_t>(problem.classes), 0.0);
  // The gradient of a mean over a total weight of zero is zero.
  const bool vanishes = problem.reduction == Reduction::kMean && problem.total_weight == 0.0;
  const int64_t units = vanishes ? 0 : (problem.classes + kWeightGradClasses - 1) / kWeightGradClasses;
  ParallelFor(units, problem.rows * problem.classes, [&](int64_t unit) {
    const int64_t first = unit * kWeightGradClasses;
    kernels.weight_grad(problem, first, std::min(kWeightGradClasses, problem.classes - first), sums.loss,
                        grad.data());
  });
  for (int64_t c = 0; c < problem.classes; ++c) StoreDouble(grad[static_cast<size_t>(c)], out, c);
}

void FillZeros(void* data, size_t bytes) {
  constexpr size_t kStep = size_t{1} << 18;
  const auto units = static_cast<int64_t>((bytes + kStep - 1) / kStep);
  ParallelFor(units, static_cast<int64_t>(bytes / 4), [&](int64_t unit) {
    const size_t first = static_cast<size_t>(unit) * kStep;
    std::memset(static_cast<char*>(data) + first, 0, std::min(kStep, bytes - first));
  });
}

void StoreDouble(double value, const Tensor& out, int64_t index) {
  SelectKernels(true).store(value, out.array(), index);
}

bool StreamPays(const Tensor& out) {
  return ElementCount(out.shape) * static_cast<int64_t>(ElementSize(out.dtype)) >= kStreamBytes;
}

}  // namespace ms_ce
