// What a row's terms are, for every kernel: its place, target, logits after scale and softcap, and the
// coefficients of the classes (row_loss = hot (lse - x_y) + coefficient_scale sum_c a_c (lse - x_c)).
#ifndef MS_CE_ROW_TERMS_H_
#define MS_CE_ROW_TERMS_H_

#include "loss/formulas.h"
#include "loss/problem.h"
#include "platform/tile_io.h"

namespace ms_ce {
namespace MS_CE_ISA {

constexpr int64_t kIgnored = -1;  // the row counts for nothing and is not read
constexpr int64_t kNoTarget =
    -2;  // no single target class here: probabilities, or another block of classes

struct Row {
  int64_t index, offset, stride;  // element c lies at offset + c stride
  int64_t target;                 // local class, kIgnored or kNoTarget
  double weight;                  // of the row itself
  double target_weight;           // w_y, also where another block holds the class
  double hot;                     // (1 - label_smoothing) w_y, 0 under kNoTarget
};

static inline double RowWeight(const Problem& problem, int64_t index) {
  return problem.row_weight.data == nullptr ? 1.0 : LoadScalar(problem.row_weight, index);
}

static inline Row MakeRow(const Problem& problem, int64_t index, UnitSums* totals) {
  Row row{index, 0, problem.inner, kNoTarget, RowWeight(problem, index), 1.0, 0.0};
  row.offset = index / problem.inner * problem.classes * problem.inner + index % problem.inner;
  if (row.weight == 0.0) {
    row.target = kIgnored;
    return row;
  }
  if (problem.probability) return row;
  const int64_t target = LoadInteger(problem.target, index);
  if (target == problem.ignore_index) {
    row.target = kIgnored;
    return row;
  }
  if (target < 0 || target >= problem.total_classes) {
    if (index < totals->bad_row) totals->bad_row = index;
    row.target = kIgnored;
    return row;
  }
  if (problem.weight.data != nullptr) row.target_weight = LoadScalar(problem.weight, target);
  const int64_t local = target - problem.class_offset;
  if (local >= 0 && local < problem.classes) {
    row.target = local;
    row.hot = (1.0 - problem.label_smoothing) * row.target_weight;
  }
  return row;
}

// What the row adds to a mean's divisor. A product by itself: contracted with the sum that takes it, its
// bits would depend on the kernel.
static inline double CountedWeight(const Problem& problem, const Row& row) {
  if (problem.row_weight.data == nullptr) return row.target_weight;
  volatile double product = row.weight * row.target_weight;
  return product;
}

static inline bool HasGradEntropy(const Problem& problem) { return problem.grad_entropy.data != nullptr; }

static inline bool UsesCoefficients(const Problem& problem) {
  return problem.probability || problem.smooth != 0.0;
}

// Class targets: a_c = w_c, scaled by label_smoothing / C. Probabilities: a_c = w_c q'_c. 0 where there are
// none.
static inline double CoefficientScale(const Problem& problem) {
  return problem.probability ? 1.0 : problem.smooth;
}

static inline int64_t TileCount(const Problem& problem, int64_t first) {
  const int64_t left = problem.classes - first;
  return left < kTile ? left : kTile;
}

// x' = cap tanh(scale x / cap), or scale x.
template <class A>
static inline void ApplyLogitTransform(const Problem& problem, const A* x, int64_t count, A* out) {
  const A scale = static_cast<A>(problem.logit_scale);
  if (problem.softcap == 0.0) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = scale * x[i];
    return;
  }
  const A cap = static_cast<A>(problem.softcap);
  const A inside = static_cast<A>(problem.logit_scale / problem.softcap);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = CappedLogit(x[i], cap, inside);
}

static inline bool TransformsLogits(const Problem& problem) {
  return problem.softcap != 0.0 || problem.logit_scale != 1.0;
}

// Multiplies by dx'/dx = scale (1 - (x'/cap)^2), or scale.
template <class A>
static inline void ChainLogitTransform(const Problem& problem, const A* transformed, A* gradient,
                                       int64_t count) {
  if (!TransformsLogits(problem)) return;
  const A scale = static_cast<A>(problem.logit_scale);
  if (problem.softcap == 0.0) {
    for (int64_t i = 0; i < count; ++i) gradient[i] *= scale;
    return;
  }
  const A inverse_cap = static_cast<A>(1.0 / problem.softcap);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    gradient[i] *= CapSlope(scale, transformed[i] * inverse_cap);
  }
}

template <class A>
static inline const A* ViewLogits(const Problem& problem, const Row& row, int64_t first, int64_t count,
                                  A* scratch) {
  const A* x = View(problem.logits, row.offset + first * row.stride, row.stride, count, scratch);
  if (!TransformsLogits(problem)) return x;
  ApplyLogitTransform(problem, x, count, scratch);
  return scratch;
}

template <class A>
static inline double LoadLogit(const Problem& problem, const Row& row, int64_t index) {
  A scratch;
  return *ViewLogits(problem, row, index, 1, &scratch);
}

template <class A>
static inline const A* ViewWeights(const Problem& problem, int64_t first, int64_t count, A* scratch) {
  if (problem.weight.data != nullptr) {
    return View(problem.weight, problem.class_offset + first, 1, count, scratch);
  }
  for (int64_t i = 0; i < count; ++i) scratch[i] = A(1);
  return scratch;
}

template <class A>
static inline const A* ViewCoefficients(const Problem& problem, const Row& row, int64_t first,
                                        int64_t count, A* scratch) {
  if (!problem.probability) return ViewWeights(problem, first, count, scratch);
  const A* q = View(problem.target, row.offset + first * row.stride, row.stride, count, scratch);
  if (problem.smooth != 0.0) {
    const A keep = static_cast<A>(1.0 - problem.label_smoothing);
    const A spread = static_cast<A>(problem.smooth);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) scratch[i] = SmoothedProbability(q[i], keep, spread);
    q = scratch;
  }
  if (problem.weight.data == nullptr) return q;
  alignas(64) A weight_scratch[kTile];
  const A* w = View(problem.weight, problem.class_offset + first, 1, count, weight_scratch);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) scratch[i] = w[i] * q[i];
  return scratch;
}

// The upstream gradient of a sum or a mean of weighted row losses; 0 where there is none.
static inline double SharedUpstream(const Problem& problem, const Array& upstream) {
  if (upstream.data == nullptr) return 0.0;
  const double grad = LoadScalar(upstream, 0);
  return problem.reduction == Reduction::kMean ? grad / problem.total_weight : grad;
}

// The same for an upstream gradient of 1.
static inline double UnitUpstream(const Problem& problem) {
  return problem.reduction == Reduction::kMean ? 1.0 / problem.total_weight : 1.0;
}

// That of one row's loss before its weight.
static inline double RowUpstream(const Problem& problem, const Array& upstream, const Row& row) {
  if (upstream.data == nullptr) return 0.0;
  if (problem.reduction == Reduction::kNone) return row.weight * LoadScalar(upstream, row.index);
  return row.weight * SharedUpstream(problem, upstream);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_ROW_TERMS_H_
