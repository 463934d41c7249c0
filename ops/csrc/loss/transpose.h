// Turns [row][class] into [class][row] and back, four by four.
#ifndef MS_CE_TRANSPOSE_H_
#define MS_CE_TRANSPOSE_H_

#include <string.h>

#include <cstdint>

namespace ms_ce {
namespace MS_CE_ISA {

typedef float Quad __attribute__((vector_size(16)));

static inline Quad LoadQuad(const float* source) {
  Quad quad;
  memcpy(&quad, source, sizeof(quad));
  return quad;
}

static inline void StoreQuad(Quad quad, float* out) { memcpy(out, &quad, sizeof(quad)); }

// out[j * out_row + i] = source[i * source_row + j] for i, j < 4.
static inline void TransposeQuads(const float* source, int64_t source_row, float* out, int64_t out_row) {
  const Quad a = LoadQuad(source), b = LoadQuad(source + source_row);
  const Quad c = LoadQuad(source + 2 * source_row), d = LoadQuad(source + 3 * source_row);
  const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  StoreQuad(__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), out);
  StoreQuad(__builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7), out + out_row);
  StoreQuad(__builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), out + 2 * out_row);
  StoreQuad(__builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7), out + 3 * out_row);
}

template <class A>
static inline void TransposeEach(const A* source, int64_t source_row, int64_t rows, int64_t columns, A* out,
                                 int64_t out_row) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) out[j * out_row + i] = source[i * source_row + j];
  }
}

// Up to four rows of any number of columns become columns of up to four.
static inline void Transpose(const float* source, int64_t source_row, int64_t rows, int64_t columns,
                             float* out, int64_t out_row) {
  if (rows < 4 || columns < 4) return TransposeEach(source, source_row, rows, columns, out, out_row);
  for (int64_t j = 0; j < columns; j += 4) {
    // The last four overlap their neighbours, and write the same values again.
    const int64_t first = j + 4 <= columns ? j : columns - 4;
    TransposeQuads(source + first, source_row, out + first * out_row, out_row);
  }
}

// The way back: any number of rows of up to four columns become up to four rows.
static inline void TransposeBack(const float* source, int64_t source_row, int64_t rows, int64_t columns,
                                 float* out, int64_t out_row) {
  if (rows < 4 || columns < 4) return TransposeEach(source, source_row, rows, columns, out, out_row);
  for (int64_t i = 0; i < rows; i += 4) {
    const int64_t first = i + 4 <= rows ? i : rows - 4;
    TransposeQuads(source + first * source_row, source_row, out + first, out_row);
  }
}

static inline void Transpose(const double* source, int64_t source_row, int64_t rows, int64_t columns,
                             double* out, int64_t out_row) {
  TransposeEach(source, source_row, rows, columns, out, out_row);
}

static inline void TransposeBack(const double* source, int64_t source_row, int64_t rows, int64_t columns,
                                 double* out, int64_t out_row) {
  TransposeEach(source, source_row, rows, columns, out, out_row);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_TRANSPOSE_H_
