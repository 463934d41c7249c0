// Tensors for the stand-alone kernel test: any dtype, any misalignment, guarded at both ends.
#ifndef MS_CE_TESTS_KERNEL_TENSOR_H_
#define MS_CE_TESTS_KERNEL_TENSOR_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "interface/operations.h"
#include "library.h"

namespace ms_ce_test {

using Shape = std::vector<int64_t>;

inline int64_t Count(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

inline size_t SizeOf(const std::string& dtype) {
  if (dtype == "uint8") return 1;
  if (dtype == "float16" || dtype == "bfloat16") return 2;
  return dtype == "float32" || dtype == "int32" ? 4 : 8;
}

// Rounds to `digits` binary digits, ties to even, with the smallest exponent's spacing below it.
inline double RoundTo(double value, int digits, int min_exponent) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  int exponent;
  std::frexp(value, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - digits, min_exponent - digits + 1));
  return std::nearbyint(value / unit) * unit;
}

inline uint16_t ToHalf(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7e00;
  const double rounded = std::fabs(RoundTo(value, 11, -14));
  if (rounded > 65504.0) return static_cast<uint16_t>(sign | 0x7c00);
  if (rounded < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<uint16_t>(rounded * 0x1p24));
  int exponent;
  const double mantissa = std::frexp(rounded, &exponent);
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 | static_cast<int>(mantissa * 2048.0 - 1024.0));
}

inline double FromHalf(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

inline uint16_t ToBrain(double value) {
  const auto narrow = static_cast<float>(RoundTo(value, 8, -126));
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

inline double FromBrain(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

class Tensor {
 public:
  // The data begin `past` elements behind a 64-byte boundary.
  Tensor(const std::string& dtype, const Shape& shape, size_t past = 0)
      : dtype_(dtype), shape_(shape), bytes_(static_cast<size_t>(Count(shape)) * SizeOf(dtype)) {
    storage_.assign(bytes_ + 2 * kGuard + 64 + past * SizeOf(dtype), kGuardByte);
    const auto start = reinterpret_cast<uintptr_t>(storage_.data() + kGuard);
    offset_ = kGuard + (64 - start % 64) % 64 + past * SizeOf(dtype);
    std::memset(data(), 0xff, bytes_);  // nan in every floating dtype, and no valid index
  }

  const std::string& dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t size() const { return Count(shape_); }
  unsigned char* data() { return storage_.data() + offset_; }
  const unsigned char* data() const { return storage_.data() + offset_; }
  bool SameBytes(const Tensor& other) const { return std::memcmp(data(), other.data(), bytes_) == 0; }

  bool GuardsIntact() const {
    for (size_t i = 0; i < storage_.size(); ++i) {
      if ((i < offset_ || i >= offset_ + bytes_) && storage_[i] != kGuardByte) return false;
    }
    return true;
  }

  void Set(int64_t index, double value) {
    if (dtype_ == "float16") return Write(index, ToHalf(value));
    if (dtype_ == "bfloat16") return Write(index, ToBrain(value));
    if (dtype_ == "float32") return Write(index, static_cast<float>(value));
    if (dtype_ == "float64") return Write(index, value);
    if (dtype_ == "int32") return Write(index, static_cast<int32_t>(value));
    if (dtype_ == "uint8") return Write(index, static_cast<uint8_t>(value));
    Write(index, static_cast<int64_t>(value));
  }

  double Get(int64_t index) const {
    if (dtype_ == "float16") return FromHalf(Read<uint16_t>(index));
    if (dtype_ == "bfloat16") return FromBrain(Read<uint16_t>(index));
    if (dtype_ == "float32") return Read<float>(index);
    if (dtype_ == "float64") return Read<double>(index);
    if (dtype_ == "int32") return Read<int32_t>(index);
    if (dtype_ == "uint8") return Read<uint8_t>(index);
    return static_cast<double>(Read<int64_t>(index));
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kGuardByte = 0xa5;

  template <class T>
  void Write(int64_t index, T value) {
    std::memcpy(data() + static_cast<size_t>(index) * sizeof(T), &value, sizeof(T));
  }

  template <class T>
  T Read(int64_t index) const {
    T value;
    std::memcpy(&value, data() + static_cast<size_t>(index) * sizeof(T), sizeof(T));
    return value;
  }

  std::string dtype_;
  Shape shape_;
  size_t bytes_, offset_;
  std::vector<unsigned char> storage_;
};

struct Options {
  int64_t ignore_index = -100, reduction = 1;
  double label_smoothing = 0.0, z_loss = 0.0, softcap = 0.0, logit_scale = 1.0;
  bool has_weight = false;

  Tensor Pack() const {
    Tensor tensor("int64", {static_cast<int64_t>(std::size(ms_ce::kOptionSlots))});
    std::memset(tensor.data(), 0, sizeof(int64_t) * std::size(ms_ce::kOptionSlots));
    Put("ignore_index", ignore_index, &tensor);
    Put("reduction", reduction, &tensor);
    Put("label_smoothing", label_smoothing, &tensor);
    Put("z_loss", z_loss, &tensor);
    Put("softcap", softcap, &tensor);
    Put("logit_scale", logit_scale, &tensor);
    Put("has_weight", int64_t{has_weight}, &tensor);
    return tensor;
  }

 private:
  template <class T>
  static void Put(const char* name, T value, Tensor* tensor) {
    for (size_t i = 0; i < std::size(ms_ce::kOptionSlots); ++i) {
      if (std::strcmp(ms_ce::kOptionSlots[i].name, name) != 0) continue;
      std::memcpy(tensor->data() + sizeof(int64_t) * i, &value, sizeof(value));
    }
  }
};

// Tensors as an operation takes them.
struct CallArguments {
  explicit CallArguments(const std::vector<Tensor*>& tensors) {
    for (Tensor* tensor : tensors) {
      params.push_back(tensor->data());
      ndims.push_back(static_cast<int>(tensor->shape().size()));
      shapes.push_back(const_cast<int64_t*>(tensor->shape().data()));
      dtypes.push_back(tensor->dtype().c_str());
    }
  }
  int count() const { return static_cast<int>(params.size()); }

  std::vector<void*> params;
  std::vector<int> ndims;
  std::vector<int64_t*> shapes;
  std::vector<const char*> dtypes;
};

// Runs an operation; the exception's text, or "".
inline std::string Run(const char* operation, const std::vector<Tensor*>& tensors) {
  CallArguments arguments(tensors);
  const char* text =
      library.try_operation(operation, arguments.count(), arguments.params.data(), arguments.ndims.data(),
                            arguments.shapes.data(), arguments.dtypes.data());
  for (const Tensor* tensor : tensors) Check(tensor->GuardsIntact(), "an operation wrote beside a tensor");
  return text == nullptr ? "" : text;
}

}  // namespace ms_ce_test

#endif  // MS_CE_TESTS_KERNEL_TENSOR_H_
