// Derivatives of CrossEntropyBackward, and of the loss with respect to its targets and weights.
#ifndef MS_CE_DOUBLE_BACKWARD_H_
#define MS_CE_DOUBLE_BACKWARD_H_

#include "loss/row_kernel.h"
#include "loss/target_gradient.h"

namespace ms_ce {
namespace MS_CE_ISA {

// Sums over a row of the direction d' = d dx'/dx against p, the coefficients and the target.
struct DirectionSums {
  double mean = 0.0, coefficient = 0.0, target = 0.0;
};

// With t = x'/cap: dx'/dx = scale (1 - t^2), d2x'/dx2 = -2 t scale^2 (1 - t^2) / cap.
template <class A>
static inline void LogitDerivatives(const Problem& problem, const A* transformed, int64_t count, A* first,
                                    A* second) {
  const A scale = static_cast<A>(problem.logit_scale);
  const A inverse_cap = static_cast<A>(problem.softcap == 0.0 ? 0.0 : 1.0 / problem.softcap);
  for (int64_t i = 0; i < count; ++i) {
    const A t = inverse_cap == A(0) ? A(0) : transformed[i] * inverse_cap;
    first[i] = CapSlope(scale, t);
    second[i] = A(-2) * t * scale * first[i] * inverse_cap;
  }
}

template <class A>
struct DirectionTile {
  alignas(64) A logits[kTile], direction[kTile], coefficients[kTile], p[kTile], first[kTile], second[kTile];
  const A *x, *d, *a;

  void Read(const Problem& problem, const Row& row, int64_t begin, int64_t count, Lse lse) {
    const A high = static_cast<A>(lse.high);
    const A low = static_cast<A>((lse.high - static_cast<double>(high)) + lse.low);
    x = ViewLogits(problem, row, begin, count, logits);
    d = View(problem.direction, row.offset + begin * row.stride, row.stride, count, direction);
    a = UsesCoefficients(problem) ? ViewCoefficients(problem, row, begin, count, coefficients) : nullptr;
    LogitDerivatives(problem, x, count, first, second);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) p[i] = Exp((x[i] - high) - low);
  }
};

template <class A>
static DirectionSums ScanDirection(const Problem& problem, const Row& row, Lse lse) {
  DirectionTile<A> tile;
  DirectionSums sums;
  for (int64_t begin = 0; begin < problem.classes; begin += kTile) {
    const int64_t count = TileCount(problem, begin);
    tile.Read(problem, row, begin, count, lse);
    A mean = 0, coefficient = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < count; ++i) mean += tile.p[i] * tile.d[i] * tile.first[i];
    if (tile.a != nullptr) {
#pragma omp simd reduction(+ : coefficient)
      for (int64_t i = 0; i < count; ++i) coefficient += tile.a[i] * tile.d[i] * tile.first[i];
    }
    sums.mean += mean;
    sums.coefficient += coefficient;
    const int64_t hit = row.target - begin;
    if (hit >= 0 && hit < count) sums.target = static_cast<double>(tile.d[hit]) * tile.first[hit];
  }
  return sums;
}

// With S = sum_c d'_c (slope p_c - beta_c):  dS/dx_k = x'_k' [curve p_k mean + slope p_k (d'_k - mean)]
//   + d_k x'_k'' (slope p_k - beta_k), where curve = 2 z_loss (grad + grad_z) is slope's own derivative by
//   lse.
template <class A>
static void WriteDoubleBackward(const Problem& problem, const Row& row, const RowGradient& gradient,
                                double curve, double mean) {
  DirectionTile<A> tile;
  alignas(64) A out[kTile];
  const A slope = static_cast<A>(gradient.slope), scale = static_cast<A>(gradient.scale);
  const A centre = static_cast<A>(mean), bend = static_cast<A>(curve * mean);
  for (int64_t begin = 0; begin < problem.classes; begin += kTile) {
    const int64_t count = TileCount(problem, begin);
    tile.Read(problem, row, begin, count, gradient.lse);
    const int64_t hit = row.target - begin;
    for (int64_t i = 0; i < count; ++i) {
      const A f = tile.first[i], d = tile.d[i], p = tile.p[i];
      const A beta =
          (tile.a == nullptr ? A(0) : scale * tile.a[i]) + (i == hit ? static_cast<A>(gradient.hot) : A(0));
      out[i] = f * p * (bend + slope * (d * f - centre)) + d * tile.second[i] * (slope * p - beta);
    }
    Store(out, problem.grad_logits, row.offset + begin * row.stride, row.stride, count, false);
  }
}

