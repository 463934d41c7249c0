// One row at a time, vectorised over the classes. Serves every layout and operation; column_kernel.h
// is faster where a row's classes are few or apart in memory.
#ifndef MS_CE_ROW_KERNEL_H_
#define MS_CE_ROW_KERNEL_H_

#include "row_terms.h"

namespace ms_ce {
namespace MS_CE_ISA {

// Sums over one row, relative to `reference`, which lies near the row's maximum: differences of
// logits are exact to rounding however large their common offset is.
struct RowSums {
  double reference = 0.0;
  double exp_sum = 0.0;       // sum exp(x - reference)
  double distance = 0.0;      // sum a (reference - x), a = coefficient
  double mass = 0.0;          // sum a
  double exp_distance = 0.0;  // sum exp(x - reference) (reference - x)
  double maximum = -INFINITY;
  int64_t argmax = 0;
};

// Above this distance a new maximum becomes the reference; below it exp cannot overflow.
constexpr double kReferenceSlack = 20.0;

template <class A>
static inline A TileMax(const A* x, int64_t count) {
  A maximum = -INFINITY;
#pragma omp simd reduction(max : maximum)
  for (int64_t i = 0; i < count; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  return maximum;
}

// Keeps the (scaled) terms where `terms` is not null.
template <class A>
static inline double TileExpSum(const A* x, int64_t count, A reference, A* maximum_out, A* terms) {
  A maximum = -INFINITY, sum = 0;
  if (terms == nullptr) {
#pragma omp simd reduction(max : maximum) reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
      maximum = x[i] > maximum ? x[i] : maximum;
      sum += ExpScaled(x[i] - reference);
    }
  } else {
#pragma omp simd reduction(max : maximum) reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
      maximum = x[i] > maximum ? x[i] : maximum;
      const A term = ExpScaled(x[i] - reference);
      terms[i] = term;
      sum += term;
    }
  }
  *maximum_out = maximum;
  return Unscale(sum);
}

template <class A>
static inline A TileExpDistance(const A* x, int64_t count, A reference) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const A distance = reference - x[i];
    const A e = Exp(-distance);
    const A term = e * distance;
    sum += e == A(0) ? A(0) : term;
  }
  return sum;
}

template <class A>
static inline A TileDistance(const A* x, const A* a, int64_t count, A reference, A* mass_out) {
  A sum = 0, mass = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const A term = a[i] * (reference - x[i]);
    sum += a[i] == A(0) ? A(0) : term;
  }
#pragma omp simd reduction(+ : mass)
  for (int64_t i = 0; i < count; ++i) mass += a[i];
  *mass_out = mass;
  return sum;
}

static inline void MoveReference(RowSums* sums, double reference) {
  const double shift = reference - sums->reference;
  // An empty sum may move down any distance, where exp(-shift) overflows.
  if (sums->exp_sum != 0.0) {
    const double scale = ::exp(-shift);
    sums->exp_distance = scale * (sums->exp_distance + shift * sums->exp_sum);
    sums->exp_sum *= scale;
  }
  sums->distance += shift * sums->mass;
  sums->reference = reference;
}

// First index whose value is larger than all before it, when this tile raises the maximum.
template <class A>
static inline void TrackArgmax(RowSums* sums, const A* x, int64_t first, int64_t count, A maximum) {
  if (!(static_cast<double>(maximum) > sums->maximum)) return;
  sums->maximum = maximum;
  for (int64_t i = 0; i < count; ++i) {
    if (x[i] == maximum) {
      sums->argmax = first + i;
      return;
    }
  }
}

// The exponentials of a row, kept from the forward pass for the gradient. They are all relative to one
// reference unless a later tile moved it.
template <class A>
struct KeptTerms {
  A* values = nullptr;
  bool usable = false;
};

// Reads the row once.
template <class A>
static RowSums ScanRow(const Problem& problem, const Row& row, bool coefficients, KeptTerms<A>* kept) {
  alignas(64) A logits_scratch[kTile];
  alignas(64) A coefficient_scratch[kTile];
  RowSums sums;
  bool has_reference = false;
  kept->usable = kept->values != nullptr;
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* x = ViewLogits(problem, row, first, count, logits_scratch);
    A* terms = kept->values == nullptr ? nullptr : kept->values + first;
    A maximum;
    if (!has_reference) {
      maximum = TileMax(x, count);
      if (maximum > -INFINITY) {
        MoveReference(&sums, maximum);
        has_reference = true;
      }
    }
    double sum = TileExpSum(x, count, static_cast<A>(sums.reference), &maximum, terms);
    if (static_cast<double>(maximum) > sums.reference + kReferenceSlack) {
      MoveReference(&sums, maximum);
      sum = TileExpSum(x, count, static_cast<A>(sums.reference), &maximum, terms);
      kept->usable = false;
    }
    sums.exp_sum += sum;
    if (problem.statistics) {
      sums.exp_distance += TileExpDistance(x, count, static_cast<A>(sums.reference));
      TrackArgmax(&sums, x, first, count, maximum);
    }
    if (coefficients) {
      const A* a = ViewCoefficients(problem, row, first, count, coefficient_scratch);
      A mass;
      sums.distance += TileDistance(x, a, count, static_cast<A>(sums.reference), &mass);
      sums.mass += mass;
    }
  }
  return sums;
}

