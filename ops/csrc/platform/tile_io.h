// Moves runs of elements between memory and the accumulation type: conversion, strides, streaming.
#ifndef MS_CE_TILE_IO_H_
#define MS_CE_TILE_IO_H_

#if defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#include "platform/array.h"
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

template <class T, class A>
MS_CE_INLINE void CopyRun(const T* source, int64_t count, A* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<A>(ToFloat(source[i]));
}

template <class T>
MS_CE_INLINE void RoundRun(const float* source, int64_t count, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) Convert(source[i], out + i);
}

// Compilers do not find these instructions in the portable conversions; they take a third of the time.
#if defined(__F16C__)
MS_CE_INLINE void CopyRun(const Half* source, int64_t count, float* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i));
    _mm512_storeu_ps(out + i, _mm512_maskz_cvtph_ps(0xffff, half));
  }
#endif
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
  }
  for (; i < count; ++i) out[i] = ToFloat(source[i]);
}

MS_CE_INLINE void RoundRun(const float* source, int64_t count, Half* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    const __m256i half =
        _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), half);
  }
#endif
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
  }
  for (; i < count; ++i) Convert(source[i], out + i);
}
#elif defined(__aarch64__)
MS_CE_INLINE void CopyRun(const Half* source, int64_t count, float* out) {
  const auto* native = reinterpret_cast<const __fp16*>(source);
  for (int64_t i = 0; i < count; ++i) out[i] = native[i];
}

MS_CE_INLINE void RoundRun(const float* source, int64_t count, Half* out) {
  auto* native = reinterpret_cast<__fp16*>(out);
  for (int64_t i = 0; i < count; ++i) native[i] = static_cast<__fp16>(source[i]);
}
#endif

template <class T, class A>
static inline void CopyIn(const T* source, int64_t stride, int64_t count, A* out) {
  if (stride == 1) {
    CopyRun(source, count, out);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<A>(ToFloat(source[i * stride]));
  }
}

template <class T>
static inline const T* At(const Array& array, int64_t offset) {
  return static_cast<const T*>(array.data) + offset;
}

template <class T>
static inline T* AtOut(const Array& array, int64_t offset) {
  return static_cast<T*>(array.data) + offset;
}

// count elements from offset on, `stride` apart, as the accumulation type A, in `scratch`.
template <class A>
static inline void Load(const Array& array, int64_t offset, int64_t stride, int64_t count, A* scratch) {
  switch (array.dtype) {
    case Dtype::kFloat16:
      return CopyIn(At<Half>(array, offset), stride, count, scratch);
    case Dtype::kBfloat16:
      return CopyIn(At<Brain>(array, offset), stride, count, scratch);
    case Dtype::kFloat32:
      return CopyIn(At<float>(array, offset), stride, count, scratch);
    default:
      return CopyIn(At<double>(array, offset), stride, count, scratch);
  }
}

static inline int64_t FloatBytes(Dtype dtype) {
  if (dtype == Dtype::kFloat64) return 8;
  return dtype == Dtype::kFloat32 ? 4 : 2;
}

static inline Dtype DtypeOf(const float*) { return Dtype::kFloat32; }
static inline Dtype DtypeOf(const double*) { return Dtype::kFloat64; }

// As Load, without the copy where memory already holds A.
template <class A>
static inline const A* View(const Array& array, int64_t offset, int64_t stride, int64_t count, A* scratch) {
  if (stride == 1 && array.dtype == DtypeOf(scratch)) return At<A>(array, offset);
  Load(array, offset, stride, count, scratch);
  return scratch;
}

static inline double LoadScalar(const Array& array, int64_t offset) {
  double value;
  Load(array, offset, 1, 1, &value);
  return value;
}

static inline int64_t LoadInteger(const Array& array, int64_t offset) {
  switch (array.dtype) {
    case Dtype::kInt32:
      return *At<int32_t>(array, offset);
    case Dtype::kUint8:
      return *At<uint8_t>(array, offset);
    default:
      return *At<int64_t>(array, offset);
  }
}

