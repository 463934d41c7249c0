#include "linear/onednn.h"

#include <dlfcn.h>

#include <cstring>
#include <initializer_list>

namespace ms_ce {
namespace {

// Of oneDNN's public C interface. A null thread pool means the calling thread alone: the units of work
// are cut by the caller, and nothing of OpenMP is started.
using Gemm = int (*)(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha,
                     const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, float beta, float* c,
                     int64_t ldc, void* threadpool);

int Call(Gemm gemm, int64_t rows, int64_t columns, int64_t inner, const Operand& a, const Operand& b,
         bool accumulate, float* c, int64_t c_stride) {
  return gemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', rows, columns, inner, 1.0f, a.data,
              a.stride, b.data, b.stride, accumulate ? 1.0f : 0.0f, c, c_stride, nullptr);
}

// MindSpore links oneDNN, so it is in every process that runs an operator: it is looked up, never loaded.
Gemm FindGemm() {
  for (const char* name : {"libdnnl.so.3", "libdnnl.so.2"}) {
    void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    const auto gemm = reinterpret_cast<Gemm>(dlsym(library, "dnnl_threadpool_interop_gemm_bf16bf16f32"));
    if (gemm == nullptr) return nullptr;
    // Present on every CPU, refused by those without the instructions.
    const uint16_t one = 0x3f80;
    float product = 0.0f;
    const Operand operand{&one, 1, false};
    const bool works = Call(gemm, 1, 1, 1, operand, operand, false, &product, 1) == 0 && product == 1.0f;
    return works ? gemm : nullptr;
  }
  return nullptr;
}

Gemm Library() {
  static const Gemm gemm = FindGemm();
  return gemm;
}

}  // namespace

bool MultipliesBfloat16() { return Library() != nullptr; }

bool Multiply(int64_t rows, int64_t columns, int64_t inner, Operand a, Operand b, bool accumulate, float* c,
              int64_t c_stride) {
  return Call(Library(), rows, columns, inner, a, b, accumulate, c, c_stride) == 0;
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
