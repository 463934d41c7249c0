// Sums over a run of logits that lie side by side, a line of 64 bytes at a time.
#ifndef MS_CE_LINE_SUMS_H_
#define MS_CE_LINE_SUMS_H_

#include "platform/line_io.h"

namespace ms_ce {
namespace MS_CE_ISA {

// The exponential of a difference of logits stored as T, of a number or a vector of them.
template <class T, bool kScaled, class V>
MS_CE_INLINE V LineTerm(V x) {
  if constexpr (sizeof(T) == sizeof(uint16_t)) return CoarseTerm<kScaled>(x);
  return Term<kScaled>(x);
}

// Over the lanes of a line's registers.
template <class A>
MS_CE_INLINE A Largest(const Vector<A>* lanes) {
  A values[kLine<A>];
  memcpy(values, lanes, sizeof(values));
  A largest = values[0];
  for (const A value : values) largest = MaxOf(value, largest);
  return largest;
}

template <class A>
MS_CE_INLINE A Sum(const Vector<A>* lanes) {
  A values[kLine<A>];
  memcpy(values, lanes, sizeof(values));
  A sum = 0;
  for (const A value : values) sum += value;
  return sum;
}

template <class T>
static inline WorkType<T> TileMax(const T* x, int64_t count) {
  using A = WorkType<T>;
  Vector<A> maximum[kLineRegisters];
  for (Vector<A>& lanes : maximum) lanes = Vector<A>{} - static_cast<A>(INFINITY);
  int64_t first = 0;
  for (; first + kLine<T> <= count; first += kLine<T>) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLineRegisters; ++i) {
      const Wide<T> wide = LoadWide(x + first + i * Wide<T>::kCount);
#pragma GCC unroll 2
      for (int64_t p = 0; p < Wide<T>::kParts; ++p) maximum[i] = MaxOf(wide.part[p], maximum[i]);
    }
  }
  A largest = Largest<A>(maximum);
  for (; first < count; ++first) largest = MaxOf(static_cast<A>(ToFloat(x[first])), largest);
  return largest;
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
  Vector<A> maximum[kLineRegisters], sum[kLineRegisters] = {}, distance[kLineRegisters] = {};
  for (Vector<A>& lanes : maximum) lanes = Vector<A>{} - static_cast<A>(INFINITY);
  int64_t first = 0;
  for (; first + kLine<T> <= count; first += kLine<T>) {
    PrefetchAhead(x + first);
    between();
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLineRegisters; ++i) {
      const int64_t at = first + i * Wide<T>::kCount;
      const Wide<T> wide = LoadWide(x + at);
#pragma GCC unroll 2
      for (int64_t p = 0; p < Wide<T>::kParts; ++p) {
        const Vector<A> value = wide.part[p];
        maximum[i] = MaxOf(value, maximum[i]);
        const Vector<A> term = LineTerm<T, true>(value - reference);
        if (kKeep) StoreVector<false>(term, terms + at + p * kVectorLanes<A>);
        sum[i] += term;
        if (kDistance) distance[i] += reference - value;
      }
    }
  }
  RunSums<A> sums = {Largest<A>(maximum), Sum<A>(sum), Sum<A>(distance)};
  for (; first < count; ++first) {
    const A value = static_cast<A>(ToFloat(x[first]));
    sums.maximum = MaxOf(value, sums.maximum);
    const A term = LineTerm<T, true>(value - reference);
    if (kKeep) terms[first] = term;
    sums.exp += term;
    if (kDistance) sums.distance += reference - value;
  }
  return sums;
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINE_SUMS_H_
