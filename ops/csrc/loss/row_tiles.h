// Rows of any kind, a tile at a time: strided, transformed, with coefficients or statistics.
#ifndef MS_CE_ROW_TILES_H_
#define MS_CE_ROW_TILES_H_

#include "loss/plain_rows.h"

namespace ms_ce {
namespace MS_CE_ISA {

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
    sum += DistanceTerm(a[i], reference, x[i]);
  }
#pragma omp simd reduction(+ : mass)
  for (int64_t i = 0; i < count; ++i) mass += a[i];
  *mass_out = mass;
  return sum;
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

template <class A>
class AnyTile {
 public:
  // Keeps the row's exponentials in `terms` unless that is null.
  AnyTile(const Problem& problem, const Row& row, A* terms) : problem_(problem), row_(row), terms_(terms) {}

  void Enter(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    x_ = ViewLogits(problem_, row_, first, count, logits_);
  }

  A Maximum() const { return TileMax(x_, count_); }

  double Sum(A reference, A* maximum) const {
    const auto nothing = [] {};
    const RunSums<A> sums = terms_ == nullptr
                                ? SumLines<A, false, false>(x_, count_, reference, nullptr, nothing)
                                : SumLines<A, true, false>(x_, count_, reference, terms_ + first_, nothing);
    *maximum = sums.maximum;
    return Unscale(sums.exp);
  }

  void AddRest(A maximum, RowSums* sums) {
    const A reference = static_cast<A>(sums->reference);
    if (problem_.statistics) {
      sums->exp_distance += TileExpDistance(x_, count_, reference);
      TrackArgmax(sums, x_, first_, count_, maximum);
    }
    if (!UsesCoefficients(problem_)) return;
    const A* a = ViewCoefficients(problem_, row_, first_, count_, coefficients_);
    A mass;
    sums->distance += TileDistance(x_, a, count_, reference, &mass);
    sums->mass += mass;
  }

 private:
  const Problem& problem_;
  const Row& row_;
  A* terms_;
  const A* x_ = nullptr;
  int64_t first_ = 0, count_ = 0;
  alignas(64) A logits_[kTile];
  alignas(64) A coefficients_[kTile];
};

template <class A, bool kScaled>
static inline void TileGradient(const A* x, const A* a, A* out, int64_t count, A high, A factor, A scale) {
  if (a == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = SoftmaxTerm<kScaled>(x[i], high, factor);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = SoftmaxTerm<kScaled>(x[i], high, factor) - scale * a[i];
  }
}

// Of the entropy -sum_c p_c log p_c, of which a class without probability has no part.
template <class A, bool kScaled>
static inline void AddEntropyGradient(const RowGradient& gradient, const SoftmaxFactor<A>& softmax,
                                      const A* x, int64_t count, A* out) {
  const A low = static_cast<A>((gradient.lse.high - static_cast<double>(softmax.high)) + gradient.lse.low);
  const A entropy = static_cast<A>(gradient.entropy);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const A distance = x[i] - softmax.high;
    const A share = softmax.factor * Term<kScaled>(distance) * ((distance - low) + entropy);
    out[i] -= x[i] == -static_cast<A>(INFINITY) ? A(0) : share;
  }
}

template <class A>
static inline void AddEntropyGradient(const RowGradient& gradient, const A* x, int64_t count, A* out) {
  const SoftmaxFactor<A> softmax(gradient.lse, gradient.grad_entropy);
  if (softmax.scaled) return AddEntropyGradient<A, true>(gradient, softmax, x, count, out);
  AddEntropyGradient<A, false>(gradient, softmax, x, count, out);
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

template <class A, bool kScaled>
static void GradientInTilesScaled(const Problem& problem, const Row& row, const RowGradient& gradient,
                                  A high, A factor) {
  const A scale = static_cast<A>(gradient.scale);
  alignas(64) A logits_scratch[kTile];
  alignas(64) A coefficient_scratch[kTile];
  alignas(64) A out[kTile];
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* x = ViewLogits(problem, row, first, count, logits_scratch);
    const A* a =
        gradient.scale == 0.0 ? nullptr : ViewCoefficients(problem, row, first, count, coefficient_scratch);
    TileGradient<A, kScaled>(x, a, out, count, high, factor, scale);
    if (gradient.grad_entropy != 0.0) AddEntropyGradient(gradient, x, count, out);
    FinishGradientTile(problem, row, gradient, x, first, count, out);
  }
}

template <class A>
static void GradientInTiles(const Problem& problem, const Row& row, const RowGradient& gradient) {
  const SoftmaxFactor<A> softmax(gradient.lse, gradient.slope);
  if (softmax.scaled) {
    return GradientInTilesScaled<A, true>(problem, row, gradient, softmax.high, softmax.factor);
  }
  GradientInTilesScaled<A, false>(problem, row, gradient, softmax.high, softmax.factor);
}

// The same from the row's (scaled) exponentials: p = term / sum. Not for softcap, whose derivative needs
// the logits.
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

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_ROW_TILES_H_
