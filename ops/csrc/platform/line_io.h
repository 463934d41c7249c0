// Lines: what 64 bytes of memory hold, moved between memory and registers a register at a time.
#ifndef MS_CE_LINE_IO_H_
#define MS_CE_LINE_IO_H_

#include <type_traits>

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

// The elements that a register holds as they are stored, in the vectors that compute them.
template <class T>
struct Wide {
  static constexpr int64_t kCount = kVectorLanes<T>, kParts = sizeof(WorkType<T>) / sizeof(T);
  Vector<WorkType<T>> part[kParts];
};

constexpr int64_t kLineRegisters = kCacheLine / kVectorBytes;

template <class T>
MS_CE_INLINE Wide<T> LoadWide(const T* from) {
  Wide<T> wide;
  if constexpr (sizeof(T) == sizeof(uint16_t)) {
    WidenTwo(from, wide.part);
  } else {
    wide.part[0] = LoadVector<Vector<T>>(from);
  }
  return wide;
}

// Past the cache where kStream, to a multiple of the register's bytes. In 16 bits the lower half of a nan
// must be 0, as it is in one that comes of a logit of 16 bits or of arithmetic.
template <bool kStream, class T>
MS_CE_INLINE void StoreWide(const Wide<T>& wide, T* to) {
  if constexpr (sizeof(T) == sizeof(uint16_t)) {
    StoreVector<kStream>(NarrowTwo(wide.part, to), to);
  } else {
    StoreVector<kStream>(wide.part[0], to);
  }
}

// One number as StoreWide rounds it: which numbers lie in lines is a matter of where a tensor does.
template <class A, class T>
MS_CE_INLINE void StoreAlone(A value, T* to) {
  if constexpr (std::is_same<T, Brain>::value) {
    to->bits = static_cast<uint16_t>((AsBits(value) + 0x8000u) >> 16);
  } else {
    Convert(value, to);
  }
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINE_IO_H_
