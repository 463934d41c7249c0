// Sums over a run of logits that lie side by side, a line of 64 bytes at a time.
#ifndef MS_CE_LINE_SUMS_H_
#define MS_CE_LINE_SUMS_H_

#include "platform/line_io.h"

namespace ms_ce {
namespace MS_CE_ISA {

// The exponential of a difference of logits stored as T.
template <class T, bool kScaled>
MS_CE_INLINE WorkType<T> LineTerm(WorkType<T> x) {
  if constexpr (sizeof(T) == sizeof(uint16_t)) return kScaled ? CoarseExpScaled(x) : CoarseExp(x);
  return Term<kScaled>(x);
}

template <class T>
static inline WorkType<T> TileMax(const T* x, int64_t count) {
  using A = WorkType<T>;
  A maximum = -INFINITY;
#pragma omp simd reduction(max : maximum)
  for (int64_t i = 0; i < count; ++i) {
    const A value = static_cast<A>(ToFloat(x[i]));
    maximum = value > maximum ? value : maximum;
  }
  return maximum;
}

// Sums of a run of logits, relative to a reference.
template <class A>
struct RunSums {
  A maximum, exp, distance;
};

// kKeep: terms holds the (scaled) exponentials. between() is called once a line, before its terms are kept.
template <class T, bool kKeep, bool kDistance, class Between>
static inline RunSums<WorkType<T>> SumLines(const T* x, int64_t count, WorkType<T> reference,
                                            WorkType<T>* terms, Between between) {
  using A = WorkType<T>;
  constexpr int64_t kWidth = kLine<T>;
  alignas(64) A maximum[kWidth], sum[kWidth], distance[kWidth];
  for (int64_t k = 0; k < kWidth; ++k) {
    maximum[k] = -static_cast<A>(INFINITY);
    sum[k] = distance[k] = A(0);
  }
  const auto add = [&](A value, A* kept, int64_t k) MS_CE_LAMBDA_INLINE {
    maximum[k] = value > maximum[k] ? value : maximum[k];
    const A term = LineTerm<T, true>(value - reference);
    if (kKeep) *kept = term;
    sum[k] += term;
    if (kDistance) distance[k] += reference - value;
  };
  int64_t first = 0;
  for (; first + kWidth <= count; first += kWidth) {
    alignas(64) A scratch[kWidth];
    PrefetchAhead(x + first);
    between();
    const A* line = ViewLine(x + first, scratch);
#pragma omp simd
    for (int64_t k = 0; k < kWidth; ++k) add(line[k], terms + first + k, k);
  }
  for (int64_t k = 0; first + k < count; ++k) {
    add(static_cast<A>(ToFloat(x[first + k])), terms + first + k, k);
  }
  for (int64_t k = 1; k < kWidth; ++k) {
    maximum[0] = maximum[k] > maximum[0] ? maximum[k] : maximum[0];
    sum[0] += sum[k];
    distance[0] += distance[k];
  }
  return {maximum[0], sum[0], distance[0]};
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINE_SUMS_H_
