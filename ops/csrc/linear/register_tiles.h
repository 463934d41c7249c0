// Products of matrices by tiles of results that stay in registers, and their operands.
#ifndef MS_CE_REGISTER_TILES_H_
#define MS_CE_REGISTER_TILES_H_

#include <stddef.h>

#include <utility>

#include "linear/linear_chunk.h"
#include "platform/tile_io.h"

namespace ms_ce {
namespace MS_CE_ISA {

// A tile of results and what one step adds to it stay in registers: 32 of them, or 16. Sums over more than
// kGradientDepth classes are made of sums over so many: it bounds their rounding, and a tile's right
// operand stays in the first-level cache.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kTileVectors = 4;
constexpr int64_t kGradientDepth = 128;
#else
constexpr int64_t kTileVectors = 2;
constexpr int64_t kGradientDepth = 256;
#endif

template <class A>
constexpr int64_t kTileColumns = kTileVectors* kVectorLanes<A>;
template <class A>
constexpr int64_t kTileElements = kTileRows* kTileColumns<A>;
// Columns of a right operand that are packed at a time: narrower pieces of its rows, each in a page of its
// own, would cost more to read.
template <class A>
constexpr int64_t kStripColumns = 4 * kCacheLine / static_cast<int64_t>(sizeof(A));

// Lines that a later tile reads, brought in one by one while this one computes: `lines` of them, `per_row`
// side by side, their rows `stride` bytes apart.
struct Fetch {
  const char* next = nullptr;
  int64_t per_row = 1, stride = kCacheLine, lines = 0;
};

MS_CE_INLINE Fetch FetchRows(const Array& array, int64_t offset, int64_t rows, int64_t width,
                             int64_t stride) {
  const int64_t bytes = FloatBytes(array.dtype);
  const char* first = static_cast<const char*>(array.data) + offset * bytes;
  const auto before = static_cast<int64_t>(reinterpret_cast<uintptr_t>(first) % kCacheLine);
  const int64_t per_row = (before + width * bytes + kCacheLine - 1) / kCacheLine;
  return {first - before, per_row, stride * bytes, rows * per_row};
}

// out[i * out_row + j] = sum_k left[i * left_row + k * left_inner] right[k * right_inner + j], added to
// what is there where `add`. Whole vectors are written.
template <class A, int64_t kRows, int64_t kVectors>
static void TileProduct(int64_t depth, const A* left, int64_t left_row, int64_t left_inner, const A* right,
                        int64_t right_inner, Fetch fetch, bool add, A* out, int64_t out_row) {
  Vector<A> sums[kRows][kVectors] = {};
  const auto step = [&](int64_t k) MS_CE_LAMBDA_INLINE {
    Vector<A> columns[kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      memcpy(&columns[v], right + k * right_inner + v * kVectorLanes<A>, kVectorBytes);
    }
#pragma GCC unroll 6
    for (int64_t i = 0; i < kRows; ++i) {
      const Vector<A> factor = left[i * left_row + k * left_inner] - Vector<A>{};
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) sums[i][v] += factor * columns[v];
    }
  };
  int64_t k = 0;
  for (int64_t column = 0; k < depth && k < fetch.lines; ++k) {
    __builtin_prefetch(fetch.next + column * kCacheLine, 0, 2);
    if (++column == fetch.per_row) {
      column = 0;
      fetch.next += fetch.stride;
    }
    step(k);
  }
#pragma GCC unroll 4
  for (; k < depth; ++k) step(k);
#pragma GCC unroll 6
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      A* to = out + i * out_row + v * kVectorLanes<A>;
      if (add) {
        Vector<A> before;
        memcpy(&before, to, kVectorBytes);
        sums[i][v] += before;
      }
      memcpy(to, &sums[i][v], kVectorBytes);
    }
  }
}

template <class A>
using TileFunction = void (*)(int64_t, const A*, int64_t, int64_t, const A*, int64_t, Fetch, bool, A*,
                              int64_t);

template <class A, class = std::make_index_sequence<kTileRows * kTileVectors>>
struct Tiles;

template <class A, size_t... kIndex>
struct Tiles<A, std::index_sequence<kIndex...>> {
  static constexpr TileFunction<A> kOf[] = {
      TileProduct<A, kIndex / kTileVectors + 1, kIndex % kTileVectors + 1>...};
};

template <class A>
MS_CE_INLINE TileFunction<A> TileFor(int64_t rows, int64_t columns) {
  return Tiles<A>::kOf[(rows - 1) * kTileVectors + (columns - 1) / kVectorLanes<A>];
}

MS_CE_INLINE int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// The product into a matrix: what does not fill its last vector goes through a tile of its own.
template <class A>
static inline void AddTile(int64_t rows, int64_t columns, int64_t depth, const A* left, int64_t left_row,
                           int64_t left_inner, const A* right, const Fetch& fetch, bool add, A* out,
                           int64_t out_row) {
  const auto product = TileFor<A>(rows, columns);
  if (columns % kVectorLanes<A> == 0) {
    return product(depth, left, left_row, left_inner, right, kTileColumns<A>, fetch, add, out, out_row);
  }
  alignas(kCacheLine) A tile[kTileElements<A>];
  product(depth, left, left_row, left_inner, right, kTileColumns<A>, fetch, false, tile, kTileColumns<A>);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      A* to = out + i * out_row + j;
      *to = tile[i * kTileColumns<A> + j] + (add ? *to : A(0));
    }
  }
}

// Rows of the right operands of tiles that lie side by side; each tile has room for kGradientDepth rows.
template <class A>
static inline void PackRight(const Array& from, int64_t offset, int64_t rows, int64_t columns,
                             int64_t stride, A* right) {
  constexpr int64_t kTile = kTileColumns<A>;
  if (columns == kStripColumns<A> && from.dtype == DtypeOf(right)) {
    const A* source = At<A>(from, offset);
    for (int64_t k = 0; k < rows; ++k) {
#pragma GCC unroll 16
      for (int64_t j = 0; j < kStripColumns<A>; j += kVectorLanes<A>) {
        const auto lanes = LoadVector<Vector<A>>(source + k * stride + j);
        memcpy(right + (j / kTile * kGradientDepth + k) * kTile + j % kTile, &lanes, kVectorBytes);
      }
    }
    return;
  }
  for (int64_t k = 0; k < rows; ++k) {
    for (int64_t j = 0; j < columns; j += kTile) {
      Load(from, offset + k * stride + j, 1, Least(kTile, columns - j),
           right + j * kGradientDepth + k * kTile);
    }
  }
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_REGISTER_TILES_H_
