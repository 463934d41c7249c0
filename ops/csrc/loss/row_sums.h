// The sums over one row that loss, lse and statistics are made of, and the scan that fills them.
#ifndef MS_CE_ROW_SUMS_H_
#define MS_CE_ROW_SUMS_H_

#include "loss/row_terms.h"

namespace ms_ce {
namespace MS_CE_ISA {

// Relative to `reference`, which lies near the row's maximum: differences of logits are exact to rounding
// however large their common offset is.
struct RowSums {
  double reference = 0.0;
  double exp_sum = 0.0;       // sum exp(x - reference)
  double distance = 0.0;      // sum a (reference - x), a = coefficient
  double mass = 0.0;          // sum a
  double exp_distance = 0.0;  // sum exp(x - reference) (reference - x)
  double maximum = -INFINITY;
  int64_t argmax = 0;
  bool moved = false;  // tiles had different references
};

// Above this distance a new maximum becomes the reference; below it exp cannot overflow.
constexpr double kReferenceSlack = 20.0;

static inline void MoveReference(RowSums* sums, double reference) {
  const double shift = reference - sums->reference;
  // An empty sum may move down any distance, where exp(-shift) overflows.
  if (sums->exp_sum != 0.0) {
    const double scale = ::exp(-shift);
    sums->exp_distance = scale * (sums->exp_distance + shift * sums->exp_sum);
    sums->exp_sum *= scale;
  }
  if (sums->mass != 0.0) sums->distance += shift * sums->mass;  // shift may be inf
  sums->reference = reference;
}

// Reads the row once, tile after tile. A Tile knows how its row is stored:
//   Enter(first, count)       takes the classes [first, first + count)
//   Maximum()                 of these
//   Sum(reference, &maximum)  of exp(x - reference), and their maximum
//   AddRest(maximum, &sums)   whatever else is wanted
template <class A, class Tile>
static inline RowSums ScanTiles(const Problem& problem, Tile* tile) {
  RowSums sums;
  bool has_reference = false;
  for (int64_t first = 0; first < problem.classes; first += kTile) {
    tile->Enter(first, TileCount(problem, first));
    A maximum;
    if (!has_reference) {
      maximum = tile->Maximum();
      if (maximum > -INFINITY) {
        MoveReference(&sums, maximum);
        has_reference = true;
      }
    }
    double sum = tile->Sum(static_cast<A>(sums.reference), &maximum);
    if (static_cast<double>(maximum) > sums.reference + kReferenceSlack) {
      MoveReference(&sums, maximum);
      sum = tile->Sum(static_cast<A>(sums.reference), &maximum);
      sums.moved = true;
    }
    sums.exp_sum += sum;
    tile->AddRest(maximum, &sums);
  }
  return sums;
}

// An lse in two parts: beside a common offset of 1e8 a double has no places left for log sum.
struct Lse {
  double high, low = 0.0;
};

// Whether rounding an lse to a double moves exponents by more than A's own rounding does.
template <class A>
MS_CE_INLINE bool IsCoarse(double lse) {
  constexpr double kLargest = sizeof(A) == sizeof(double) ? 0x1p5 : 0x1p27;
  return (lse > kLargest) | (lse < -kLargest);
}

// grad of x'_c: slope p_c - scale a_c - hot 1{c = target} - grad_entropy p_c (x'_c - lse + entropy)
struct RowGradient {
  Lse lse;
  double slope, scale, hot;
  double grad_entropy = 0.0, entropy = 0.0;
};

// The gradient for upstream `grad` on the row loss and `grad_z` on its z part.
static inline RowGradient LossGradient(const Problem& problem, const Row& row, Lse lse, double mass,
                                       double grad, double grad_z) {
  const double scale = CoefficientScale(problem);
  const double slope = LossSlope(grad, grad_z, row.hot + scale * mass, problem.z_loss, lse.high);
  return {lse, slope, grad * scale, grad * row.hot};
}

// Below this, a slope without the factor of ExpScaled would leave the normal numbers.
constexpr double kSmallSlope = 0x1p-60;

static inline bool IsSmallSlope(double slope) { return slope > -kSmallSlope && slope < kSmallSlope; }

// A nan that a caller has put into a weight may have any bits; StoreWide wants those that arithmetic makes.
template <class A>
static inline A OneNan(A value) {
  return value == value ? value : static_cast<A>(NAN);
}

// slope exp(x - lse) as `factor` times exp(x - high), high being the A nearest to lse: the exponential
// with its own factor where `scaled`.
template <class A>
struct SoftmaxFactor {
  A high, factor;
  bool scaled;

  SoftmaxFactor(Lse lse, double slope) : high(OneNan(static_cast<A>(lse.high))) {
    const double exact = slope * ::exp((static_cast<double>(high) - lse.high) - lse.low);
    scaled = !IsSmallSlope(exact);
    factor = OneNan(static_cast<A>(scaled ? exact * Unscale(A(1)) : exact));
  }
};

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_ROW_SUMS_H_
