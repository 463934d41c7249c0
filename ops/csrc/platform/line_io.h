// Lines: what 64 bytes of memory hold, moved between memory and registers.
#ifndef MS_CE_LINE_IO_H_
#define MS_CE_LINE_IO_H_

#include "platform/tile_io.h"

namespace ms_ce {
namespace MS_CE_ISA {

constexpr int64_t kPrefetchBytes = 2048;

template <class T>
constexpr int64_t kLine = kCacheLine / static_cast<int64_t>(sizeof(T));

// What a logit stored as T is computed in.
template <class T>
using WorkType = decltype(ToFloat(T()));

// Asks for what a loop over memory needs soon: the processor's own prefetching stops at a page's end.
MS_CE_INLINE void PrefetchAhead(const void* here) {
  __builtin_prefetch(static_cast<const char*>(here) + kPrefetchBytes);
}

template <class T>
static inline bool IsAligned(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(T) == 0;
}

// The line's elements, in `scratch` where they are not stored in the type that computes.
template <class T>
MS_CE_INLINE const WorkType<T>* ViewLine(const T* source, WorkType<T>* scratch) {
  CopyRun(source, kLine<T>, scratch);
  return scratch;
}
MS_CE_INLINE const float* ViewLine(const float* source, float*) { return source; }
MS_CE_INLINE const double* ViewLine(const double* source, double*) { return source; }

template <class T>
MS_CE_INLINE void StoreLine(const float* line, T* out) {
  RoundRun(line, kLine<T>, out);
}
MS_CE_INLINE void StoreLine(const float* line, float* out) { memcpy(out, line, kCacheLine); }
MS_CE_INLINE void StoreLine(const double* line, double* out) { memcpy(out, line, kCacheLine); }

// Past the cache, to an address that is a multiple of 64 bytes.
MS_CE_INLINE void StreamLine(const float* line, float* out) { StreamVector(line, out); }
MS_CE_INLINE void StreamLine(const double* line, double* out) {
  StreamVector(reinterpret_cast<const float*>(line), reinterpret_cast<float*>(out));
}
template <class T>
MS_CE_INLINE void StreamLine(const float* line, T* out) {
  alignas(64) T rounded[kLine<T>];
  RoundRun(line, kLine<T>, rounded);
  StreamVector(reinterpret_cast<const float*>(rounded), reinterpret_cast<float*>(out));
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINE_IO_H_
