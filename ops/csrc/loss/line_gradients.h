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
    if (target_ >= 0) at_target_ = Value(terms_[target_]) - static_cast<A>(gradient.hot);
    const bool stream = problem.stream_stores && IsAligned(out_);
    const Lines<T> lines(stream ? out_ : nullptr, problem.classes);
    next_ = lines.begin;
    end_ = lines.end;
    for (int64_t i = 0; i < next_; ++i) Convert(Value(terms_[i]), out_ + i);
    for (int64_t i = end_; i < problem.classes; ++i) Convert(Value(terms_[i]), out_ + i);
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
// those that the loop needs next are on their way.
template <class T, bool kScaled>
static void GradientInLinesScaled(const Problem& problem, const Row& row, const RowGradient& gradient,
                                  WorkType<T> high, WorkType<T> factor) {
  using A = WorkType<T>;
  const T* x = At<T>(problem.logits, row.offset);
  T* out = AtOut<T>(problem.grad_logits, row.offset);
  const A share = OneNan(static_cast<A>(gradient.scale));
  const auto value = [&](auto logit) MS_CE_LAMBDA_INLINE {
    return factor * LineTerm<T, kScaled>(logit - high) - share;
  };
  const auto single = [&](int64_t i) { return value(static_cast<A>(ToFloat(x[i]))); };
  const bool stream = problem.stream_stores && IsAligned(out);
  const Lines<T> lines(stream ? out : nullptr, problem.classes);
  // Before anything is written: the gradient may take the logits' place.
  const A at_target = row.target >= 0 ? single(row.target) - static_cast<A>(gradient.hot) : A(0);
  for (int64_t i = 0; i < lines.begin; ++i) Convert(single(i), out + i);
  const auto write_lines = [&](auto streamed) MS_CE_LAMBDA_INLINE {
    for (int64_t first = lines.begin; first < lines.end; first += kLine<T>) {
      PrefetchAhead(x + first);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kLineRegisters; ++i) {
        const int64_t at = first + i * Wide<T>::kCount;
        Wide<T> wide = LoadWide(x + at);
#pragma GCC unroll 2
        for (Vector<A>& part : wide.part) part = value(part);
        StoreWide<decltype(streamed)::value>(wide, out + at);
      }
    }
  };
  stream ? write_lines(std::true_type()) : write_lines(std::false_type());
  for (int64_t i = lines.end; i < problem.classes; ++i) Convert(single(i), out + i);
  if (row.target >= 0) Convert(at_target, out + row.target);
}

template <class T>
static void GradientInLines(const Problem& problem, const Row& row, const RowGradient& gradient) {
  const SoftmaxFactor<WorkType<T>> softmax(gradient.lse, gradient.slope);
  if (softmax.scaled) {
    return GradientInLinesScaled<T, true>(problem, row, gradient, softmax.high, softmax.factor);
  }
  GradientInLinesScaled<T, false>(problem, row, gradient, softmax.high, softmax.factor);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINE_GRADIENTS_H_
