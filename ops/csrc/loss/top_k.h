// Distillation from what is stored of a teacher: log p of k classes of each row. All other classes are one
// outcome more, the tail, whose log p is log(1 - sum p) and whose log q comes of the logits without the k,
// so that it is exact where it is small. By outcome, with m = beta p + (1 - beta) q, a term and its
// derivative g by log q:
//   beta = 0        p log(p / q)                                        -p
//   0 < beta < 1    beta p log(p / m) + (1 - beta) q log(q / m)         (1 - beta) q log(q / m)
//   beta = 1        q log(q / p)                                        q log(q / p) + q
// The gradient by a logit is g - q sum g for one of the k, and (q / q_tail) (g_tail - q_tail sum g) for any
// other. Without the tail sums are over the k, and g_tail is 0.
#ifndef MS_CE_TOP_K_H_
#define MS_CE_TOP_K_H_

#include "loss/row_kernel.h"

namespace ms_ce {
namespace MS_CE_ISA {

// See ScanTiles: the classes that are not among the k. The logits of the k, which are given in order, are
// picked on the way.
template <class A>
class OtherClasses {
 public:
  OtherClasses(const Problem& problem, const Row& row, const int64_t* classes, double* picked)
      : problem_(problem), row_(row), classes_(classes), picked_(picked) {}

  void Enter(int64_t first, int64_t count) {
    count_ = count;
    const A* x = ViewLogits(problem_, row_, first, count, logits_);
    if (x != logits_) memcpy(logits_, x, static_cast<size_t>(count) * sizeof(A));
    for (; next_ < problem_.top && classes_[next_] < first + count; ++next_) {
      A* logit = logits_ + (classes_[next_] - first);
      picked_[next_] = static_cast<double>(*logit);
      *logit = -static_cast<A>(INFINITY);
    }
  }

  A Maximum() const { return TileMax(logits_, count_); }

  double Sum(A reference, A* maximum) const {
    const RunSums<A> sums = SumLines<A, false, false>(logits_, count_, reference, nullptr, [] {});
    *maximum = sums.maximum;
    return Unscale(sums.exp);
  }

  void AddRest(A, RowSums*) const {}

 private:
  const Problem& problem_;
  const Row& row_;
  const int64_t* classes_;
  double* picked_;
  int64_t next_ = 0, count_ = 0;
  alignas(64) A logits_[kTile];
};

// The term of an outcome, and its derivative by log q.
struct OutcomeTerm {
  double loss, slope;
};

static inline OutcomeTerm TermOfOutcome(double log_q, double log_p, double beta) {
  const double p = ::exp(log_p), q = ::exp(log_q);
  if (beta == 0.0) return {DistanceTerm(p, log_p, log_q), -p};
  if (beta == 1.0) {
    const double loss = DistanceTerm(q, log_q, log_p);
    return {loss, loss + q};
  }
  const double of_teacher = beta * p, of_student = (1.0 - beta) * q, log_m = ::log(of_teacher + of_student);
  const double slope = DistanceTerm(of_student, log_q, log_m);
  return {DistanceTerm(of_teacher, log_p, log_m) + slope, slope};
}

// The outcomes of one row: its logits of the k classes, and log-sum-exps, relative to a reference.
class Outcomes {
 public:
  Outcomes(const Problem& problem, const Row& row, const double* logits, const RowSums& others)
      : beta_(problem.beta),
        tail_(problem.tail != 0.0),
        top_(problem.top),
        log_p_(static_cast<const double*>(problem.top_log_probs.data) + row.index * problem.top),
        logits_(logits),
        reference_(others.reference),
        of_others_(::log(others.exp_sum)) {
    double most = of_others_;
    for (int64_t i = 0; i < top_; ++i) most = MaxOf(Relative(i), most);
    double sum = ::exp(of_others_ - most);
    for (int64_t i = 0; i < top_; ++i) sum += ::exp(Relative(i) - most);
    of_all_ = most + ::log(sum);
    double rest = 1.0;
    for (int64_t i = 0; i < top_; ++i) rest -= ::exp(log_p_[i]);
    log_rest_ = ::log(problem.top == problem.classes || rest < 0.0 ? 0.0 : rest);
  }