template <class A>
static void DoubleBackwardRow(const Problem& problem, const Row& row, UnitSums* totals) {
  const Lse lse = SavedLse<A>(problem, row);
  const double grad = RowUpstream(problem, problem.grad_loss, row);
  const double grad_z = RowUpstream(problem, problem.grad_z_loss, row);
  const double mass = CoefficientMass<A>(problem, row);
  const RowGradient gradient = LossGradient(problem, row, lse, mass, grad, grad_z);
  const DirectionSums sums = ScanDirection<A>(problem, row, lse);
  const double scale = CoefficientScale(problem);
  const double divisor = problem.reduction == Reduction::kMean ? problem.total_weight : 1.0;
  const double by_z = row.weight * 2.0 * problem.z_loss * lse.high * sums.mean / divisor;
  const double by_loss =
      row.weight *
          ((row.hot + scale * mass) * sums.mean - scale * sums.coefficient - row.hot * sums.target) /
          divisor +
      by_z;
  totals->grad_grad_loss += by_loss;
  totals->grad_grad_z_loss += by_z;
  problem.direction_mean[row.index] = sums.mean;
  if (problem.reduction == Reduction::kNone) {
    StoreScalar(by_loss, problem.grad_grad_loss, row.index);
    StoreScalar(by_z, problem.grad_grad_z_loss, row.index);
  }
  WriteDoubleBackward<A>(problem, row, gradient, 2.0 * problem.z_loss * (grad + grad_z), sums.mean);
}

static inline void IgnoredDoubleBackward(const Problem& problem, const Row& row) {
  problem.direction_mean[row.index] = 0.0;
  if (problem.reduction == Reduction::kNone) {
    StoreScalar(0.0, problem.grad_grad_loss, row.index);
    StoreScalar(0.0, problem.grad_grad_z_loss, row.index);
  }
  StoreZeros(problem.grad_logits, row.offset, row.stride, problem.classes, false);
}

// The derivatives of the loss by targets and weights are made of lse and x'. Their own derivatives along a
// direction are the same formulas with what moves in the place of the two: of a row, and of its classes.
static inline double Centre(const Problem& problem, int64_t index) {
  return problem.direction.data == nullptr ? LoadScalar(problem.lse, index) : problem.direction_mean[index];
}

template <class A>
static const A* ViewMoving(const Problem& problem, const Row& row, int64_t first, int64_t count, const A* x,
                           A* scratch) {
  if (problem.direction.data == nullptr) return x;
  alignas(64) A slope[kTile], curve[kTile];
  LogitDerivatives(problem, x, count, slope, curve);
  const A* d = View(problem.direction, row.offset + first * row.stride, row.stride, count, scratch);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) scratch[i] = d[i] * slope[i];
  return scratch;
}

