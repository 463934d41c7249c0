// Distillation: how far a student's softmax q lies from a teacher's p, and the gradient by the student's
// logits. Of both the rows lie side by side, in the type computed in. With m = beta p + (1 - beta) q:
//   beta = 0        loss sum p log(p / q)                                       gradient q - p
//   0 < beta < 1    loss sum beta p log(p / m) + (1 - beta) q log(q / m)
//                   gradient (1 - beta) q (r - sum q r), r = log(q / m)
//   beta = 1        loss sum q log(q / p)                                       the same, r = log(q / p)
#ifndef MS_CE_DIVERGENCE_H_
#define MS_CE_DIVERGENCE_H_

#include "loss/row_kernel.h"

namespace ms_ce {
namespace MS_CE_ISA {

enum class Divergence { kForward, kMixed, kReverse };

// log p_c = (x_c - reference) - log_sum, less `low`, what log_sum has lost to rounding.
template <class A>
struct LogSoftmax {
  A reference, log_sum;
  double low;
};

template <class A>
static inline LogSoftmax<A> ScanLogSoftmax(const Problem& problem, const Row& row) {
  const RowSums sums = ScanRow<A>(problem, row, nullptr);
  // A row of -inf alone has no softmax.
  const double log_sum = sums.exp_sum == 0.0 ? static_cast<double>(NAN) : ::log(sums.exp_sum);
  const A rounded = static_cast<A>(log_sum);
  return {static_cast<A>(sums.reference), rounded, log_sum - static_cast<double>(rounded)};
}

template <class A>
static inline void LogProbs(const A* x, const LogSoftmax<A>& softmax, int64_t count, A* out) {
  const A reference = softmax.reference, log_sum = softmax.log_sum;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = (x[i] - reference) - log_sum;
}

// A row of both models, a tile of classes at a time.
template <class A>
class TwoRows {
 public:
  TwoRows(const Problem& student, const Problem& teacher, const Row& row)
      : student_(student),
        teacher_(teacher),
        row_(row),
        q_(ScanLogSoftmax<A>(student, row)),
        p_(ScanLogSoftmax<A>(teacher, row)) {}

  void Enter(int64_t first, int64_t count) {
    x = ViewLogits(student_, row_, first, count, logits_);
    LogProbs(x, q_, count, log_q);
    LogProbs(ViewLogits(teacher_, row_, first, count, log_p), p_, count, log_p);
  }

  // What the logarithms of q exceed those of p by, since both are rounded.
  double LowDifference() const { return q_.low - p_.low; }

  const A* x = nullptr;  // the student's logits, transformed
  alignas(64) A log_q[kTile];
  alignas(64) A log_p[kTile];

 private:
  const Problem& student_;
  const Problem& teacher_;
  const Row& row_;
  const LogSoftmax<A> q_, p_;
  alignas(64) A logits_[kTile];
};

// beta and 1 - beta.
template <class A>
struct Mixture {
  A of_teacher, of_student;
};

// Over the classes: of the loss, and of (1 - beta) q r, or q r where beta = 1.
struct DivergenceSums {
  double loss = 0.0, of_student = 0.0;
};

template <Divergence kKind, class A>
static inline void AddDivergence(const A* log_q, const A* log_p, int64_t count, Mixture<A> mixture,
                                 DivergenceSums* sums) {
  A of_teacher = 0, of_student = 0;
  if constexpr (kKind == Divergence::kForward) {
#pragma omp simd reduction(+ : of_teacher)
    for (int64_t i = 0; i < count; ++i) of_teacher += DistanceTerm(Exp(log_p[i]), log_p[i], log_q[i]);
  } else if constexpr (kKind == Divergence::kReverse) {
#pragma omp simd reduction(+ : of_student)
    for (int64_t i = 0; i < count; ++i) of_student += DistanceTerm(Exp(log_q[i]), log_q[i], log_p[i]);
  } else {
#pragma omp simd reduction(+ : of_teacher, of_student)
    for (int64_t i = 0; i < count; ++i) {
      const A p = mixture.of_teacher * Exp(log_p[i]), q = mixture.of_student * Exp(log_q[i]);
      const A log_m = Log(p + q);
      of_teacher += DistanceTerm(p, log_p[i], log_m);
      of_student += DistanceTerm(q, log_q[i], log_m);
    }
  }
  sums->loss += static_cast<double>(of_teacher) + static_cast<double>(of_student);
  sums->of_student += of_student;
}

// `mean` is sum q r.
template <Divergence kKind, class A>
static inline void DivergenceSlope(const A* log_q, const A* log_p, int64_t count, Mixture<A> mixture,
                                   A mean, A upstream, A* out) {
  if constexpr (kKind == Divergence::kForward) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = upstream * (Exp(log_q[i]) - Exp(log_p[i]));
  } else if constexpr (kKind == Divergence::kReverse) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      out[i] = upstream * DistanceTerm(Exp(log_q[i]), log_q[i] - log_p[i], mean);
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const A p = mixture.of_teacher * Exp(log_p[i]), q = mixture.of_student * Exp(log_q[i]);
      out[i] = upstream * DistanceTerm(q, log_q[i] - Log(p + q), mean);
    }
  }
}

// The loss where nothing arrives at it from above, and the gradient where there is a place for it, which
// may be the student's logits.
template <Divergence kKind, class A>
static void DivergenceRow(const Problem& student, const Problem& teacher, const Row& row,
                          UnitSums* totals) {
  const bool loss_wanted = student.grad_loss.data == nullptr;
  const Mixture<A> mixture{static_cast<A>(student.beta), static_cast<A>(1.0 - student.beta)};
  TwoRows<A> rows(student, teacher, row);
  DivergenceSums sums;
  if (loss_wanted || kKind != Divergence::kForward) {
    for (int64_t first = 0; first < student.classes; first += kTile) {
      const int64_t count = TileCount(student, first);
      rows.Enter(first, count);
      AddDivergence<kKind>(rows.log_q, rows.log_p, count, mixture, &sums);
    }
  }
  if (loss_wanted) {
    double loss = sums.loss;  // of a mixture it has no part of first order in what is lost
    if (kKind == Divergence::kForward) loss += rows.LowDifference();
    if (kKind == Divergence::kReverse) loss -= rows.LowDifference();
    loss *= row.weight;
    totals->loss += loss;
    if (student.loss_rows.data != nullptr) StoreScalar(loss, student.loss_rows, row.index);
  }
  if (student.grad_logits.data == nullptr) return;
  const double upstream = loss_wanted ? row.weight : RowUpstream(student, student.grad_loss, row);
  const double share = kKind == Divergence::kMixed ? static_cast<double>(mixture.of_student) : 1.0;
  const A mean = static_cast<A>(sums.of_student / share);
  alignas(64) A out[kTile];
  for (int64_t first = 0; first < student.classes; first += kTile) {
    const int64_t count = TileCount(student, first);
    rows.Enter(first, count);
    DivergenceSlope<kKind>(rows.log_q, rows.log_p, count, mixture, mean, static_cast<A>(upstream), out);
    ChainLogitTransform(student, rows.x, out, count);
    Store(out, student.grad_logits, row.offset + first, 1, count, false);
  }
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_DIVERGENCE_H_
