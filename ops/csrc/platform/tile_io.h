// Moves runs of elements between memory and the accumulation type: conversion, strides, streaming.
#ifndef MS_CE_TILE_IO_H_
#define MS_CE_TILE_IO_H_

#include "platform/array.h"
#include "platform/half_vectors.h"

namespace ms_ce {
namespace MS_CE_ISA {

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

#if defined(__F16C__) || defined(__aarch64__)
// Compilers do not find the instructions in the portable conversions; they take a third of the time.
MS_CE_INLINE void CopyRun(const Half* source, int64_t count, float* out) {
  constexpr int64_t kStep = kVectorLanes<Half>;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    Vector<float> parts[2];
    WidenTwo(source + i, parts);
    memcpy(out + i, parts, sizeof(parts));
  }
  for (; i < count; ++i) out[i] = ToFloat(source[i]);
}

MS_CE_INLINE void RoundRun(const float* source, int64_t count, Half* out) {
  constexpr int64_t kStep = kVectorLanes<Half>;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    Vector<float> parts[2];
    memcpy(parts, source + i, sizeof(parts));
    StoreVector<false>(NarrowTwo(parts, out), out + i);
  }
  for (; i < count; ++i) Convert(source[i], out + i);
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
    for (int64_t i = 0; i < kCacheLine; i += kVectorBytes) {
      StoreVector<true>(LoadVector<Halves>(source + done + i), out + done + i);
    }
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
