#include "loss/run.h"

#include <algorithm>
#include <cstring>

#include "platform/dispatch.h"
#include "platform/thread_pool.h"

namespace ms_ce {
namespace {

// A unit is large enough to hide its bookkeeping and small enough to balance threads. Cut by shape
// alone: the sums' order must not depend on the threads.
constexpr int64_t kFewestUnitElements = 65536, kMostUnitElements = 524288;
constexpr int64_t kUnits = 256;      // at least, before units grow
constexpr int64_t kBlockRows = 128;  // what the kernels that take many rows at a time work on
constexpr int64_t kWeightGradClasses = 1024;

// From here on the gradient evicts what the caller could still use, and reading its lines before
// writing them costs a third of the traffic (docs/kernel.md).
constexpr int64_t kStreamBytes = int64_t{8} << 20;

int64_t RowsPerUnit(const Problem& problem) {
  const int64_t elements =
      std::clamp(problem.rows * problem.classes / kUnits, kFewestUnitElements, kMostUnitElements);
  const int64_t rows = std::max<int64_t>(1, elements / problem.classes);
  if (problem.inner == 1) return rows < kBlockRows ? rows : rows / kBlockRows * kBlockRows;
  // Whole blocks, or narrower ones where those would be too few to share out.
  const int64_t block = problem.rows >= 16 * kBlockRows ? kBlockRows : kBlockRows / 4;
  return (rows + block - 1) / block * block;
}

// L = sum_c w_c dL/dw_c + z_loss sum_n lse_n^2, with the lse given; that of ignored rows is 0. What arrives
// at the z-losses beside the loss reaches the weights by the divisor alone. Along a direction the
// derivatives of L and lse^2 stand in their place.
void DivideByWeights(const Problem& problem, const std::vector<double>& hits, std::vector<double>* grad) {
  const Kernels& kernels = KernelsFor(problem);
  double loss = 0.0, squares = 0.0;
  for (int64_t c = 0; c < problem.classes; ++c) {
    loss += kernels.load(problem.weight, c) * (*grad)[static_cast<size_t>(c)];
  }
  for (int64_t row = 0; row < problem.rows && problem.z_loss != 0.0; ++row) {
    const double lse = kernels.load(problem.lse, row);
    const bool weighted = problem.row_weight.data != nullptr;
    const double square = problem.direction.data == nullptr ? lse : 2.0 * problem.direction_mean[row];
    squares += (weighted ? kernels.load(problem.row_weight, row) : 1.0) * lse * square;
  }
  double upstream = kernels.load(problem.grad_loss, 0);
  if (problem.grad_z_loss.data != nullptr) upstream += kernels.load(problem.grad_z_loss, 0);
  loss += upstream * problem.z_loss * squares;
  const double mean = loss / problem.total_weight;
  for (size_t c = 0; c < grad->size(); ++c)
    (*grad)[c] = ((*grad)[c] - mean * hits[c]) / problem.total_weight;
}

[[noreturn]] void FailOnTarget(const Problem& problem, const Tensor& logits, int64_t row) {
  const Shape shape = RowsShape(logits.shape);
  Shape position(shape.size());
  int64_t rest = row;
  for (size_t axis = shape.size(); axis-- > 0;) {
    position[axis] = rest % shape[axis];
    rest /= shape[axis];
  }
  int64_t value;
  switch (problem.target.dtype) {
    case Dtype::kInt32:
      value = static_cast<const int32_t*>(problem.target.data)[row];
      break;
    case Dtype::kUint8:
      value = static_cast<const uint8_t*>(problem.target.data)[row];
      break;
    default:
      value = static_cast<const int64_t*>(problem.target.data)[row];
  }
  Fail("target " + std::to_string(value) + " at position " + ShapeText(position) + " is outside [0, " +
       std::to_string(problem.total_classes) + ") and is not ignore_index (" +
       std::to_string(problem.ignore_index) + ")");
}

}  // namespace

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

// The mean of class targets divides by the weights' own sum T: with L the sum of the row losses, its
// gradient is (dL/dw_c - L/T hits_c) / T, and zero where T is.
WeightGradient::WeightGradient(const Problem& whole)
    : whole_(whole),
      vanishes_(whole.reduction == Reduction::kMean && whole.total_weight == 0.0),
      divided_(whole.reduction == Reduction::kMean && !whole.probability),
      grad_(static_cast<size_t>(whole.classes), 0.0),
      hits_(static_cast<size_t>(whole.classes), 0.0) {}

void WeightGradient::Add(const Problem& rows) {
  if (vanishes_) return;
  Problem undivided = rows;
  if (divided_) undivided.total_weight = 1.0;
  const Kernels& kernels = KernelsFor(rows);
  const int64_t units = (rows.classes + kWeightGradClasses - 1) / kWeightGradClasses;
  ParallelFor(units, rows.rows * rows.classes, [&](int64_t unit) {
    const int64_t first = unit * kWeightGradClasses;
    const int64_t count = std::min(kWeightGradClasses, rows.classes - first);
    kernels.weight_grad(undivided, first, count, grad_.data(), hits_.data());
  });
}

void WeightGradient::Store(const Tensor& out) {
  if (divided_ && !vanishes_) DivideByWeights(whole_, hits_, &grad_);
  for (size_t c = 0; c < grad_.size(); ++c) StoreDouble(grad_[c], out, static_cast<int64_t>(c));
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

void Negate(const Tensor& tensor) {
  auto* values = static_cast<double*>(tensor.data);
  for (int64_t i = 0; i < ElementCount(tensor.shape); ++i) values[i] = 0.0 - values[i];
}

double Reduced(const Problem& problem, double sum, double divisor) {
  return problem.reduction == Reduction::kMean ? sum / divisor : sum;
}

bool StreamPays(const Tensor& out) {
  return ElementCount(out.shape) * static_cast<int64_t>(ElementSize(out.dtype)) >= kStreamBytes;
}

}  // namespace ms_ce
