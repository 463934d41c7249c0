// Matrix products on the calling thread: MindSpore's own oneDNN where the process has it loaded, a
// portable loop where it has not and for float64.
#ifndef MS_CE_LINEAR_MATMUL_H_
#define MS_CE_LINEAR_MATMUL_H_

#include <cstdint>

#include "problem.h"

namespace ms_ce {

// A row-major operand: element (i, j) at [i * stride + j], or at [j * stride + i] where transposed.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;
  bool transposed;
};

// c (rows, columns) = a (rows, inner) b (inner, columns), added to what c holds where `accumulate`.
void Multiply(int64_t rows, int64_t columns, int64_t inner, Operand<float> a, Operand<float> b,
              bool accumulate, float* c, int64_t c_stride);
void Multiply(int64_t rows, int64_t columns, int64_t inner, Operand<double> a, Operand<double> b,
              bool accumulate, double* c, int64_t c_stride);

// bfloat16 operands as their bits; only where MultipliesBfloat16().
void Multiply(int64_t rows, int64_t columns, int64_t inner, Operand<uint16_t> a, Operand<uint16_t> b,
              bool accumulate, float* c, int64_t c_stride);
bool MultipliesBfloat16();

// The library at work, for reports: "oneDNN" or "portable".
const char* MatmulLibrary();

// float16, bfloat16 or float32 to float32.
void Widen(Dtype dtype, const void* from, int64_t first, int64_t count, float* to);

// To bfloat16, to nearest, ties to even. `to` may be the memory of `from`.
void NarrowToBfloat16(const float* from, int64_t count, uint16_t* to);

}  // namespace ms_ce

#endif  // MS_CE_LINEAR_MATMUL_H_
