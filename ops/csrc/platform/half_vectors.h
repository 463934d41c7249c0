// Vectors of 16-bit numbers, widened to float and narrowed again.
#ifndef MS_CE_HALF_VECTORS_H_
#define MS_CE_HALF_VECTORS_H_

#include "platform/number_types.h"

namespace ms_ce {
namespace MS_CE_ISA {

using Halves = Vector<uint16_t>;

// What instruction sets without an instruction for it do, number by number.
template <class T>
MS_CE_INLINE void WidenTwo(const T* from, Vector<float>* parts) {
  float wide[kVectorLanes<T>];
#pragma omp simd
  for (int64_t i = 0; i < kVectorLanes<T>; ++i) wide[i] = ToFloat(from[i]);
  memcpy(parts, wide, sizeof(wide));
}

template <class T>
MS_CE_INLINE Halves NarrowTwo(const Vector<float>* parts, const T*) {
  float wide[kVectorLanes<T>];
  T narrow[kVectorLanes<T>];
  memcpy(wide, parts, sizeof(wide));
#pragma omp simd
  for (int64_t i = 0; i < kVectorLanes<T>; ++i) Convert(wide[i], narrow + i);
  return LoadVector<Halves>(narrow);
}

#if defined(__SSE2__) || defined(__aarch64__)
MS_CE_INLINE void WidenTwo(const Brain* from, Vector<float>* parts) {
#if defined(__AVX512F__)
  const auto* halves = reinterpret_cast<const __m256i*>(from);
  for (int i = 0; i < 2; ++i) {
    const __m512i bits = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(halves + i));
    parts[i] = (Vector<float>)((Vector<uint32_t>)bits << 16);
  }
#elif defined(__AVX2__)
  const auto* halves = reinterpret_cast<const __m128i*>(from);
  for (int i = 0; i < 2; ++i) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves + i));
    parts[i] = (Vector<float>)((Vector<uint32_t>)bits << 16);
  }
#elif defined(__SSE2__)
  const auto halves = (__m128i)LoadVector<Halves>(from);
  parts[0] = (Vector<float>)_mm_unpacklo_epi16(_mm_setzero_si128(), halves);
  parts[1] = (Vector<float>)_mm_unpackhi_epi16(_mm_setzero_si128(), halves);
#else
  const uint16x8_t halves = LoadVector<Halves>(from);
  parts[0] = (Vector<float>)vshll_n_u16(vget_low_u16(halves), 16);
  parts[1] = (Vector<float>)vshll_high_n_u16(halves, 16);
#endif
}

// To nearest, and half way between two numbers to the one farther from 0, where Convert takes the even one:
// floats that are computed have been rounded themselves, and this takes half the instructions. A nan's
// lower half must be 0.
MS_CE_INLINE Halves NarrowTwo(const Vector<float>* parts, const Brain*) {
#if defined(__SSE2__)
  Vector<uint32_t> bits[2];
  for (int i = 0; i < 2; ++i) bits[i] = AsBits(parts[i]) + 0x8000u;
#endif
#if defined(__AVX512BW__)
  Halves upper;
  for (int i = 0; i < kVectorLanes<uint16_t>; ++i) upper[i] = static_cast<uint16_t>(2 * i + 1);
  return (Halves)_mm512_permutex2var_epi16((__m512i)bits[0], (__m512i)upper, (__m512i)bits[1]);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)(bits[0] >> 16), (__m256i)(bits[1] >> 16));
  return (Halves)_mm256_permute4x64_epi64(packed, 0xd8);  // packing is within each half
#elif defined(__SSE4_1__)
  return (Halves)_mm_packus_epi32((__m128i)(bits[0] >> 16), (__m128i)(bits[1] >> 16));
#else
  const uint32x4_t half = vdupq_n_u32(0x8000u);  // vaddhn keeps the upper half of a sum
  return vaddhn_high_u32(vaddhn_u32(AsBits(parts[0]), half), AsBits(parts[1]), half);
#endif
}
#endif

#if defined(__F16C__)
MS_CE_INLINE void WidenTwo(const Half* from, Vector<float>* parts) {
#if defined(__AVX512F__)
  const auto* halves = reinterpret_cast<const __m256i*>(from);
  for (int i = 0; i < 2; ++i) parts[i] = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(halves + i));
#else
  const auto* halves = reinterpret_cast<const __m128i*>(from);
  for (int i = 0; i < 2; ++i) parts[i] = _mm256_cvtph_ps(_mm_loadu_si128(halves + i));
#endif
}

MS_CE_INLINE Halves NarrowTwo(const Vector<float>* parts, const Half*) {
#if defined(__AVX512F__)
  const __m256i low = _mm512_maskz_cvtps_ph(0xffff, parts[0], _MM_FROUND_TO_NEAREST_INT);
  const __m256i high = _mm512_maskz_cvtps_ph(0xffff, parts[1], _MM_FROUND_TO_NEAREST_INT);
  return (Halves)_mm512_maskz_inserti64x4(0xff, _mm512_maskz_broadcast_i64x4(0xff, low), high, 1);
#else
  const __m128i low = _mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT);
  const __m128i high = _mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT);
  return (Halves)_mm256_set_m128i(high, low);
#endif
}
#elif defined(__aarch64__)
MS_CE_INLINE void WidenTwo(const Half* from, Vector<float>* parts) {
  const auto halves = (float16x8_t)LoadVector<Halves>(from);
  parts[0] = vcvt_f32_f16(vget_low_f16(halves));
  parts[1] = vcvt_high_f32_f16(halves);
}

MS_CE_INLINE Halves NarrowTwo(const Vector<float>* parts, const Half*) {
  return (Halves)vcvt_high_f16_f32(vcvt_f16_f32(parts[0]), parts[1]);
}
#endif

#if defined(__AVX2__)
// The same with the numbers in another order, which costs less.
MS_CE_INLINE void WidenApart(Halves halves, Vector<float>* parts) {
  const auto pairs = (Vector<uint32_t>)halves;
  parts[0] = (Vector<float>)(pairs << 16);
  parts[1] = (Vector<float>)(pairs & 0xffff0000u);
}

MS_CE_INLINE Halves NarrowApart(const Vector<float>* parts, const Brain*) {
  const auto even = (Halves)((AsBits(parts[0]) + 0x8000u) >> 16),
             odd = (Halves)(AsBits(parts[1]) + 0x8000u);
#if defined(__AVX512BW__)
  return (Halves)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)even, (__m512i)odd);
#else
  return (Halves)_mm256_blend_epi16((__m256i)even, (__m256i)odd, 0xaa);
#endif
}

MS_CE_INLINE Halves NarrowApart(const Vector<float>* parts, const Half* to) { return NarrowTwo(parts, to); }
#endif

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_HALF_VECTORS_H_
