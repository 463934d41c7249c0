// Plain rows: contiguous, their logits taken as they are, no class but the target's with a coefficient of
// its own. They are worked through in lines of 64 bytes, converted in registers, and their gradients
// leave in lines.
#ifndef MS_CE_PLAIN_ROWS_H_
#define MS_CE_PLAIN_ROWS_H_

#include "loss/line_gradients.h"

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

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_PLAIN_ROWS_H_
