// The gradient of one row: the row is read once and its gradient written once.
#ifndef MS_CE_ROW_GRADIENT_H_
#define MS_CE_ROW_GRADIENT_H_

#include "row_terms.h"

namespace ms_ce {
namespace MS_CE_ISA {

// grad of x'_c: slope p_c - scale a_c - hot 1{c = target}
struct RowGradient {
  double lse, slope, scale, hot;
};

// The gradient for upstream `grad` on the row loss and `grad_z` on its z part.
static inline RowGradient LossGradient(const Problem& problem, const Row& row, double lse, double mass,
                                       double grad, double grad_z) {
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
  double slope = grad * (row.hot + scale * mass);
  if (problem.z_loss != 0.0) slope += 2.0 * problem.z_loss * lse * (grad + grad_z);
  return {lse, slope, grad * scale, grad * row.hot};
}

// Below this, a slope without the factor of ExpScaled would leave the normal numbers.
constexpr double kSmallSlope = 0x1p-60;

// exp(x), with its factor left on where kScaled.
template <class A, bool kScaled>
MS_CE_INLINE A Term(A x) {
  return kScaled ? ExpScaled(x) : Exp(x);
}

// slope exp(x - lse) as `factor` Term(x - high), high being the A nearest to lse.
template <class A>
struct SoftmaxFactor {
  A high, factor;
  bool scaled;

  SoftmaxFactor(double lse, double slope) : high(static_cast<A>(lse)) {
    const double exact = slope * ::exp(static_cast<double>(high) - lse);
    scaled = !(exact > -kSmallSlope && exact < kSmallSlope);
    factor = static_cast<A>(scaled ? exact * Unscale(A(1)) : exact);
  }
};

template <class A, bool kScaled>
static inline void TileGradient(const A* x, const A* a, A* out, int64_t count, A high, A factor, A scale) {
  if (a == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = factor * Term<A, kScaled>(x[i] - high);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      out[i] = factor * Term<A, kScaled>(x[i] - high) - scale * a[i];
    }
  }
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

// Whether the gradient can leave in whole cache lines: memory holds A, and no class but the target's has
// a coefficient of its own.
template <class A>
static inline bool GoesInLines(const Problem& problem, const Row& row) {
  const A* kind = nullptr;
  return problem.stream_stores && row.stride == 1 && !problem.probability &&
         problem.weight.data == nullptr && !TransformsLogits(problem) &&
         problem.logits.dtype == DtypeOf(kind) &&
         reinterpret_cast<uintptr_t>(problem.grad_logits.data) % sizeof(A) == 0;
}

// The classes whose gradients fill cache lines.
template <class A>
struct Lines {
  int64_t begin, end;

  Lines(const A* out, int64_t classes) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kCacheLine / sizeof(A));
    begin = past == 0 ? 0 : kLine<A> - past;
    if (begin > classes) begin = classes;
    end = begin + (classes - begin) / kLine<A> * kLine<A>;
  }
};

// A line goes from registers past the cache while the lines that the loop needs next are on their way.
template <class A, bool kScaled>
static inline void StreamGradient(const A* x, A* out, int64_t classes, A high, A factor, A share) {
  const Lines<A> lines(out, classes);
  const auto single = [&](int64_t i) { out[i] = factor * Term<A, kScaled>(x[i] - high) - share; };
  for (int64_t i = 0; i < lines.begin; ++i) single(i);
  for (int64_t first = lines.begin; first < lines.end; first += kLine<A>) {
    alignas(64) A line[kLine<A>];
    PrefetchAhead(x + first);
#pragma omp simd
    for (int64_t k = 0; k < kLine<A>; ++k) {
      line[k] = factor * Term<A, kScaled>(x[first + k] - high) - share;
    }
    StreamLine(line, out + first);
  }
  for (int64_t i = lines.end; i < classes; ++i) single(i);
}

template <class A, bool kScaled>
static void GradientRowScaled(const Problem& problem, const Row& row, const RowGradient& gradient, A high,
                              A factor) {
  const A scale = static_cast<A>(gradient.scale);
  if (GoesInLines<A>(problem, row)) {
    A* out = AtOut<A>(problem.grad_logits, row.offset);
    StreamGradient<A, kScaled>(At<A>(problem.logits, row.offset), out, problem.classes, high, factor,
                               scale);
    if (row.target >= 0) out[row.target] -= static_cast<A>(gradient.hot);
    return;
  }
  alignas(64) A logits_scratch[kTile];
  alignas(64) A coefficient_scratch[kTile];
  alignas(64) A out[kTile];
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* x = ViewLogits(problem, row, first, count, logits_scratch);
    const A* a =
        gradient.scale == 0.0 ? nullptr : ViewCoefficients(problem, row, first, count, coefficient_scratch);
    TileGradient<A, kScaled>(x, a, out, count, high, factor, scale);
    FinishGradientTile(problem, row, gradient, x, first, count, out);
  }
}

template <class A>
static void GradientRow(const Problem& problem, const Row& row, const RowGradient& gradient) {
  const SoftmaxFactor<A> softmax(gradient.lse, gradient.slope);
  if (softmax.scaled) {
    return GradientRowScaled<A, true>(problem, row, gradient, softmax.high, softmax.factor);
  }
  GradientRowScaled<A, false>(problem, row, gradient, softmax.high, softmax.factor);
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

// A gradient that waits for the next row: its lines leave between the loads of that one, when memory has
// time for them.
template <class A>
class WaitingGradient {
 public:
  bool empty() const { return terms_ == nullptr; }
  int64_t lines() const { return (end_ - next_) / kLine<A>; }

  // False where the row's gradient cannot wait.
  bool Take(const Problem& problem, const Row& row, const RowGradient& gradient, const A* terms,
            double exp_sum) {
    const double exact = gradient.slope / exp_sum;
    const bool small = exact > -kSmallSlope && exact < kSmallSlope;
    if (small || !GoesInLines<A>(problem, row)) return false;
    terms_ = terms;
    out_ = AtOut<A>(problem.grad_logits, row.offset);
    classes_ = problem.classes;
    target_ = row.target;
    factor_ = static_cast<A>(exact * Unscale(A(1)));
    share_ = static_cast<A>(gradient.scale);
    hot_ = static_cast<A>(gradient.hot);
    const Lines<A> lines(out_, classes_);
    next_ = lines.begin;
    end_ = lines.end;
    Singles(0, next_);
    return true;
  }

  MS_CE_FORCE_INLINE void StreamNextLine() {
    alignas(64) A line[kLine<A>];
#pragma omp simd
    for (int64_t k = 0; k < kLine<A>; ++k) line[k] = factor_ * terms_[next_ + k] - share_;
    StreamLine(line, out_ + next_);
    next_ += kLine<A>;
  }

  void Finish() {
    if (empty()) return;
    while (next_ < end_) StreamNextLine();
    Singles(end_, classes_);
    if (target_ >= 0) out_[target_] -= hot_;
    terms_ = nullptr;
  }

 private:
  void Singles(int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) out_[i] = factor_ * terms_[i] - share_;
  }

  const A* terms_ = nullptr;
  A* out_ = nullptr;
  int64_t classes_ = 0, target_ = 0, next_ = 0, end_ = 0;
  A factor_ = 0, share_ = 0, hot_ = 0;
};

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_ROW_GRADIENT_H_
