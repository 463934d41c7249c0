// Products of bfloat16 matrices on the calling thread, by MindSpore's own oneDNN: where the process has it
// loaded and the processor has the instructions.
#ifndef MS_CE_ONEDNN_H_
#define MS_CE_ONEDNN_H_

#include <cstdint>

namespace ms_ce {

// Bits of bfloat16, row-major: element (i, j) at [i * stride + j], or at [j * stride + i] where transposed.
struct Operand {
  const uint16_t* data;
  int64_t stride;
  bool transposed;
};

bool MultipliesBfloat16();

// c (rows, columns) = a (rows, inner) b (inner, columns), added to what c holds where `accumulate`. Only
// where MultipliesBfloat16(). False where oneDNN had no memory for it.
bool Multiply(int64_t rows, int64_t columns, int64_t inner, Operand a, Operand b, bool accumulate, float* c,
              int64_t c_stride);

// To bfloat16, to nearest, ties to even. `to` may be the memory of `from`.
void NarrowToBfloat16(const float* from, int64_t count, uint16_t* to);

}  // namespace ms_ce

#endif  // MS_CE_ONEDNN_H_
