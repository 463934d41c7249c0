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
      : row_(At<T>(problem.logits, row.offset)),
        classes_(problem.classes),
        terms_(terms),
        waiting_(waiting) {
    distance_wanted_ = problem.smooth != 0.0;
  }

  void Enter(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
  }

  // Where terms are looked up, the whole octave next to it.
  A Maximum() {
    const A maximum = TileMax(row_ + first_, count_);
#if defined(MS_CE_HAS_TABLE_EXP)
    if constexpr (sizeof(T) == sizeof(uint16_t)) {
      const float octave = rintf(maximum * 1.44269504f);
      const auto reference = static_cast<float>(octave * 0.693147180559945309);
      by_table_ = IsLong<T>(count_) && HalfRange<T>::Has(reference);
      if (by_table_) {
        octave_ = octave;
        return octave_reference_ = reference;
      }
    }
#endif
    return maximum;
  }

  double Sum(A reference, A* maximum) {
    const RunSums<A> sums =
        terms_ == nullptr
            ? (distance_wanted_ ? Sums<false, true>(reference) : Sums<false, false>(reference))
            : (distance_wanted_ ? Sums<true, true>(reference) : Sums<true, false>(reference));
    *maximum = sums.maximum;
    distance_ = sums.distance;
    return Unscale(sums.exp);
  }

  void AddRest(A, RowSums* sums) const {
    if (!distance_wanted_) return;
    sums->distance += distance_;
    sums->mass += static_cast<double>(count_);
  }

  // Terms of 16 bits are coarse; the target's is made exact, because of a row that it dominates the loss is
  // no more than what the others add to it.
  void SettleTarget(int64_t target, RowSums* sums) const {
    if (!IsLong<T>(classes_) || target < 0) return;
    const auto x = static_cast<double>(ToFloat(row_[target])), distance = x - sums->reference;
    const bool matters = distance > -kReferenceSlack && distance <= kReferenceSlack;
    if (!matters || (sums->moved && distance != 0.0)) return;
    sums->exp_sum += ::exp(distance) - CoarseTermOf(target, static_cast<A>(sums->reference));
  }

 private:
  // As it was added to the sum.
  double CoarseTermOf(int64_t c, A reference) const {
    const A x = static_cast<A>(ToFloat(row_[c]));
#if defined(MS_CE_HAS_TABLE_EXP)
    if constexpr (sizeof(T) == sizeof(uint16_t)) {
      if (c < by_table_end_ && reference == octave_reference_) {
        const TableExp::Factors term = TableExp(octave_)(Vector<float>{} + x);
        const double product = static_cast<double>(term.polynomial[0]) * static_cast<double>(term.power[0]);
        return product * Unscale(1.0f);
      }
    }
#endif
    return Unscale(LineTerm<T, true>(x - reference));
  }

  template <bool kKeep, bool kDistance>
  RunSums<A> Sums(A reference) {
    const T* x = row_ + first_;
    A* terms = kKeep ? terms_ + first_ : nullptr;
    RunSums<A> sums;
#if defined(MS_CE_HAS_TABLE_EXP)
    if constexpr (sizeof(T) == sizeof(uint16_t)) {
      if (by_table_ && reference == octave_reference_) {
        Beside<kKeep>([&](auto between) MS_CE_LAMBDA_INLINE {
          by_table_ =
              SumLinesByTable<T, kKeep, kDistance>(x, count_, octave_, reference, terms, between, &sums);
        });
        if (by_table_) {
          by_table_end_ = first_ + count_ / kLine<T> * kLine<T>;
          return sums;
        }
      }
    }
#endif
    Beside<kKeep>([&](auto between) MS_CE_LAMBDA_INLINE {
      sums = SumLines<T, kKeep, kDistance>(x, count_, reference, terms, between);
    });
    return sums;
  }

  // run(between) calls between() once a line; where terms are kept, a line of the waiting gradient is
  // written there.
  template <bool kKeep, class F>
  void Beside(F run) {
    const auto nothing = [] {};
    if constexpr (!kKeep) return run(nothing);
    if (first_ == 0) waiting_->KeepClearOf(row_);
    if (waiting_->lines() < count_ / kLine<T> || count_ % kLine<T> != 0) waiting_->Finish();
    if (waiting_->empty()) return run(nothing);
    WaitingGradient<T> waiting = *waiting_;  // in registers
    run([&]() MS_CE_LAMBDA_INLINE { waiting.template WriteNextLine<true>(); });
    *waiting_ = waiting;
  }

  const T* row_;
  int64_t classes_;
  A* terms_;
  WaitingGradient<T>* waiting_;
  int64_t first_ = 0, count_ = 0;
  A distance_ = 0;
  bool distance_wanted_;
  bool by_table_ = false;  // terms are looked up, as far as the row's logits were in range
  int64_t by_table_end_ = 0;
  float octave_ = 0, octave_reference_ = 0;
};

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_PLAIN_ROWS_H_