  // Sums over the outcomes; nan where any term is.
  OutcomeTerm Sums() const {
    OutcomeTerm sums = {0.0, 0.0};
    const auto add = [&](OutcomeTerm term) {
      sums.loss += term.loss;
      sums.slope += term.slope;
    };
    for (int64_t i = 0; i < top_; ++i) add(Term(i));
    if (tail_) add(Tail());
    return sums;
  }

  // By the logit of one of the k, with the sum of all slopes.
  double Slope(int64_t i, double slopes) const { return Term(i).slope - ::exp(LogQ(i)) * slopes; }

  // By the other logits: the derivative is this times exp(x - lse).
  double SlopeOfOthers(double slopes) const {
    return tail_ ? Tail().slope - ::exp(of_others_ - of_all_) * slopes : -slopes;
  }

  // That lse: of the others alone where they are one outcome, or else of all.
  Lse OthersLse() const {
    const double log_sum = tail_ ? of_others_ : of_all_;
    const double lse = reference_ + log_sum;
    return {lse, LowOfLse(lse, reference_, log_sum)};
  }

  bool HasOthers() const { return of_others_ > -INFINITY; }

 private:
  double Relative(int64_t i) const { return logits_[i] - reference_; }
  double LogQ(int64_t i) const { return Relative(i) - of_all_; }
  OutcomeTerm Term(int64_t i) const { return TermOfOutcome(LogQ(i), log_p_[i], beta_); }
  OutcomeTerm Tail() const { return TermOfOutcome(of_others_ - of_all_, log_rest_, beta_); }

  const double beta_;
  const bool tail_;
  const int64_t top_;
  const double *log_p_, *logits_;
  const double reference_, of_others_;
  double of_all_, log_rest_;
};

// As DivergenceRow.
template <class A>
static void TopKRow(const Problem& problem, const Row& row, UnitSums* totals) {
  const auto* classes = static_cast<const int64_t*>(problem.top_classes.data) + row.index * problem.top;
  double* picked = problem.top_logits + row.index * problem.top;
  OtherClasses<A> others(problem, row, classes, picked);
  const Outcomes outcomes(problem, row, picked, ScanTiles<A>(problem, &others));
  const OutcomeTerm sums = outcomes.Sums();
  const bool loss_wanted = problem.grad_loss.data == nullptr;
  if (loss_wanted) {
    const double loss = row.weight * sums.loss;
    totals->loss += loss;
    if (problem.loss_rows.data != nullptr) StoreScalar(loss, problem.loss_rows, row.index);
  }
  if (problem.grad_logits.data == nullptr) return;
  const double upstream = loss_wanted ? row.weight : RowUpstream(problem, problem.grad_loss, row);
  const double of_others = outcomes.HasOthers() ? upstream * outcomes.SlopeOfOthers(sums.slope) : 0.0;
  const SoftmaxFactor<A> softmax(outcomes.HasOthers() ? outcomes.OthersLse() : Lse{0.0}, of_others);
  alignas(64) A logits[kTile];
  alignas(64) A out[kTile];
  int64_t next = 0;
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    const int64_t count = TileCount(problem, first);
    const A* x = ViewLogits(problem, row, first, count, logits);
    softmax.scaled ? TileGradient<A, true>(x, nullptr, out, count, softmax.high, softmax.factor, A(0))
                   : TileGradient<A, false>(x, nullptr, out, count, softmax.high, softmax.factor, A(0));
    for (; next < problem.top && classes[next] < first + count; ++next) {
      out[classes[next] - first] = static_cast<A>(upstream * outcomes.Slope(next, sums.slope));
    }
    ChainLogitTransform(problem, x, out, count);
    Store(out, problem.grad_logits, row.offset + first, 1, count, false);
  }
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_TOP_K_H_
