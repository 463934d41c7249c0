// Numbers of 16 bits, and conversions among all types that logits are stored or computed in.
#ifndef MS_CE_NUMBER_TYPES_H_
#define MS_CE_NUMBER_TYPES_H_

#include "platform/vector_math.h"

namespace ms_ce {
namespace MS_CE_ISA {

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

MS_CE_INLINE float ToFloat(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  // 2^112 moves the exponent's bias from 15 to 127, and makes subnormals normal.
  const uint32_t finite = AsBits(AsFloat(magnitude) * 5.192296858534828e33f);
  const uint32_t bits = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : finite;
  return AsFloat(bits | static_cast<uint32_t>(value.bits & 0x8000u) << 16);
}

MS_CE_INLINE float ToFloat(Brain value) { return AsFloat(static_cast<uint32_t>(value.bits) << 16); }
MS_CE_INLINE float ToFloat(float value) { return value; }
MS_CE_INLINE double ToFloat(double value) { return value; }

MS_CE_INLINE void Convert(float value, float* out) { *out = value; }
MS_CE_INLINE void Convert(double value, float* out) { *out = static_cast<float>(value); }
MS_CE_INLINE void Convert(float value, double* out) { *out = value; }
MS_CE_INLINE void Convert(double value, double* out) { *out = value; }

MS_CE_INLINE void Convert(float value, Brain* out) {
  const uint32_t bits = AsBits(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const uint32_t quiet_nan = bits | 0x00400000u;
  out->bits = static_cast<uint16_t>((value == value ? rounded : quiet_nan) >> 16);
}

MS_CE_INLINE void Convert(float value, Half* out) {
  const uint32_t sign = AsBits(value) & 0x80000000u;
  const uint32_t magnitude = AsBits(value) ^ sign;
  // Below 2^-14 the float adder rounds at the right bit: 0.5 has the unit 2^-24.
  const uint32_t subnormal = AsBits(AsFloat(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t bits = magnitude < 0x38800000u ? subnormal : normal;
  bits = magnitude >= 0x47800000u ? special : bits;
  out->bits = static_cast<uint16_t>(bits | sign >> 16);
}

// Rounds to odd first, so that the second rounding cannot land on the wrong side of a tie.
template <class T>
MS_CE_INLINE void Convert(double value, T* out) {
  float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) != value && value == value && (AsBits(nearest) & 1u) == 0) {
    const bool away = (static_cast<double>(nearest) > value) == (value > 0);
    nearest = AsFloat(AsBits(nearest) + (away ? 0xffffffffu : 1u));
  }
  Convert(nearest, out);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_NUMBER_TYPES_H_
