// One row at a time, vectorised over the classes. Serves every layout and operation; column_kernel.h
// is faster where a row's classes are few or apart in memory.
#ifndef MS_CE_ROW_KERNEL_H_
#define MS_CE_ROW_KERNEL_H_

#include "row_scan.h"

namespace ms_ce {
namespace MS_CE_ISA {

// loss = hot (lse - x_y) + coefficient_scale sum_c a_c (lse - x_c), every difference taken from the
// reference. A zero coefficient contributes 0, whatever its logit is.
template <class A>
static double RowLoss(const Problem& problem, const Row& row, const RowSums& sums) {
  const double log_sum = ::log(sums.exp_sum);
  double loss = 0.0;
  if (row.hot != 0.0) {
    const double target = LoadLogit<A>(problem, row, row.target);
    loss += row.hot * ((sums.reference - target) + log_sum);
  }
  if (UsesCoefficients(problem)) {
    const double shared = sums.mass == 0.0 ? 0.0 : sums.mass * log_sum;
    loss += CoefficientScale(problem) * (sums.distance + shared);
  }
  return loss;
}

template <class A>
static int64_t TargetArgmax(const Problem& problem, const Row& row) {
  A scratch[kTile];
  RowSums sums;
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* q = View(problem.target, row.offset + first * row.stride, row.stride, count, scratch);
    TrackArgmax(&sums, q, first, count, TileMax(q, count));
  }
  return sums.argmax;
}

template <class A>
static void RowStatistics(const Problem& problem, const Row& row, const RowSums& sums, double z_loss,
                          UnitSums* totals) {
  const double entropy = ::log(sums.exp_sum) + sums.exp_distance / sums.exp_sum;
  const int64_t expected = problem.probability ? TargetArgmax<A>(problem, row) : row.target;
  totals->z_loss += z_loss;
  totals->entropy += entropy;
  totals->correct += expected == sums.argmax ? 1 : 0;
  if (problem.z_loss_rows.data != nullptr) StoreScalar(z_loss, problem.z_loss_rows, row.index);
  if (problem.entropy_rows.data != nullptr) StoreScalar(entropy, problem.entropy_rows, row.index);
}

static inline void IgnoredForward(const Problem& problem, int64_t index) {
  if (problem.lse_out != nullptr) problem.lse_out[index] = 0.0;
  if (problem.loss_rows.data != nullptr) StoreScalar(0.0, problem.loss_rows, index);
  if (problem.z_loss_rows.data != nullptr) StoreScalar(0.0, problem.z_loss_rows, index);
  if (problem.entropy_rows.data != nullptr) StoreScalar(0.0, problem.entropy_rows, index);
}

// Returns the row's lse.
template <class A>
static double ForwardRow(const Problem& problem, const Row& row, UnitSums* totals, ScanOptions<A> options,
                         RowSums* sums_out) {
  options.coefficients = UsesCoefficients(problem);
  const RowSums sums = ScanRow<A>(problem, row, options);
  const double lse = LogSumExpOfWholeRow(sums);
  const double z_loss = problem.z_loss != 0.0 ? problem.z_loss * lse * lse : 0.0;
  const double loss = RowLoss<A>(problem, row, sums) + z_loss;
  totals->loss += loss;
  if (problem.lse_out != nullptr) problem.lse_out[row.index] = lse;
  if (problem.loss_rows.data != nullptr) StoreScalar(loss, problem.loss_rows, row.index);
  if (problem.statistics) RowStatistics<A>(problem, row, sums, z_loss, totals);
  *sums_out = sums;
  return lse;
}

// A shard's share of the row loss, relative to nothing, so that shards can be added.
template <class A>
static void PartialRow(const Problem& problem, const Row& row) {
  ScanOptions<A> options;
  options.coefficients = UsesCoefficients(problem);
  const RowSums sums = ScanRow<A>(problem, row, options);
  double* out = problem.partial + row.index * 3;
  double dot = 0.0, mass = row.hot;
  if (row.hot != 0.0) dot = row.hot * LoadLogit<A>(problem, row, row.target);
  if (UsesCoefficients(problem)) {
    const double scale = CoefficientScale(problem);
    dot += scale * (sums.mass * sums.reference - sums.distance);
    mass += scale * sums.mass;
  }
  out[0] = LogSumExp(sums);
  out[1] = dot;
  out[2] = mass;
}

// sum_c of the row's coefficients, for the symbols that are not handed it.
template <class A>
static double CoefficientMass(const Problem& problem, const Row& row) {
  if (!UsesCoefficients(problem)) return 0.0;
  if (!problem.probability) return problem.weight_sum;
  alignas(64) A scratch[kTile];
  double mass = 0.0;
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* a = ViewCoefficients(problem, row, first, count, scratch);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += a[i];
    mass += sum;
  }
  return mass;
}

template <class A>
static void BackwardRow(const Problem& problem, const Row& row) {
  const double mass = CoefficientMass<A>(problem, row);
  const double grad = RowUpstream(problem, problem.grad_loss, row.index);
  const double grad_z = RowUpstream(problem, problem.grad_z_loss, row.index);
  GradientRow<A>(problem, row,
                 LossGradient(problem, row, LoadScalar(problem.lse, row.index), mass, grad, grad_z));
}

// While the row is in the cache: read from memory once, written once.
template <class A>
static void ValueAndGradRow(const Problem& problem, const Row& row, UnitSums* totals,
                            const ScanOptions<A>& options) {
  RowSums sums;
  const double lse = ForwardRow<A>(problem, row, totals, options, &sums);
  const double grad = problem.reduction == Reduction::kMean ? 1.0 / problem.total_weight : 1.0;
  const RowGradient gradient = LossGradient(problem, row, lse, sums.mass, grad, 0.0);
  if (options.waiting != nullptr) options.waiting->Finish();
  if (options.kept == nullptr || !options.kept->usable) return GradientRow<A>(problem, row, gradient);
  const A* terms = options.kept->values;
  if (options.waiting != nullptr && options.waiting->Take(problem, row, gradient, terms, sums.exp_sum)) {
    return;
  }
  GradientFromTerms(problem, row, gradient, terms, sums.exp_sum);
}

template <class A>
static void PartialBackwardRow(const Problem& problem, const Row& row) {
  const double grad = LoadScalar(problem.grad_loss, row.index);
  const double grad_lse = LoadScalar(problem.grad_lse, row.index);
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
  const double slope = grad * LoadScalar(problem.mass, row.index) + grad_lse;
  GradientRow<A>(problem, row, {LoadScalar(problem.lse, row.index), slope, grad * scale, grad * row.hot});
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_ROW_KERNEL_H_
