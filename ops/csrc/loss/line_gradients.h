// The gradient of a plain row in lines of 64 bytes: at once, or waiting for the next row.
#ifndef MS_CE_LINE_GRADIENTS_H_
#define MS_CE_LINE_GRADIENTS_H_

#include <type_traits>

#include "loss/line_sums.h"
#include "loss/row_sums.h"

namespace ms_ce {
namespace MS_CE_ISA {

// The classes whose gradients fill cache lines.
template <class T>
struct Lines {
  int64_t begin, end;

  Lines(const T* out, int64_t classes) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kCacheLine / sizeof(T));
    begin = past == 0 ? 0 : kLine<T> - past;
    if (begin > classes) begin = classes;
    end = begin + (classes - begin) / kLine<T> * kLine<T>;
  }
};

// Where terms are coarse, exact to a float's rounding in a long row: where the target dominates it, p - 1
// is small. `coarse` is the gradient without the target's share.
template <class T>
static inline WorkType<T> TargetGradient(const Problem& problem, const Row& row,
                                         const RowGradient& gradient, WorkType<T> coarse) {
  using A = WorkType<T>;
  if (!IsLong<T>(problem.classes)) return coarse - static_cast<A>(gradient.hot);
  const auto x = static_cast<double>(ToFloat(At<T>(problem.logits, row.offset)[row.target]));
  const double p = ::exp((x - gradient.lse.high) - gradient.lse.low);
  return static_cast<A>(gradient.slope * p - gradient.scale - gradient.hot);
}

// A row's gradient that waits for the next row: its lines leave between the loads of that one, when memory
// has time for them. Before line n of that row is kept, line n of this one is gone.
template <class T>
class WaitingGradient {
  using A = WorkType<T>;

 public:
  bool empty() const { return terms_ == nullptr; }
  int64_t lines() const { return (end_ - next_) / kLine<T>; }

  // False where factors would leave the normal numbers: the terms do not serve then.
  bool Take(const Problem& problem, const Row& row, const RowGradient& gradient, const A* terms,
            double exp_sum) {
    const double exact = gradient.slope / exp_sum;
    if (IsSmallSlope(exact)) return false;
    terms_ = terms;
    out_ = AtOut<T>(problem.grad_logits, row.offset);
    factor_ = OneNan(static_cast<A>(exact * Unscale(A(1))));
    share_ = OneNan(static_cast<A>(gradient.scale));
    target_ = row.target;
    if (target_ >= 0) at_target_ = TargetGradient<T>(problem, row, gradient, Value(terms_[target_]));
    const bool stream = problem.stream_stores && IsAligned(out_);
    const Lines<T> lines(stream ? out_ : nullptr, problem.classes);
    next_ = lines.begin;
    end_ = lines.end;
    for (int64_t i = 0; i < next_; ++i) StoreAlone(Value(terms_[i]), out_ + i);
    for (int64_t i = end_; i < problem.classes; ++i) StoreAlone(Value(terms_[i]), out_ + i);
    if (stream) return true;
    while (next_ < end_) WriteNextLine<false>();  // meant for the cache, where it may be at once
    Finish();
    return true;
  }

  template <bool kStream>
  MS_CE_FORCE_INLINE void WriteNextLine() {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLineRegisters; ++i) {
      Wide<T> wide;
#pragma GCC unroll 2
      for (Vector<A>& part : wide.part) {
        part = Value(LoadVector<Vector<A>>(terms_ + next_ + (&part - wide.part) * kVectorLanes<A>));
      }
      StoreWide<kStream>(wide, out_ + next_);
      next_ += Wide<T>::kCount;
    }
  }

  // A load waits for an earlier store to the same offset of any page: processors compare no more of the
  // addresses at first. So the lines written between the loads of `row` must not be at its offsets.
  void KeepClearOf(const T* row) {
    constexpr int64_t kPageLines = 4096 / kCacheLine, kClear = 2;
    const auto distance = reinterpret_cast<uintptr_t>(out_ + next_) - reinterpret_cast<uintptr_t>(row);
    const auto ahead = static_cast<int64_t>(distance / kCacheLine % kPageLines);
    if (ahead >= kClear && ahead < kPageLines - kClear) return;
    for (int64_t i = 0; i < 2 * kClear && next_ < end_; ++i) WriteNextLine<true>();
  }

  void Finish() {
    if (empty()) return;
    while (next_ < end_) WriteNextLine<true>();
    if (target_ >= 0) Convert(at_target_, out_ + target_);
    terms_ = nullptr;
  }

 private:
  template <class V>
  MS_CE_FORCE_INLINE V Value(V term) const {
    return factor_ * term - share_;
  }

  const A* terms_ = nullptr;
  T* out_ = nullptr;
  int64_t target_ = 0, next_ = 0, end_ = 0;
  A factor_ = 0, share_ = 0, at_target_ = 0;
};

