// Vectors that fill a register, in GNU's vector types: loops over lines of memory are written with them
// where a compiler, left to itself, keeps what is to stay in registers in memory.
#ifndef MS_CE_VECTORS_H_
#define MS_CE_VECTORS_H_

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <string.h>

#include <cstdint>

// A loop around a call that is not inlined is not vectorised.
#define MS_CE_FORCE_INLINE inline __attribute__((always_inline))
#define MS_CE_INLINE static MS_CE_FORCE_INLINE
#define MS_CE_LAMBDA_INLINE __attribute__((always_inline))

namespace ms_ce {
namespace MS_CE_ISA {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes =
    16;  // on SVE too: of what is wider, compilers have no arrays and no structures
#endif

template <class A>
constexpr int64_t kVectorLanes = kVectorBytes / static_cast<int64_t>(sizeof(A));

template <class A>
struct VectorOf {
  typedef A Type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vector = typename VectorOf<A>::Type;

// The unsigned integers that have the bits of a number, or of a vector of them.
template <class V>
struct BitsOf;
template <>
struct BitsOf<float> {
  using Type = uint32_t;
};
template <>
struct BitsOf<double> {
  using Type = uint64_t;
};
template <>
struct BitsOf<Vector<float>> {
  using Type = Vector<uint32_t>;
};
template <>
struct BitsOf<Vector<double>> {
  using Type = Vector<uint64_t>;
};

template <class V>
MS_CE_INLINE typename BitsOf<V>::Type AsBits(V value) {
  typename BitsOf<V>::Type bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <class V>
MS_CE_INLINE V FromBits(typename BitsOf<V>::Type bits) {
  V value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class V, class A>
MS_CE_INLINE V LoadVector(const A* from) {
  V vector;
  memcpy(&vector, from, sizeof(vector));
  return vector;
}

// Past the cache where kStream: without reading the cache line first, to a multiple of the vector's bytes.
template <bool kStream, class V>
MS_CE_INLINE void StoreVector(V vector, void* to) {
#if defined(__AVX512F__)
  if (kStream) return _mm512_stream_ps(static_cast<float*>(to), (__m512)vector);
#elif defined(__AVX__)
  if (kStream) return _mm256_stream_ps(static_cast<float*>(to), (__m256)vector);
#elif defined(__SSE2__)
  if (kStream) return _mm_stream_ps(static_cast<float*>(to), (__m128)vector);
#endif
  memcpy(to, &vector, sizeof(vector));
}

// The larger one; `maximum` where the value is nan.
template <class A>
MS_CE_INLINE A MaxOf(A value, A maximum) {
  return value > maximum ? value : maximum;
}

// x, or `least` where x is below it; nan stays.
template <class A>
MS_CE_INLINE A AtLeast(A x, A least) {
  return least > x ? least : x;
}

// Compilers find these instructions in comparisons of numbers, but not in those of vectors.
#if defined(__SSE2__)
#if defined(__AVX512F__)  // masked with nothing, since g++ 12 warns of the plain forms in its own header
#define MS_CE_MAX_FLOAT(a, b) _mm512_maskz_max_ps(0xffff, a, b)
#define MS_CE_MAX_DOUBLE(a, b) _mm512_maskz_max_pd(0xff, a, b)
#elif defined(__AVX__)
#define MS_CE_MAX_FLOAT _mm256_max_ps
#define MS_CE_MAX_DOUBLE _mm256_max_pd
#else
#define MS_CE_MAX_FLOAT _mm_max_ps
#define MS_CE_MAX_DOUBLE _mm_max_pd
#endif
// These are the second operand where either is nan.
MS_CE_INLINE Vector<float> MaxOf(Vector<float> value, Vector<float> maximum) {
  return MS_CE_MAX_FLOAT(value, maximum);
}
MS_CE_INLINE Vector<double> MaxOf(Vector<double> value, Vector<double> maximum) {
  return MS_CE_MAX_DOUBLE(value, maximum);
}
MS_CE_INLINE Vector<float> AtLeast(Vector<float> x, Vector<float> least) {
  return MS_CE_MAX_FLOAT(least, x);
}
MS_CE_INLINE Vector<double> AtLeast(Vector<double> x, Vector<double> least) {
  return MS_CE_MAX_DOUBLE(least, x);
}
#undef MS_CE_MAX_FLOAT
#undef MS_CE_MAX_DOUBLE
#elif defined(__aarch64__)
MS_CE_INLINE Vector<float> MaxOf(Vector<float> value, Vector<float> maximum) {
  return vmaxnmq_f32(value, maximum);
}
MS_CE_INLINE Vector<double> MaxOf(Vector<double> value, Vector<double> maximum) {
  return vmaxnmq_f64(value, maximum);
}
MS_CE_INLINE Vector<float> AtLeast(Vector<float> x, Vector<float> least) { return vmaxq_f32(x, least); }
MS_CE_INLINE Vector<double> AtLeast(Vector<double> x, Vector<double> least) { return vmaxq_f64(x, least); }
#endif

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_VECTORS_H_
