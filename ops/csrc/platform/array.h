// An array of a call: where it lies and what it holds. Plain data only, see loss/problem.h.
#ifndef MS_CE_ARRAY_H_
#define MS_CE_ARRAY_H_

#include <cstdint>

namespace ms_ce {

constexpr int64_t kCacheLine = 64;

enum class Dtype { kFloat16, kBfloat16, kFloat32, kFloat64, kInt32, kInt64, kUint8 };

struct Array {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};

}  // namespace ms_ce

#endif  // MS_CE_ARRAY_H_
