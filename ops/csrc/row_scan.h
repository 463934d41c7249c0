// One pass over a row: the sums that loss, lse and statistics are made of.
#ifndef MS_CE_ROW_SCAN_H_
#define MS_CE_ROW_SCAN_H_

#include "row_gradient.h"

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

// Sum and maximum of exp(x - reference) (scaled), line by line, so that a line is asked for well before its
// use. Keeps the terms where kKeep; calls between() once a line.
template <class A, bool kKeep, class Between>
static inline double TileExpSum(const A* x, int64_t count, A reference, A* maximum_out, A* terms,
                                Between between) {
  alignas(64) A maximum[kLine<A>], sum[kLine<A>];
  for (int64_t k = 0; k < kLine<A>; ++k) {
    maximum[k] = -static_cast<A>(INFINITY);
    sum[k] = A(0);
  }
  const auto add = [&](int64_t i, int64_t k) {
    maximum[k] = x[i] > maximum[k] ? x[i] : maximum[k];
    const A term = ExpScaled(x[i] - reference);
    if (kKeep) terms[i] = term;
    sum[k] += term;
  };
  int64_t first = 0;
  for (; first + kLine<A> <= count; first += kLine<A>) {
    PrefetchAhead(x + first);
#pragma omp simd
    for (int64_t k = 0; k < kLine<A>; ++k) add(first + k, k);
    between();
  }
  for (int64_t k = 0; first + k < count; ++k) add(first + k, k);
  for (int64_t k = 1; k < kLine<A>; ++k) {
    maximum[0] = maximum[k] > maximum[0] ? maximum[k] : maximum[0];
    sum[0] += sum[k];
  }
  *maximum_out = maximum[0];
  return Unscale(sum[0]);
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

// What ScanRow does beside its sums.
template <class A>
struct ScanOptions {
  bool coefficients = false;
  KeptTerms<A>* kept = nullptr;           // filled
  WaitingGradient<A>* waiting = nullptr;  // streamed between the loads
};

template <class A>
static inline double SumTile(const A* x, int64_t first, int64_t count, A reference, A* maximum,
                             const ScanOptions<A>& options) {
  const auto nothing = [] {};
  if (options.kept == nullptr) {
    return TileExpSum<A, false>(x, count, reference, maximum, nullptr, nothing);
  }
  A* terms = options.kept->values + first;
  if (options.waiting == nullptr || options.waiting->lines() < count / kLine<A>) {
    return TileExpSum<A, true>(x, count, reference, maximum, terms, nothing);
  }
  WaitingGradient<A> waiting = *options.waiting;
  const double sum =
      TileExpSum<A, true>(x, count, reference, maximum, terms, [&] { waiting.StreamNextLine(); });
  *options.waiting = waiting;
  return sum;
}

// Reads the row once.
template <class A>
static RowSums ScanRow(const Problem& problem, const Row& row, const ScanOptions<A>& options) {
  alignas(64) A logits_scratch[kTile];
  alignas(64) A coefficient_scratch[kTile];
  RowSums sums;
  bool has_reference = false;
  if (options.kept != nullptr) options.kept->usable = true;
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* x = ViewLogits(problem, row, first, count, logits_scratch);
    A maximum;
    if (!has_reference) {
      maximum = TileMax(x, count);
      if (maximum > -INFINITY) {
        MoveReference(&sums, maximum);
        has_reference = true;
      }
    }
    double sum = SumTile(x, first, count, static_cast<A>(sums.reference), &maximum, options);
    if (static_cast<double>(maximum) > sums.reference + kReferenceSlack) {
      MoveReference(&sums, maximum);
      sum = SumTile(x, first, count, static_cast<A>(sums.reference), &maximum, options);
      if (options.kept != nullptr) options.kept->usable = false;
    }
    sums.exp_sum += sum;
    if (problem.statistics) {
      sums.exp_distance += TileExpDistance(x, count, static_cast<A>(sums.reference));
      TrackArgmax(&sums, x, first, count, maximum);
    }
    if (options.coefficients) {
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

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_ROW_SCAN_H_
