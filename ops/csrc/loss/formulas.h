// The formulas of the loss, for one class or one row: the same for rows, for lanes and for second
// derivatives. Loops around them vectorise, so all are inlined.
#ifndef MS_CE_FORMULAS_H_
#define MS_CE_FORMULAS_H_

#include "platform/vector_math.h"

namespace ms_ce {
namespace MS_CE_ISA {

// The transformed logit x' = cap tanh(inside x), inside = scale / cap.
template <class A>
MS_CE_INLINE A CappedLogit(A x, A cap, A inside) {
  return cap * Tanh(inside * x);
}

// Its derivative by x, with t = x' / cap.
template <class A>
MS_CE_INLINE A CapSlope(A scale, A t) {
  return scale * (A(1) - t * t);
}

// q' = keep q + spread, keep = 1 - label_smoothing and spread = label_smoothing / classes.
template <class A>
MS_CE_INLINE A SmoothedProbability(A q, A keep, A spread) {
  return keep * q + spread;
}

// a (reference - x). A zero coefficient contributes 0, whatever its logit is.
template <class A>
MS_CE_INLINE A DistanceTerm(A a, A reference, A x) {
  const A term = a * (reference - x);
  return a == A(0) ? A(0) : term;
}

// slope p, as SoftmaxFactor of row_sums.h splits it.
template <bool kScaled, class A>
MS_CE_INLINE A SoftmaxTerm(A x, A high, A factor) {
  return factor * Term<kScaled>(x - high);
}

// hot (lse - x_y), the difference being given.
MS_CE_INLINE double TargetLoss(double hot, double difference) {
  return hot == 0.0 ? 0.0 : hot * difference;
}

// sum_c a_c (lse - x_c), from the sums of a_c (reference - x_c) and of a_c, and lse - reference.
MS_CE_INLINE double CoefficientSum(double distance, double mass, double log_sum) {
  return distance + mass * log_sum;
}

// A row without a softmax, whose lse is nan, has a loss of nan, whatever its coefficients are.
MS_CE_INLINE double LossOfSoftmax(double loss, double lse) { return lse == lse ? loss : lse; }

MS_CE_INLINE double ZLoss(double z_loss, double lse) { return z_loss == 0.0 ? 0.0 : z_loss * lse * lse; }

// A row of -inf alone has no softmax: its lse is nan, as exp(-inf - max) is.
MS_CE_INLINE double WholeLse(double reference, double exp_sum, double log_sum) {
  const double lse = reference + log_sum;
  return exp_sum == 0.0 ? static_cast<double>(NAN) : lse;
}

// What the sum above has lost to rounding; 0 beside an lse that is no number.
MS_CE_INLINE double LowOfLse(double lse, double reference, double log_sum) {
  const double low = (reference - lse) + log_sum;
  return low - low == 0.0 ? low : 0.0;
}

// What the softmax is multiplied by in a row's gradient: grad on its loss, mass being sum_c of all its
// coefficients, and grad + grad_z on its z part.
MS_CE_INLINE double LossSlope(double grad, double grad_z, double mass, double z_loss, double lse) {
  double slope = grad * mass;
  if (z_loss != 0.0) slope += 2.0 * z_loss * lse * (grad + grad_z);
  return slope;
}

// The same on a block of classes, whose losses are mass * lse - dot.
MS_CE_INLINE double PartialSlope(double grad, double grad_lse, double mass) {
  return grad * mass + grad_lse;
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_FORMULAS_H_
