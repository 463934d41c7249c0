#include "linear_matmul.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace ms_ce {
namespace {

// Of oneDNN's public C interface. A null thread pool means the calling thread alone: the units of work
// are cut by the caller, and nothing of OpenMP is started.
template <class T>
using OneDnnGemm = int (*)(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha,
                           const T* a, int64_t lda, const T* b, int64_t ldb, float beta, float* c,
                           int64_t ldc, void* threadpool);

struct OneDnn {
  OneDnnGemm<float> single = nullptr;
  OneDnnGemm<uint16_t> bfloat16 = nullptr;
};

template <class T>
int Call(OneDnnGemm<T> gemm, int64_t rows, int64_t columns, int64_t inner, const Operand<T>& a,
         const Operand<T>& b, bool accumulate, float* c, int64_t c_stride) {
  return gemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', rows, columns, inner, 1.0f, a.data,
              a.stride, b.data, b.stride, accumulate ? 1.0f : 0.0f, c, c_stride, nullptr);
}

// MindSpore links oneDNN, so it is in every process that runs an operator: it is looked up, never loaded.
OneDnn FindOneDnn() {
  OneDnn found;
  for (const char* name : {"libdnnl.so.3", "libdnnl.so.2"}) {
    void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    found.single = reinterpret_cast<OneDnnGemm<float>>(dlsym(library, "dnnl_threadpool_interop_sgemm"));
    found.bfloat16 =
        reinterpret_cast<OneDnnGemm<uint16_t>>(dlsym(library, "dnnl_threadpool_interop_gemm_bf16bf16f32"));
    break;
  }
  if (found.bfloat16 != nullptr) {  // present on every CPU, refused by those without the instructions
    const uint16_t one = 0x3f80;
    float product = 0.0f;
    const Operand<uint16_t> operand{&one, 1, false};
    if (Call(found.bfloat16, 1, 1, 1, operand, operand, false, &product, 1) != 0 || product != 1.0f) {
      found.bfloat16 = nullptr;
    }
  }
  return found;
}

const OneDnn& Library() {
  static const OneDnn library = FindOneDnn();
  return library;
}

constexpr int64_t kInnerBlock = 256, kColumnBlock = 64, kRowGroup = 4;

template <class T>
T At(const Operand<T>& m, int64_t i, int64_t j) {
  return m.transposed ? m.data[j * m.stride + i] : m.data[i * m.stride + j];
}

// Four rows of a block of columns at a time, over a packed block of b.
template <class T>
void MultiplyBlock(int64_t rows, int64_t width, int64_t depth, const Operand<T>& a, int64_t first_inner,
                   const T* packed, T* c, int64_t c_stride) {
  for (int64_t i = 0; i < rows; i += kRowGroup) {
    T sums[kRowGroup][kColumnBlock] = {};
    const int64_t group = std::min(kRowGroup, rows - i);
    for (int64_t k = 0; k < depth; ++k) {
      const T* b = packed + k * kColumnBlock;
      for (int64_t r = 0; r < group; ++r) {
        const T factor = At(a, i + r, first_inner + k);
#pragma omp simd
        for (int64_t j = 0; j < kColumnBlock; ++j) sums[r][j] += factor * b[j];
      }
    }
    for (int64_t r = 0; r < group; ++r) {
      for (int64_t j = 0; j < width; ++j) c[(i + r) * c_stride + j] += sums[r][j];
    }
  }
}

template <class T>
void PortableMultiply(int64_t rows, int64_t columns, int64_t inner, const Operand<T>& a,
                      const Operand<T>& b, bool accumulate, T* c, int64_t c_stride) {
  for (int64_t i = 0; i < rows && !accumulate; ++i) std::fill_n(c + i * c_stride, columns, T(0));
  std::vector<T> packed(static_cast<size_t>(kInnerBlock * kColumnBlock));
  for (int64_t first_column = 0; first_column < columns; first_column += kColumnBlock) {
    const int64_t width = std::min(kColumnBlock, columns - first_column);
    for (int64_t first_inner = 0; first_inner < inner; first_inner += kInnerBlock) {
      const int64_t depth = std::min(kInnerBlock, inner - first_inner);
      for (int64_t k = 0; k < depth; ++k) {
        T* out = packed.data() + k * kColumnBlock;
        for (int64_t j = 0; j < kColumnBlock; ++j) {
          out[j] = j < width ? At(b, first_inner + k, first_column + j) : T(0);
        }
      }
      MultiplyBlock(rows, width, depth, a, first_inner, packed.data(), c + first_column, c_stride);
    }
  }
}

// Exact for every half: the exponent is moved by a product with a power of two, which makes normal
// numbers of the subnormal ones as well.
float HalfToFloat(uint16_t half) {
  const uint32_t shifted = static_cast<uint32_t>(half & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &shifted, sizeof(value));
  value *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((half & 0x7c00) == 0x7c00) bits = shifted | 0x7f800000u;
  bits |= static_cast<uint32_t>(half & 0x8000) << 16;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

void Multiply(int64_t rows, int64_t columns, int64_t inner, Operand<float> a, Operand<float> b,
              bool accumulate, float* c, int64_t c_stride) {
  if (inner > 0 && Library().single != nullptr &&
      Call(Library().single, rows, columns, inner, a, b, accumulate, c, c_stride) == 0) {
    return;
  }
  PortableMultiply(rows, columns, inner, a, b, accumulate, c, c_stride);
}

void Multiply(int64_t rows, int64_t columns, int64_t inner, Operand<double> a, Operand<double> b,
              bool accumulate, double* c, int64_t c_stride) {
  PortableMultiply(rows, columns, inner, a, b, accumulate, c, c_stride);
}

void Multiply(int64_t rows, int64_t columns, int64_t inner, Operand<uint16_t> a, Operand<uint16_t> b,
              bool accumulate, float* c, int64_t c_stride) {
  Call(Library().bfloat16, rows, columns, inner, a, b, accumulate, c, c_stride);
}

bool MultipliesBfloat16() { return Library().bfloat16 != nullptr; }

const char* MatmulLibrary() { return Library().single != nullptr ? "oneDNN" : "portable"; }

void Widen(Dtype dtype, const void* from, int64_t first, int64_t count, float* to) {
  if (dtype == Dtype::kFloat32) {
    std::memcpy(to, static_cast<const float*>(from) + first, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const uint16_t* bits = static_cast<const uint16_t*>(from) + first;
  if (dtype == Dtype::kFloat16) {
    for (int64_t i = 0; i < count; ++i) to[i] = HalfToFloat(bits[i]);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t wide = static_cast<uint32_t>(bits[i]) << 16;
    std::memcpy(to + i, &wide, sizeof(wide));
  }
}

void NarrowToBfloat16(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof(bits));
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const auto narrow = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
    std::memcpy(to + i, &narrow, sizeof(narrow));
  }
}

}  // namespace ms_ce
