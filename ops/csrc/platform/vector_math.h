// exp, log and tanh that a compiler can vectorise: no branches, no tables, no calls.
// The bounds are measured over every float by tests/kernel (see docs/kernel.md).
#ifndef MS_CE_VECTOR_MATH_H_
#define MS_CE_VECTOR_MATH_H_

#include <math.h>

#include "platform/vectors.h"

namespace ms_ce {
namespace MS_CE_ISA {

MS_CE_INLINE float AsFloat(uint32_t bits) { return FromBits<float>(bits); }

// V is a number or a vector of them.
//
// 2^64 exp(x) for x <= 44, at most 1 ulp off; nan stays nan. The factor keeps every result from x = -131 on
// a normal number; a caller that sums terms takes it off the sum. x = n ln2 + r: adding 1.5 * 2^23 rounds
// to the integer n and leaves n + kBias in the low bits, from where it becomes the exponent of the factor
// 2^(n+64). At the least x that exponent is 0, and so are factor and result: for -inf too.
constexpr float kLeastExponent = -132.4f;

template <class V>
MS_CE_INLINE V ExpTimes2To64(V any) {
  const float kBias = 127.0f + 64.0f;
  const float kRound = 12582912.0f + kBias;
  const V x = AtLeast(any, V{} + kLeastExponent);
  const V shifted = x * 1.44269504088896341f + kRound;
  const V n = shifted - kRound;
  V r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  V p = r * 1.381454005e-3f + 8.368745229e-3f;
  p = p * r + 4.166839079e-2f;
  p = p * r + 1.666652040e-1f;
  p = p * r + 4.999999343e-1f;
#if defined(__FMA__) || defined(__aarch64__)
  p = p * r + 1.0f;
  p = p * r + 1.0f;
#else
  p = (p * (r * r) + r) + 1.0f;  // one more operation, where every product is rounded
#endif
  return p * FromBits<V>(AsBits(shifted) << 23);
}

// 2^512 exp(x) for x <= 350, about 1 ulp off, likewise.
template <class V>
MS_CE_INLINE V ExpTimes2To512(V any) {
  const double kBias = 1023.0 + 512.0;
  const double kRound = 6755399441055744.0 + kBias;
  const V x = AtLeast(any, V{} - 1064.2);
  const V shifted = x * 1.4426950408889634074 + kRound;
  const V n = shifted - kRound;
  V r = x - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  V p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * FromBits<V>(AsBits(shifted) << 52);
}

// 2^64 exp(x) as above with relative error up to 2^-17.3: for logits of 16 bits, whose own rounding is far
// coarser. exp(x) = 2^n 2^f.
template <class V>
MS_CE_INLINE V CoarseExpTimes2To64(V any) {
  const float kBias = 127.0f + 64.0f;
  const float kRound = 12582912.0f + kBias;
  const V x = AtLeast(any, V{} + kLeastExponent);
  const V shifted = x * 1.44269504088896341f + kRound;
  const V f = x * 1.44269504088896341f - (shifted - kRound);
  V p = f * 9.570101911e-3f + 5.591786032e-2f;
  p = p * f + 2.402474483e-1f;
  p = p * f + 6.931218147e-1f;
  p = p * f + 9.999992614e-1f;
  return p * FromBits<V>(AsBits(shifted) << 23);
}

MS_CE_INLINE float ExpScaled(float x) { return ExpTimes2To64(x); }
MS_CE_INLINE double ExpScaled(double x) { return ExpTimes2To512(x); }
MS_CE_INLINE Vector<float> ExpScaled(Vector<float> x) { return ExpTimes2To64(x); }
MS_CE_INLINE Vector<double> ExpScaled(Vector<double> x) { return ExpTimes2To512(x); }
// What takes ExpScaled's factor off.
MS_CE_INLINE float Unscaling(float) { return 5.42101086242752217e-20f; }
MS_CE_INLINE double Unscaling(double) { return 7.45834073120020674e-155; }
MS_CE_INLINE float Unscaling(Vector<float>) { return 5.42101086242752217e-20f; }
MS_CE_INLINE double Unscaling(Vector<double>) { return 7.45834073120020674e-155; }
MS_CE_INLINE double Unscale(float sum) { return static_cast<double>(sum) * 5.42101086242752217e-20; }
MS_CE_INLINE double Unscale(double sum) { return sum * 7.45834073120020674e-155; }

// exp(x), with its factor left on where kScaled. The product that takes it off rounds a subnormal result
// once.
template <bool kScaled, class V>
MS_CE_INLINE V Term(V x) {
  return kScaled ? ExpScaled(x) : ExpScaled(x) * Unscaling(x);
}
template <bool kScaled, class V>
MS_CE_INLINE V CoarseTerm(V x) {
  return kScaled ? CoarseExpTimes2To64(x) : CoarseExpTimes2To64(x) * Unscaling(x);
}

MS_CE_INLINE float Exp(float x) { return Term<false>(x); }
MS_CE_INLINE double Exp(double x) { return Term<false>(x); }
MS_CE_INLINE float CoarseExp(float x) { return CoarseTerm<false>(x); }

// log for x >= 0: log(0) = -inf, inf and nan stay. x = 2^e m with m in [sqrt(1/2), sqrt(2)).
MS_CE_INLINE float Log(float x) {
  const float scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;
  const float bias = x < 1.17549435e-38f ? 23.0f : 0.0f;
  const uint32_t bits = AsBits(scaled) - 0x3f3504f3u;
  const float e = static_cast<float>(static_cast<int32_t>(bits) >> 23) - bias;
  const float f = AsFloat((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = p * f * z + e * -2.12194440e-4f - 0.5f * z;
  const float y = (f + tail) + e * 0.693359375f;
  const float finite = x > 0.0f ? y : -INFINITY;
  return x <= 3.40282347e38f ? finite : x;
}

MS_CE_INLINE double Log(double x) { return ::log(x); }

// tanh: an odd polynomial below 0.625, where 1 - 2 / (exp(2|x|) + 1) would cancel.
MS_CE_INLINE float Tanh(float x) {
  const float a = x < 0.0f ? -x : x;
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * z * x + x;
  const float bounded = a > 10.0f ? 10.0f : a;
  const float large = 1.0f - 2.0f / (Exp(2.0f * bounded) + 1.0f);
  return a < 0.625f ? small : (x < 0.0f ? -large : (x > 0.0f ? large : x));
}

MS_CE_INLINE double Tanh(double x) { return ::tanh(x); }

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_VECTOR_MATH_H_
