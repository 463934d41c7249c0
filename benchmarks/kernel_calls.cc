// Calls one operation of a libms_ce.so, without Python: kernel_calls LIBRARY ISA CALLS OPERATION TENSOR...
//
// A tensor is DTYPE:ROWS,CLASSES:VALUE,VALUE,... with as many sizes as it has axes; its values repeat, and
// "random" are those of a normal distribution.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Tensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<char> data;
};

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// Enough for these values: normal numbers, rounded towards zero.
uint16_t ToHalf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t half = magnitude < 0x38800000u ? 0 : (magnitude - 0x38000000u) >> 13;
  return static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

template <class T>
void Append(T value, std::vector<char>* data) {
  const auto* bytes = reinterpret_cast<const char*>(&value);
  data->insert(data->end(), bytes, bytes + sizeof(T));
}

void AppendAs(const std::string& dtype, double value, std::vector<char>* data) {
  const auto single = static_cast<float>(value);
  if (dtype == "float64") return Append(value, data);
  if (dtype == "float32") return Append(single, data);
  if (dtype == "float16") return Append(ToHalf(single), data);
  if (dtype == "int64") return Append(static_cast<int64_t>(value), data);
  uint32_t bits;
  std::memcpy(&bits, &single, sizeof(bits));
  Append(static_cast<uint16_t>(bits >> 16), data);
}

Tensor Parse(const std::string& text) {
  const std::vector<std::string> parts = Split(text, ':');
  Tensor tensor{parts[0], {}, {}};
  int64_t count = 1;
  for (const std::string& size : Split(parts[1], ',')) {
    tensor.shape.push_back(std::stoll(size));
    count *= tensor.shape.back();
  }
  const std::vector<std::string> values = Split(parts[2], ',');
  std::minstd_rand generator(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (int64_t i = 0; i < count; ++i) {
    const std::string& value = values[static_cast<size_t>(i) % values.size()];
    AppendAs(tensor.dtype, value == "random" ? normal(generator) : std::stod(value), &tensor.data);
  }
  return tensor;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 6) return 2;
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  using Try = const char* (*)(const char*, int, void**, int*, int64_t**, const char**);
  const auto call = reinterpret_cast<Try>(dlsym(library, "MsCeTry"));
  reinterpret_cast<int (*)(int)>(dlsym(library, "MsCeSetThreads"))(1);
  if (reinterpret_cast<int (*)(const char*)>(dlsym(library, "MsCeSetIsa"))(arguments[2]) != 0) return 2;
  std::vector<Tensor> tensors;
  for (int i = 5; i < count; ++i) tensors.push_back(Parse(arguments[i]));
  std::vector<void*> data;
  std::vector<int> axes;
  std::vector<int64_t*> shapes;
  std::vector<const char*> dtypes;
  for (Tensor& tensor : tensors) {
    data.push_back(tensor.data.data());
    axes.push_back(static_cast<int>(tensor.shape.size()));
    shapes.push_back(tensor.shape.data());
    dtypes.push_back(tensor.dtype.c_str());
  }
  const char* failure = nullptr;
  for (int left = std::atoi(arguments[3]); left > 0 && failure == nullptr; --left) {
    failure = call(arguments[4], static_cast<int>(tensors.size()), data.data(), axes.data(), shapes.data(),
                   dtypes.data());
  }
  if (failure != nullptr) std::fprintf(stderr, "%s\n", failure);
  return failure == nullptr ? 0 : 1;
}
