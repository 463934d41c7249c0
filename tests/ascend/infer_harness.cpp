// Calls the shape inference of custom_aicore/infer by the address that dlsym gives, for tests.
#include <dlfcn.h>

#include <cstdint>
#include <vector>

// As MindSpore does: an operator with one output is called as a function that returns its shape.
extern "C" int infer_shapes(const char* library, const char* function, int outputs, int* ndims,
                            int64_t** shapes, int64_t* dims, int32_t* ranks) {
  using Shape = std::vector<int64_t>;
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return -1;
  void* infer = dlsym(handle, function);
  if (infer == nullptr) return -2;
  std::vector<Shape> inferred;
  if (outputs == 1) {
    inferred.push_back(reinterpret_cast<Shape (*)(int*, int64_t**, void*)>(infer)(ndims, shapes, nullptr));
  } else {
    inferred =
        reinterpret_cast<std::vector<Shape> (*)(int*, int64_t**, void*)>(infer)(ndims, shapes, nullptr);
  }
  int count = 0;
  for (const Shape& shape : inferred) {
    ranks[count++] = static_cast<int32_t>(shape.size());
    for (int64_t d : shape) *dims++ = d;
  }
  return count;
}