template <class A>
static void TargetGradRow(const Problem& problem, const Row& row, double centre, double row_upstream) {
  alignas(64) A logits_scratch[kTile];
  alignas(64) A moving_scratch[kTile];
  alignas(64) A weight_scratch[kTile];
  alignas(64) A coefficient_scratch[kTile];
  alignas(64) A out[kTile];
  const A high = OneNan(static_cast<A>(centre)),
          low = OneNan(static_cast<A>(centre - static_cast<double>(high)));
  const A upstream = OneNan(static_cast<A>(row_upstream * (1.0 - problem.label_smoothing)));
  if (HasPlainTargets(problem) && upstream != A(0)) {
    return ForStored<A>(problem, [&](auto stored) {
      TargetGradInLines<decltype(stored)>(problem, row, upstream, high, low);
    });
  }
  // Lines of 16-bit values that bypass the cache make the loads behind them wait here.
  const bool stream = problem.stream_stores && FloatBytes(problem.grad_target.dtype) >= 4;
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* x = ViewLogits(problem, row, first, count, logits_scratch);
    const A* moving = ViewMoving(problem, row, first, count, x, moving_scratch);
    const A* w = ViewWeights(problem, first, count, weight_scratch);
    const A* a = ViewCoefficients(problem, row, first, count, coefficient_scratch);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const A scale = upstream * w[i];
      out[i] = scale == A(0) ? A(0) : TargetGradient(x[i], moving[i], a[i], scale, high, low);
    }
    Store(out, problem.grad_target, row.offset + first * row.stride, row.stride, count, stream);
  }
}

// Whether a class of coefficient 0 contributes nothing: beside a logit of -inf, in a row that has a
// softmax.
template <class A>
MS_CE_INLINE bool IsExcluded(A coefficient, A x, double centre) {
  return coefficient == A(0) && x == -static_cast<A>(INFINITY) && centre == centre;
}

// Adds upstream q'_c (lse - x_c) of one row (class targets: the smoothing share) to classes
// [begin, begin + count).
template <class A>
static void WeightGradTile(const Problem& problem, const Row& row, int64_t begin, int64_t count,
                           double upstream, double* grad_weight) {
  alignas(64) A logits_scratch[kTile];
  alignas(64) A moving_scratch[kTile];
  alignas(64) A target_scratch[kTile];
  alignas(64) A weight_scratch[kTile];
  const A* x = ViewLogits(problem, row, begin, count, logits_scratch);
  const A* moving = ViewMoving(problem, row, begin, count, x, moving_scratch);
  const A* w = ViewWeights(problem, begin, count, weight_scratch);
  const A* q = nullptr;
  if (problem.probability) {
    q = View(problem.target, row.offset + begin * row.stride, row.stride, count, target_scratch);
  }
  const double centre = Centre(problem, row.index);
  for (int64_t i = 0; i < count; ++i) {
    double share = problem.smooth;
    if (q != nullptr) share += (1.0 - problem.label_smoothing) * q[i];
    if (share == 0.0 || IsExcluded(w[i], x[i], centre)) continue;
    grad_weight[begin + i] += upstream * share * (centre - moving[i]);
  }
}

template <class A>
static void WeightGradClasses(const Problem& problem, int64_t first, int64_t count, double* grad_weight,
                              double* hits) {
  UnitSums ignored;
  for (int64_t index = 0; index < problem.rows; ++index) {
    const Row row = MakeRow(problem, index, &ignored);
    if (row.target == kIgnored) continue;
    const double upstream = RowUpstream(problem, problem.grad_loss, row);
    if (UsesCoefficients(problem)) {
      for (int64_t begin = first; begin < first + count; begin += kTile) {
        const int64_t left = first + count - begin;
        WeightGradTile<A>(problem, row, begin, left < kTile ? left : kTile, upstream, grad_weight);
      }
    }
    if (row.target < first || row.target >= first + count) continue;
    hits[row.target] += row.weight;
    const A target = static_cast<A>(LoadLogit<A>(problem, row, row.target));
    const double keep = 1.0 - problem.label_smoothing;
    const double centre = Centre(problem, index);
    if (keep == 0.0 || IsExcluded(static_cast<A>(row.target_weight), target, centre)) continue;
    A scratch;
    const A moving = *ViewMoving(problem, row, row.target, 1, &target, &scratch);
    grad_weight[row.target] += upstream * keep * (centre - moving);
  }
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_DOUBLE_BACKWARD_H_
