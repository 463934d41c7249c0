// One row at a time, vectorised over the classes. Serves every layout and operation; column_kernel.h
// is faster where a row's classes are few or apart in memory.
#ifndef MS_CE_ROW_KERNEL_H_
#define MS_CE_ROW_KERNEL_H_

#include "loss/row_tiles.h"

namespace ms_ce {
namespace MS_CE_ISA {

// loss = hot (lse - x_y) + coefficient_scale sum_c a_c (lse - x_c), every difference taken from the
// reference.
template <class A>
static double RowLoss(const Problem& problem, const Row& row, const RowSums& sums) {
  const double log_sum = ::log(sums.exp_sum);
  double loss = 0.0;
  if (row.hot != 0.0) {
    const double target = LoadLogit<A>(problem, row, row.target);
    loss += TargetLoss(row.hot, (sums.reference - target) + log_sum);
  }
  if (UsesCoefficients(problem)) {
    loss += CoefficientScale(problem) * CoefficientSum(sums.distance, sums.mass, log_sum);
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
  // A row of nan, of +inf or of nothing but -inf has no softmax: its sum is nan or 0.
  const auto predicted = sums.exp_sum > 0.0 ? static_cast<int32_t>(sums.argmax) : kNoClass;
  totals->z_loss += z_loss;
  totals->entropy += entropy;
  totals->correct += expected == predicted ? 1 : 0;
  if (problem.z_loss_rows.data != nullptr) StoreScalar(z_loss, problem.z_loss_rows, row.index);
  if (problem.entropy_rows.data != nullptr) StoreScalar(entropy, problem.entropy_rows, row.index);
  if (problem.predicted.data != nullptr) *AtOut<int32_t>(problem.predicted, row.index) = predicted;
}

static inline void IgnoredForward(const Problem& problem, int64_t index) {
  if (problem.lse_out != nullptr) problem.lse_out[index] = 0.0;
  if (problem.loss_rows.data != nullptr) StoreScalar(0.0, problem.loss_rows, index);
  if (problem.z_loss_rows.data != nullptr) StoreScalar(0.0, problem.z_loss_rows, index);
  if (problem.entropy_rows.data != nullptr) StoreScalar(0.0, problem.entropy_rows, index);
  if (problem.predicted.data != nullptr) *AtOut<int32_t>(problem.predicted, index) = kNoClass;
}

// Reads the row once. Keeps its exponentials in `terms` unless that is null.
template <class A>
static RowSums ScanRow(const Problem& problem, const Row& row, A* terms) {
  RowSums sums;
  if (terms != nullptr || !IsPlain(problem)) {
    AnyTile<A> tile(problem, row, terms);
    return ScanTiles<A>(problem, &tile);
  }
  ForStored<A>(problem, [&](auto stored) {
    PlainTile<decltype(stored)> tile(problem, row, nullptr, nullptr);
    sums = ScanTiles<A>(problem, &tile);
    tile.SettleTarget(row.target, &sums);
  });
  return sums;
}

// Returns the row's lse.
template <class A>
static Lse FinishForwardRow(const Problem& problem, const Row& row, const RowSums& sums, UnitSums* totals) {
  const double log_sum = ::log(sums.exp_sum);
  const double lse = WholeLse(sums.reference, sums.exp_sum, log_sum);
  const double z_loss = row.weight * ZLoss(problem.z_loss, lse);
  const double loss = row.weight * LossOfSoftmax(RowLoss<A>(problem, row, sums), lse) + z_loss;
  totals->loss += loss;
  if (problem.lse_out != nullptr) problem.lse_out[row.index] = lse;
  if (problem.loss_rows.data != nullptr) StoreScalar(loss, problem.loss_rows, row.index);
  if (problem.statistics) RowStatistics<A>(problem, row, sums, z_loss, totals);
  return {lse, LowOfLse(lse, sums.reference, log_sum)};
}

// The saved lse of a row, whose low part is computed again where it matters.
template <class A>
static Lse SavedLse(const Problem& problem, const Row& row) {
  const double lse = LoadScalar(problem.lse, row.index);
  if (!IsCoarse<A>(lse)) return {lse};
  const RowSums sums = ScanRow<A>(problem, row, nullptr);
  return {lse, LowOfLse(lse, sums.reference, ::log(sums.exp_sum))};
}

// What a block of classes has of the row loss, relative to nothing, so that blocks can be added.
template <class A>
static void PartialRow(const Problem& problem, const Row& row) {
  const RowSums sums = ScanRow<A>(problem, row, nullptr);
  double* out = problem.partial + row.index * 3;
  double dot = 0.0, mass = row.hot;
  if (row.hot != 0.0) dot = row.hot * LoadLogit<A>(problem, row, row.target);
  if (UsesCoefficients(problem)) {
    const double scale = CoefficientScale(problem);
    dot += scale * (sums.mass * sums.reference - sums.distance);
    mass += scale * sums.mass;
  }
  out[0] = sums.reference + ::log(sums.exp_sum);  // -inf of -inf alone: other blocks may hold more
  out[1] = dot;
  out[2] = mass;
}

// sum_c of the row's coefficients, for the operations that are not handed it.
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
static void GradientRow(const Problem& problem, const Row& row, const RowGradient& gradient) {
  if (!IsPlain(problem) || HasGradEntropy(problem)) return GradientInTiles<A>(problem, row, gradient);
  ForStored<A>(problem, [&](auto stored) { GradientInLines<decltype(stored)>(problem, row, gradient); });
}

template <class A>
static void BackwardRow(const Problem& problem, const Row& row) {
  const double mass = CoefficientMass<A>(problem, row);
  const double grad = RowUpstream(problem, problem.grad_loss, row);
  const double grad_z = RowUpstream(problem, problem.grad_z_loss, row);
  RowGradient gradient = LossGradient(problem, row, SavedLse<A>(problem, row), mass, grad, grad_z);
  if (HasGradEntropy(problem)) {
    gradient.grad_entropy = LoadScalar(problem.grad_entropy, row.index);
    gradient.entropy = LoadScalar(problem.entropy, row.index);
  }
  GradientRow<A>(problem, row, gradient);
}

// The gradient of the loss itself, for an upstream gradient of 1.
static inline RowGradient OwnGradient(const Problem& problem, const Row& row, Lse lse, double mass) {
  return LossGradient(problem, row, lse, mass, row.weight * UnitUpstream(problem), 0.0);
}

// While the row is in the cache: read from memory once, written once. Without a place for its
// exponentials they are computed twice. Returns the row's lse.
template <class A>
static double ValueAndGradRow(const Problem& problem, const Row& row, UnitSums* totals, A* terms) {
  const RowSums sums = ScanRow<A>(problem, row, terms);
  const Lse lse = FinishForwardRow<A>(problem, row, sums, totals);
  const RowGradient gradient = OwnGradient(problem, row, lse, sums.mass);
  if (terms == nullptr || sums.moved) {
    GradientRow<A>(problem, row, gradient);
  } else {
    GradientFromTerms(problem, row, gradient, terms, sums.exp_sum);
  }
  return lse.high;
}

// A plain row, which waits in `terms` for the next one.
template <class T>
static void ValueAndGradPlainRow(const Problem& problem, const Row& row, UnitSums* totals,
                                 WorkType<T>* terms, WaitingGradient<T>* waiting) {
  using A = WorkType<T>;
  PlainTile<T> tile(problem, row, terms, waiting);
  RowSums sums = ScanTiles<A>(problem, &tile);
  tile.SettleTarget(row.target, &sums);
  waiting->Finish();
  const Lse lse = FinishForwardRow<A>(problem, row, sums, totals);
  const RowGradient gradient = OwnGradient(problem, row, lse, sums.mass);
  if (sums.moved || !waiting->Take(problem, row, gradient, terms, sums.exp_sum)) {
    GradientInLines<T>(problem, row, gradient);
  }
}

template <class A>
static void PartialBackwardRow(const Problem& problem, const Row& row) {
  const double grad = LoadScalar(problem.grad_loss, row.index);
  const double grad_lse = LoadScalar(problem.grad_lse, row.index);
  const double slope = PartialSlope(grad, grad_lse, LoadScalar(problem.mass, row.index));
  GradientRow<A>(
      problem, row,
      {{LoadScalar(problem.lse, row.index)}, slope, grad * CoefficientScale(problem), grad * row.hot});
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_ROW_KERNEL_H_
