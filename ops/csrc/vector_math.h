// exp, log and tanh that a compiler can vectorise: no branches, no tables, no calls.
// The bounds are measured over every float by tests/kernel (see docs/kernel.md).
#ifndef MS_CE_VECTOR_MATH_H_
#define MS_CE_VECTOR_MATH_H_

#include <math.h>
#include <string.h>

#include <cstdint>

namespace ms_ce {
namespace MS_CE_ISA {

static inline float AsFloat(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline uint32_t AsBits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

static inline double AsDouble(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline uint64_t AsBits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// exp for x <= 44, at most 1 ulp off; 0 below -104; nan stays nan.
// x = n ln2 + r; adding 1.5 * 2^23 rounds to the integer n and leaves it in the low bits. 2^n is built
// as 2^(n+64) * 2^-64, so that subnormal results are rounded once, by the last product.
static inline float Exp(float x) {
  const float kRound = 12582912.0f;
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.381454005e-3f;
  p = p * r + 8.368745229e-3f;
  p = p * r + 4.166839079e-2f;
  p = p * r + 1.666652040e-1f;
  p = p * r + 4.999999343e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float scale = AsFloat((AsBits(shifted) << 23) + (191u << 23));
  const float y = p * scale * 5.42101086242752217e-20f;
  return x < -104.0f ? 0.0f : y;
}

// exp for x <= 350, about 1 ulp off; 0 below -745.2.
static inline double Exp(double x) {
  const double kRound = 6755399441055744.0;
  const double shifted = x * 1.4426950408889634074 + kRound;
  const double n = shifted - kRound;
  double r = x - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
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
  const double scale = AsDouble((AsBits(shifted) << 52) + (uint64_t{1023 + 512} << 52));
  const double y = p * scale * 7.45834073120020674e-155;
  return x < -745.2 ? 0.0 : y;
}

// log for x >= 0: log(0) = -inf, inf and nan stay. x = 2^e m with m in [sqrt(1/2), sqrt(2)).
static inline float Log(float x) {
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

static inline double Log(double x) { return ::log(x); }

// tanh: an odd polynomial below 0.625, where 1 - 2 / (exp(2|x|) + 1) would cancel.
static inline float Tanh(float x) {
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

static inline double Tanh(double x) { return ::tanh(x); }

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_VECTOR_MATH_H_
