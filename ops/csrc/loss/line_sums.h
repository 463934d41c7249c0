// Sums over a run of logits that lie side by side, a line of 64 bytes at a time.
#ifndef MS_CE_LINE_SUMS_H_
#define MS_CE_LINE_SUMS_H_

#include "platform/line_io.h"
#include "platform/table_exp.h"

namespace ms_ce {
namespace MS_CE_ISA {

// The exponential of a difference of logits stored as T, of a number or a vector of them.
template <class T, bool kScaled, class V>
MS_CE_INLINE V LineTerm(V x) {
  if constexpr (sizeof(T) == sizeof(uint16_t)) return CoarseTerm<kScaled>(x);
  return Term<kScaled>(x);
}

// Whether the kernel does more for each row to take less for each class: in 16 bits, where the row fills a
// tile.
template <class T>
MS_CE_INLINE bool IsLong(int64_t classes) {
  return sizeof(T) == sizeof(uint16_t) && classes >= kTile;
}

// Folds the lanes of a line's registers into one, half of them onto the others at a time.
template <class A, class F>
MS_CE_INLINE A Fold(const Vector<A>* registers, F together) {
  Vector<A> all = registers[0];
  for (int64_t i = 1; i < kLineRegisters; ++i) all = together(registers[i], all);
  A values[kVectorLanes<A>];
  memcpy(values, &all, sizeof(values));
#pragma GCC unroll 4
  for (int64_t width = kVectorLanes<A> / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < width; ++i) values[i] = together(values[i + width], values[i]);
  }
  return values[0];
}

template <class A>
MS_CE_INLINE A Largest(const Vector<A>* registers) {
  return Fold<A>(registers, [](auto a, auto b) MS_CE_LAMBDA_INLINE { return MaxOf(a, b); });
}

template <class A>
MS_CE_INLINE A Sum(const Vector<A>* registers) {
  return Fold<A>(registers, [](auto a, auto b) MS_CE_LAMBDA_INLINE { return a + b; });
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

#if defined(MS_CE_HAS_TABLE_EXP)
// SumLines relative to a whole octave, `reference` being octave ln2. False where a logit lies out of the
// range of TableExp; the sums and terms mean nothing then. The maximum is the reference: none is far above.
template <class T, bool kKeep, bool kDistance, class Between>
static inline bool SumLinesByTable(const T* x, int64_t count, float octave, float reference, float* terms,
                                   Between between, RunSums<float>* sums) {
  const TableExp exp(octave);
  typename HalfRange<T>::Extremes seen;
  Vector<float> sum[kLineRegisters] = {}, distance[kLineRegisters] = {};
  int64_t first = 0;
  for (; first + kLine<T> <= count; first += kLine<T>) {
    PrefetchAhead(x + first);
    between();
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLineRegisters; ++i) {
      const int64_t at = first + i * Wide<T>::kCount;
      seen.See(LoadVector<Halves>(x + at));
      const Wide<T> wide = LoadWide(x + at);
#pragma GCC unroll 2
      for (int64_t p = 0; p < Wide<T>::kParts; ++p) {
        const TableExp::Factors term = exp(wide.part[p]);
        if (kKeep) StoreVector<false>(term.polynomial * term.power, terms + at + p * kVectorLanes<float>);
        sum[i] = MultiplyAdd(term.polynomial, term.power, sum[i]);
        if (kDistance) distance[i] += reference - wide.part[p];
      }
    }
  }
  *sums = {reference, Sum<float>(sum), Sum<float>(distance)};
  if (first < count) {
    T rest[kLine<T>] = {};
    memcpy(rest, x + first, static_cast<size_t>(count - first) * sizeof(T));
    for (int64_t i = 0; i < kLine<T>; i += Wide<T>::kCount) seen.See(LoadVector<Halves>(rest + i));
  }
  for (; first < count; ++first) {
    const float value = ToFloat(x[first]);
    const float term = LineTerm<T, true>(value - reference);
    if (kKeep) terms[first] = term;
    sums->exp += term;
    if (kDistance) sums->distance += reference - value;
  }
  return HalfRange<T>(reference).Holds(seen);
}
#endif

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINE_SUMS_H_