// One read and one write. Of the lines that are streamed, each goes from registers past the cache while
// those that the loop needs next are on their way. value(logit) is the gradient of a class without the
// target's share, write(from, to, streamed) that of the classes that a register holds.
template <class T, class Value, class Write>
MS_CE_INLINE void GradientInLines(const Problem& problem, const Row& row, const RowGradient& gradient,
                                  Value value, Write write) {
  using A = WorkType<T>;
  const T* x = At<T>(problem.logits, row.offset);
  T* out = AtOut<T>(problem.grad_logits, row.offset);
  const auto single = [&](int64_t i) { return value(static_cast<A>(ToFloat(x[i]))); };
  const bool stream = problem.stream_stores && IsAligned(out);
  const Lines<T> lines(stream ? out : nullptr, problem.classes);
  // Before anything is written: the gradient may take the logits' place.
  const A at_target =
      row.target >= 0 ? TargetGradient<T>(problem, row, gradient, single(row.target)) : A(0);
  for (int64_t i = 0; i < lines.begin; ++i) StoreAlone(single(i), out + i);
  const auto write_lines = [&](auto streamed) MS_CE_LAMBDA_INLINE {
    for (int64_t first = lines.begin; first < lines.end; first += kLine<T>) {
      PrefetchAhead(x + first);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kLineRegisters; ++i) {
        const int64_t at = first + i * Wide<T>::kCount;
        write(x + at, out + at, streamed);
      }
    }
  };
  stream ? write_lines(std::true_type()) : write_lines(std::false_type());
  for (int64_t i = lines.end; i < problem.classes; ++i) StoreAlone(single(i), out + i);
  if (row.target >= 0) Convert(at_target, out + row.target);
}

template <class T, bool kScaled>
static void GradientInLinesScaled(const Problem& problem, const Row& row, const RowGradient& gradient,
                                  WorkType<T> high, WorkType<T> factor) {
  using A = WorkType<T>;
  const A share = OneNan(static_cast<A>(gradient.scale));
  const auto value = [&](auto logit) MS_CE_LAMBDA_INLINE {
    return factor * LineTerm<T, kScaled>(logit - high) - share;
  };
  const auto write = [&](const T* from, T* to, auto streamed) MS_CE_LAMBDA_INLINE {
    Wide<T> wide = LoadWide(from);
#pragma GCC unroll 2
    for (Vector<A>& part : wide.part) part = value(part);
    StoreWide<decltype(streamed)::value>(wide, to);
  };
  GradientInLines<T>(problem, row, gradient, value, write);
}

#if defined(MS_CE_HAS_TABLE_EXP)
// With terms that are looked up. False where the row or its slope is out of range: nothing is done then.
template <class T>
static bool GradientByTable(const Problem& problem, const Row& row, const RowGradient& gradient) {
  const double octave = ::rint(gradient.lse.high * 1.4426950408889634074);
  const double reference = octave * 0.69314718055994530942;
  const double slope = gradient.slope * ::exp((reference - gradient.lse.high) - gradient.lse.low);
  const bool has = IsLong<T>(problem.classes) && HalfRange<T>::Has(reference) && ::fabs(slope) < 0x1p30 &&
                   !IsSmallSlope(slope);
  if (!has) return false;
  const auto high = static_cast<float>(reference), factor = static_cast<float>(slope * Unscale(1.0f));
  const auto share = static_cast<float>(gradient.scale);
  const HalfRange<T> range(high);
  const TableExp exp(static_cast<float>(octave), factor);
  const auto gradient_of = [&](Vector<float> logits) MS_CE_LAMBDA_INLINE {
    const TableExp::Factors term = exp(logits);
    return MultiplyAdd(term.polynomial, term.power, Vector<float>{} - share);
  };
  const auto value = [&](float logit) MS_CE_LAMBDA_INLINE {
    return gradient_of(Vector<float>{} + range.NotBelow(logit))[0];
  };
  const auto write = [&](const T* from, T* to, auto streamed) MS_CE_LAMBDA_INLINE {
    Vector<float> parts[2];
    range.LoadNotBelow(from, parts);
#pragma GCC unroll 2
    for (Vector<float>& part : parts) part = gradient_of(part);
    StoreVector<decltype(streamed)::value>(NarrowApart(parts, to), to);
  };
  GradientInLines<T>(problem, row, gradient, value, write);
  return true;
}
#endif

template <class T>
static void GradientInLines(const Problem& problem, const Row& row, const RowGradient& gradient) {
#if defined(MS_CE_HAS_TABLE_EXP)
  if constexpr (sizeof(T) == sizeof(uint16_t)) {
    if (GradientByTable<T>(problem, row, gradient)) return;
  }
#endif
  const SoftmaxFactor<WorkType<T>> softmax(gradient.lse, gradient.slope);
  if (softmax.scaled) {
    return GradientInLinesScaled<T, true>(problem, row, gradient, softmax.high, softmax.factor);
  }
  GradientInLinesScaled<T, false>(problem, row, gradient, softmax.high, softmax.factor);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINE_GRADIENTS_H_
