// exp of logits of 16 bits for instruction sets that look numbers up in a register: AVX2 and later.
#ifndef MS_CE_TABLE_EXP_H_
#define MS_CE_TABLE_EXP_H_

#include <type_traits>

#include "platform/half_vectors.h"
#include "platform/vector_math.h"

#if defined(__AVX2__) && defined(__FMA__)
#define MS_CE_HAS_TABLE_EXP 1

namespace ms_ce {
namespace MS_CE_ISA {

// a * b + c with one rounding, where a compiler would be free to round twice.
MS_CE_INLINE Vector<float> MultiplyAdd(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#else
  return _mm256_fmadd_ps(a, b, c);
#endif
}

// table[index % 8] of each lane; the table is repeated where a register holds more.
MS_CE_INLINE Vector<uint32_t> LookUp(Vector<uint32_t> index, Vector<uint32_t> table) {
#if defined(__AVX512F__)
  return (Vector<uint32_t>)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)index, (__m512i)table);
#else
  return (Vector<uint32_t>)_mm256_permutevar8x32_epi32((__m256i)table, (__m256i)index);
#endif
}

MS_CE_INLINE Halves LargestSigned(Halves a, Halves b) {
#if defined(__AVX512BW__)
  return (Halves)_mm512_maskz_max_epi16(0xffffffff, (__m512i)a, (__m512i)b);
#else
  return (Halves)_mm256_max_epi16((__m256i)a, (__m256i)b);
#endif
}

MS_CE_INLINE Halves LargestUnsigned(Halves a, Halves b) {
#if defined(__AVX512BW__)
  return (Halves)_mm512_maskz_max_epu16(0xffffffff, (__m512i)a, (__m512i)b);
#else
  return (Halves)_mm256_max_epu16((__m256i)a, (__m256i)b);
#endif
}

MS_CE_INLINE Halves LeastUnsigned(Halves a, Halves b) {
#if defined(__AVX512BW__)
  return (Halves)_mm512_maskz_min_epu16(0xffffffff, (__m512i)a, (__m512i)b);
#else
  return (Halves)_mm256_min_epu16((__m256i)a, (__m256i)b);
#endif
}

// The logits that TableExp takes beside a reference, as numbers of 16 bits are compared without being
// widened: by their bits, which order numbers above 0 as signed integers, and those below by their
// distance from 0 as unsigned ones.
template <class T>
class HalfRange {
 public:
  // References for which every logit above 0 is far enough above the least exponent, and 0 is no more than
  // the slack above.
  static bool Has(double reference) { return reference >= -kSlack && reference <= 64.0; }

  explicit HalfRange(float reference) {
    T most, least;
    Convert(reference + kSlack, &most);
    Convert(reference - kDepth, &least);
    least_value_ = ToFloat(least);
    uint16_t bits[2];
    memcpy(bits, &most, sizeof(most));
    memcpy(bits + 1, &least, sizeof(least));
    most_ = Halves{} + bits[0];
    least_ = Halves{} + bits[1];
  }

  MS_CE_FORCE_INLINE float NotBelow(float logit) const { return AtLeast(logit, least_value_); }

  // Logits that are made no less than the range's least.
  MS_CE_FORCE_INLINE void LoadNotBelow(const T* from, Vector<float>* parts) const {
    if constexpr (std::is_same<T, Brain>::value) {
      WidenApart(LeastUnsigned(LoadVector<Halves>(from), least_), parts);  // nan below 0 is lost
    } else {
      WidenTwo(from, parts);
      for (int i = 0; i < 2; ++i) parts[i] = AtLeast(parts[i], Vector<float>{} + least_value_);
    }
  }

  // The extremes of logits by their bits; no nan lies within a range.
  struct Extremes {
    Halves most = {}, least = {};

    MS_CE_FORCE_INLINE void See(Halves logits) {
      most = LargestSigned(logits, most);
      least = LargestUnsigned(logits, least);
    }
  };

  bool Holds(Extremes seen) const {
    const Halves beyond =
        (LargestSigned(seen.most, most_) ^ most_) | (LargestUnsigned(seen.least, least_) ^ least_);
    uint64_t words[kVectorBytes / 8], any = 0;
    memcpy(words, &beyond, sizeof(words));
    for (const uint64_t word : words) any |= word;
    return any == 0;
  }

 private:
  static constexpr float kSlack = 20.0f, kDepth = 130.0f;
  Halves most_, least_;
  float least_value_;
};

// 2^64 exp(x - octave ln2) of a HalfRange's logits, relative error up to 2^-17.7, as the product of two
// factors. x log2 e = n + r with n a multiple of 1/8, so that |r| <= 1/16: adding 1.5 * 2^20 rounds to n,
// whose eighths, the lowest bits, are looked up, and whose whole part is added to the exponent. A whole
// octave as the reference leaves no difference of logits to be rounded.
class TableExp {
 public:
  struct Factors {
    Vector<float> polynomial, power;
  };

  // The polynomial is multiplied by `factor`.
  explicit TableExp(float octave, float factor = 1.0f)
      : round_(Vector<float>{} + (1572864.0f + (127.0f + 64.0f) - octave)),
        p0_(Vector<float>{} + 1.00000012f * factor),
        p1_(Vector<float>{} + 0.693309765f * factor),
        p2_(Vector<float>{} + 0.24019833f * factor) {
    // 2^(k/8), less what k adds to the exponent's bits.
    constexpr float kPowers[8] = {1.0f,        1.09050773f, 1.18920712f, 1.29683955f,
                                  1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f};
    for (uint32_t k = 0; k < kVectorLanes<float>; ++k) {
      table_[k] = AsBits(kPowers[k % 8]) - AsBits(1.0f) - (k % 8 << 20);
    }
  }

  MS_CE_FORCE_INLINE Factors operator()(Vector<float> x) const {
    const Vector<float> log2e = Vector<float>{} + 1.44269504088896341f;
    const Vector<float> shifted = MultiplyAdd(x, log2e, round_);
    const Vector<float> r = MultiplyAdd(x, log2e, round_ - shifted);
    const Vector<uint32_t> bits = AsBits(shifted);
    const Vector<uint32_t> power = LookUp(bits, table_) + (bits << 20);
    return {MultiplyAdd(r, MultiplyAdd(r, p2_, p1_), p0_), FromBits<Vector<float>>(power)};
  }

 private:
  Vector<float> round_, p0_, p1_, p2_;
  Vector<uint32_t> table_;
};

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // __AVX2__

#endif  // MS_CE_TABLE_EXP_H_