static inline double LogSumExp(const RowSums& sums) { return sums.reference + ::log(sums.exp_sum); }

// A row of -inf alone has no softmax: its lse is nan, as exp(-inf - max) is. A shard of -inf alone has
// lse -inf, since other shards may hold more.
static inline double LogSumExpOfWholeRow(const RowSums& sums) {
  return sums.exp_sum == 0.0 ? NAN : LogSumExp(sums);
}

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
static double ForwardRow(const Problem& problem, const Row& row, UnitSums* totals, KeptTerms<A>* kept,
                         RowSums* sums_out) {
  const RowSums sums = ScanRow<A>(problem, row, UsesCoefficients(problem), kept);
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
  KeptTerms<A> none;
  const RowSums sums = ScanRow<A>(problem, row, UsesCoefficients(problem), &none);
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

// grad of x'_c: slope p_c - scale a_c - hot 1{c = target}
struct RowGradient {
  double lse, slope, scale, hot;
};

template <class A>
static inline void TileGradient(const A* x, const A* a, A* out, int64_t count, A lse_high, A lse_low,
                                A slope, A scale) {
  if (a == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = slope * Exp((x[i] - lse_high) - lse_low);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      out[i] = slope * Exp((x[i] - lse_high) - lse_low) - scale * a[i];
    }
  }
}

// What remains of a gradient tile once `out` holds the softmax's share.
template <class A>
static inline void FinishGradientTile(const Problem& problem, const Row& row, const RowGradient& gradient,
                                      const A* x, int64_t first, int64_t count, A* out) {
  const int64_t hit = row.target - first;
  if (hit >= 0 && hit < count) out[hit] -= static_cast<A>(gradient.hot);
  ChainLogitTransform(problem, x, out, count);
  Store(out, problem.grad_logits, row.offset + first * row.stride, row.stride, count,
        problem.stream_stores);
}

// Reads the row once and writes its gradient once.
template <class A>
static void GradientRow(const Problem& problem, const Row& row, const RowGradient& gradient) {
  alignas(64) A logits_scratch[kTile];
  alignas(64) A coefficient_scratch[kTile];
  alignas(64) A out[kTile];
  const A high = static_cast<A>(gradient.lse);
  const A low = static_cast<A>(gradient.lse - static_cast<double>(high));
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* x = ViewLogits(problem, row, first, count, logits_scratch);
    const A* a =
        gradient.scale == 0.0 ? nullptr : ViewCoefficients(problem, row, first, count, coefficient_scratch);
    TileGradient(x, a, out, count, high, low, static_cast<A>(gradient.slope),
                 static_cast<A>(gradient.scale));
    FinishGradientTile(problem, row, gradient, x, first, count, out);
  }
}

// The same from the kept terms: p = term / sum. Not for softcap, whose derivative needs the logits.
template <class A>
static void GradientFromTerms(const Problem& problem, const Row& row, const RowGradient& gradient,
                              const A* terms, double exp_sum) {
  alignas(64) A coefficient_scratch[kTile];
  alignas(64) A out[kTile];
  const A slope = static_cast<A>(gradient.slope / exp_sum), scale = static_cast<A>(gradient.scale);
  const A unscale = static_cast<A>(Unscale(A(1)));
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = slope * (terms[first + i] * unscale);
    if (gradient.scale != 0.0) {
      const A* a = ViewCoefficients(problem, row, first, count, coefficient_scratch);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) out[i] -= scale * a[i];
    }
    FinishGradientTile<A>(problem, row, gradient, nullptr, first, count, out);
  }
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

// The gradient for upstream `grad` on the row loss and `grad_z` on its z part.
static inline RowGradient LossGradient(const Problem& problem, const Row& row, double lse, double mass,
                                       double grad, double grad_z) {
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
  double slope = grad * (row.hot + scale * mass);
  if (problem.z_loss != 0.0) slope += 2.0 * problem.z_loss * lse * (grad + grad_z);
  return {lse, slope, grad * scale, grad * row.hot};
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
static void ValueAndGradRow(const Problem& problem, const Row& row, UnitSums* totals, KeptTerms<A>* kept) {
  RowSums sums;
  const double lse = ForwardRow<A>(problem, row, totals, kept, &sums);
  const double grad = problem.reduction == Reduction::kMean ? 1.0 / problem.total_weight : 1.0;
  const RowGradient gradient = LossGradient(problem, row, lse, sums.mass, grad, 0.0);
  if (kept->usable) return GradientFromTerms(problem, row, gradient, kept->values, sums.exp_sum);
  GradientRow<A>(problem, row, gradient);
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