// A store that does not read the destination's cache line first. Aligned to the vector's width.
static inline void StreamVector(const float* source, float* out) {
#if defined(__AVX512F__)
  _mm512_stream_ps(out, _mm512_loadu_ps(source));
#elif defined(__AVX__)
  _mm256_stream_ps(out, _mm256_loadu_ps(source));
  _mm256_stream_ps(out + 8, _mm256_loadu_ps(source + 8));
#elif defined(__SSE2__)
  for (int i = 0; i < 16; i += 4) _mm_stream_ps(out + i, _mm_loadu_ps(source + i));
#else
  memcpy(out, source, 64);
#endif
}

// Streamed stores are ordered with nothing; this makes them visible before whatever the caller does next.
static inline void FinishStreaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Whole cache lines bypass the cache; the ragged ends are stored as usual.
static inline void StreamBytes(const char* source, char* out, int64_t bytes) {
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kCacheLine);
  int64_t done = misaligned == 0 ? 0 : kCacheLine - misaligned;
  done = done < bytes ? done : bytes;
  if (done > 0) memcpy(out, source, static_cast<size_t>(done));
  for (; done + kCacheLine <= bytes; done += kCacheLine) {
    StreamVector(reinterpret_cast<const float*>(source + done), reinterpret_cast<float*>(out + done));
  }
  if (done < bytes) memcpy(out + done, source + done, static_cast<size_t>(bytes - done));
}

constexpr int64_t kTile = 1024;  // elements converted at a time: 4 KB of fp32 stay in L1

template <class T>
MS_CE_INLINE void RoundRun(const double* source, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) Convert(source[i], out + i);
}

template <class T>
MS_CE_INLINE void RoundRun(const T* source, int64_t count, T* out) {
  memcpy(out, source, static_cast<size_t>(count) * sizeof(T));
}

template <class T, class A>
static inline void CopyOut(const A* source, T* out, int64_t stride, int64_t count, bool stream) {
  if (stride != 1) {
    for (int64_t i = 0; i < count; ++i) Convert(source[i], out + i * stride);
    return;
  }
  if (!stream) return RoundRun(source, count, out);
  alignas(64) T staged[kTile];
  for (int64_t done = 0; done < count; done += kTile) {
    const int64_t step = count - done < kTile ? count - done : kTile;
    RoundRun(source + done, step, staged);
    StreamBytes(reinterpret_cast<const char*>(staged), reinterpret_cast<char*>(out + done),
                step * static_cast<int64_t>(sizeof(T)));
  }
}

template <class A>
static inline void CopyOut(const A* source, A* out, int64_t stride, int64_t count, bool stream) {
  if (stride == 1 && stream) {
    return StreamBytes(reinterpret_cast<const char*>(source), reinterpret_cast<char*>(out),
                       count * static_cast<int64_t>(sizeof(A)));
  }
  for (int64_t i = 0; i < count; ++i) out[i * stride] = source[i];
}

template <class A>
static inline void Store(const A* source, const Array& array, int64_t offset, int64_t stride, int64_t count,
                         bool stream) {
  switch (array.dtype) {
    case Dtype::kFloat16:
      return CopyOut(source, AtOut<Half>(array, offset), stride, count, stream);
    case Dtype::kBfloat16:
      return CopyOut(source, AtOut<Brain>(array, offset), stride, count, stream);
    case Dtype::kFloat32:
      return CopyOut(source, AtOut<float>(array, offset), stride, count, stream);
    default:
      return CopyOut(source, AtOut<double>(array, offset), stride, count, stream);
  }
}

static inline void StoreScalar(double value, const Array& array, int64_t offset) {
  Store(&value, array, offset, 1, 1, false);
}

static inline void StoreZeros(const Array& array, int64_t offset, int64_t stride, int64_t count,
                              bool stream) {
  static const double kZeros[kTile] = {};
  for (int64_t done = 0; done < count; done += kTile) {
    const int64_t step = count - done < kTile ? count - done : kTile;
    Store(kZeros, array, offset + done * stride, stride, step, stream);
  }
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_TILE_IO_H_
