// Plain rows: contiguous, their logits taken as they are, no class but the target's with a coefficient of
// its own. They are worked through in lines of 64 bytes, converted in registers, and their gradients
// leave in lines.
#ifndef MS_CE_ROW_LINES_H_
#define MS_CE_ROW_LINES_H_

#include "line_io.h"
#include "row_sums.h"

namespace ms_ce {
namespace MS_CE_ISA {

static inline bool IsPlain(const Problem& problem) {
  const bool own_coefficients =
      problem.probability || (problem.weight.data != nullptr && problem.smooth != 0.0);
  return problem.inner == 1 && !own_coefficients && !TransformsLogits(problem) && !problem.statistics;
}

// Calls f with a value of the type that the logits are stored in.
template <class A, class F>
static inline void ForStored(const Problem& problem, F f) {
  if constexpr (sizeof(A) == sizeof(double)) {
    f(0.0);
  } else if (problem.logits.dtype == Dtype::kFloat16) {
    f(Half());
  } else if (problem.logits.dtype == Dtype::kBfloat16) {
    f(Brain());
  } else {
    f(0.0f);
  }
}

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
    factor_ = static_cast<A>(exact * Unscale(A(1)));
    share_ = static_cast<A>(gradient.scale);
    target_ = row.target;
    if (target_ >= 0) at_target_ = Value(target_) - static_cast<A>(gradient.hot);
    const bool stream = problem.stream_stores && IsAligned(out_);
    const Lines<T> lines(stream ? out_ : nullptr, problem.classes);
    next_ = lines.begin;
    end_ = lines.end;
    for (int64_t i = 0; i < next_; ++i) Convert(Value(i), out_ + i);
    for (int64_t i = end_; i < problem.classes; ++i) Convert(Value(i), out_ + i);
    if (stream) return true;
    while (next_ < end_) WriteNextLine<false>();  // meant for the cache, where it may be at once
    Finish();
    return true;
  }

  template <bool kStream>
  MS_CE_FORCE_INLINE void WriteNextLine() {
    alignas(64) A line[kLine<T>];
#pragma omp simd
    for (int64_t k = 0; k < kLine<T>; ++k) line[k] = Value(next_ + k);
    kStream ? StreamLine(line, out_ + next_) : StoreLine(line, out_ + next_);
    next_ += kLine<T>;
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
  MS_CE_FORCE_INLINE A Value(int64_t i) const { return factor_ * terms_[i] - share_; }

  const A* terms_ = nullptr;
  T* out_ = nullptr;
  int64_t target_ = 0, next_ = 0, end_ = 0;
  A factor_ = 0, share_ = 0, at_target_ = 0;
};

// See ScanTiles. Where `terms` is not null the row's exponentials are kept there, and the waiting gradient
// of an earlier row, made of what lies there, is written first.
template <class T>
class PlainTile {
  using A = WorkType<T>;

 public:
  PlainTile(const Problem& problem, const Row& row, A* terms, WaitingGradient<T>* waiting)
      : row_(At<T>(problem.logits, row.offset)), terms_(terms), waiting_(waiting) {
    distance_wanted_ = problem.smooth != 0.0;
  }

  void Enter(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
  }

  A Maximum() const { return TileMax(row_ + first_, count_); }

  double Sum(A reference, A* maximum) {
    const RunSums<A> sums = terms_ == nullptr ? Sums<false>(reference, [] {}) : SumsKept(reference);
    *maximum = sums.maximum;
    distance_ = sums.distance;
    return Unscale(sums.exp);
  }

  void AddRest(A, RowSums* sums) const {
    if (!distance_wanted_) return;
    sums->distance += distance_;
    sums->mass += static_cast<double>(count_);
  }

 private:
  template <bool kKeep, class Between>
  RunSums<A> Sums(A reference, Between between) const {
    const T* x = row_ + first_;
    A* terms = kKeep ? terms_ + first_ : nullptr;
    if (distance_wanted_) return SumLines<T, kKeep, true>(x, count_, reference, terms, between);
    return SumLines<T, kKeep, false>(x, count_, reference, terms, between);
  }

  RunSums<A> SumsKept(A reference) {
    if (first_ == 0) waiting_->KeepClearOf(row_);
    if (waiting_->lines() < count_ / kLine<T> || count_ % kLine<T> != 0) waiting_->Finish();
    if (waiting_->empty()) return Sums<true>(reference, [] {});
    WaitingGradient<T> waiting = *waiting_;  // in registers
    const RunSums<A> sums =
        Sums<true>(reference, [&]() MS_CE_LAMBDA_INLINE { waiting.template WriteNextLine<true>(); });
    *waiting_ = waiting;
    return sums;
  }

  const T* row_;
  A* terms_;
  WaitingGradient<T>* waiting_;
  int64_t first_ = 0, count_ = 0;
  A distance_ = 0;
  bool distance_wanted_;
};

// One read and one write. Of the lines that are streamed, each goes from registers past the cache while
// those that the loop needs next are on their way.
template <class T, bool kScaled>
static void GradientInLinesScaled(const Problem& problem, const Row& row, const RowGradient& gradient,
                                  WorkType<T> high, WorkType<T> factor) {
  using A = WorkType<T>;
  const T* x = At<T>(problem.logits, row.offset);
  T* out = AtOut<T>(problem.grad_logits, row.offset);
  const A share = static_cast<A>(gradient.scale);
  const auto value = [&](A logit) MS_CE_LAMBDA_INLINE {
    return factor * LineTerm<T, kScaled>(logit - high) - share;
  };
  const auto single = [&](int64_t i) { return value(static_cast<A>(ToFloat(x[i]))); };
  const bool stream = problem.stream_stores && IsAligned(out);
  const Lines<T> lines(stream ? out : nullptr, problem.classes);
  // Before anything is written: the gradient may take the logits' place.
  const A at_target = row.target >= 0 ? single(row.target) - static_cast<A>(gradient.hot) : A(0);
  for (int64_t i = 0; i < lines.begin; ++i) Convert(single(i), out + i);
  for (int64_t first = lines.begin; first < lines.end; first += kLine<T>) {
    alignas(64) A scratch[kLine<T>];
    alignas(64) A result[kLine<T>];
    PrefetchAhead(x + first);
    const A* line = ViewLine(x + first, scratch);
#pragma omp simd
    for (int64_t k = 0; k < kLine<T>; ++k) result[k] = value(line[k]);
    if (stream) {
      StreamLine(result, out + first);
    } else {
      StoreLine(result, out + first);
    }
  }
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

#endif  // MS_CE_ROW_LINES_H_
