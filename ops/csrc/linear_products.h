// The three products of the linear loss on one chunk of rows: logits = hidden W^T, and from their gradient
// G those of hidden, G W, and of W, G^T hidden. A chunk has a few dozen rows, so that the weight is read
// where it lies, once for each product: a packed copy of it, as libraries make, costs as much as the
// product.
#ifndef MS_CE_LINEAR_PRODUCTS_H_
#define MS_CE_LINEAR_PRODUCTS_H_

#include <stddef.h>

#include <utility>

#include "tile_io.h"

namespace ms_ce {
namespace MS_CE_ISA {

// A tile of results and what one step adds to it stay in registers: 32 of them, or 16.
#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64, kTileVectors = 4;
#elif defined(__AVX__)
constexpr int64_t kVectorBytes = 32, kTileVectors = 2;
#elif defined(__aarch64__)
constexpr int64_t kVectorBytes = 16, kTileVectors = 4;
#else
constexpr int64_t kVectorBytes = 16, kTileVectors = 2;
#endif
constexpr int64_t kTileRows = kTileStep;

template <class A>
constexpr int64_t kVectorLanes = kVectorBytes / static_cast<int64_t>(sizeof(A));
template <class A>
constexpr int64_t kTileColumns = kTileVectors* kVectorLanes<A>;
template <class A>
constexpr int64_t kTileElements = kTileRows* kTileColumns<A>;

template <class A>
struct VectorOf {
  typedef A Type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vector = typename VectorOf<A>::Type;

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

// Sums over more than this many terms are made of sums over so many: it bounds their rounding.
constexpr int64_t kDepth = 256;
constexpr int64_t kGradientDepth = 128;

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

// Rows of a tile's right operand, side by side.
template <class A>
static inline void PackRight(const Array& from, int64_t offset, int64_t rows, int64_t columns,
                             int64_t stride, A* right) {
  if (columns == kTileColumns<A> && from.dtype == DtypeOf(right)) {
    const A* source = At<A>(from, offset);
    for (int64_t k = 0; k < rows; ++k) {
      memcpy(right + k * kTileColumns<A>, source + k * stride, sizeof(A) * kTileColumns<A>);
    }
    return;
  }
  for (int64_t k = 0; k < rows; ++k) {
    Load(from, offset + k * stride, 1, columns, right + k * kTileColumns<A>);
  }
}

// Where the copies of a panel of hidden states begin; `row` is its first.
template <class A>
MS_CE_INLINE A* PanelOf(const LinearChunk& chunk, int64_t row) {
  return static_cast<A*>(chunk.panels) + row * chunk.features;
}

template <class A>
MS_CE_INLINE A* TilesOf(const LinearChunk& chunk, int64_t row) {
  static_assert(kFeatureStep % kTileColumns<A> == 0,
                "a tile must not reach beyond the features' last step");
  return static_cast<A*>(chunk.tiles) + row * chunk.tile_features;
}

// work(feature, features, offset) on the tiles of all features, the offset being that in the copies of a
// panel. All but the first begin with a line of the weight's gradient, or within it where tiles are
// narrower.
template <class A, class Work>
MS_CE_INLINE void ForTiles(const LinearChunk& chunk, Work work) {
  const int64_t shift = chunk.shift % kTileColumns<A>;
  for (int64_t begin = -shift; begin < chunk.features; begin += kTileColumns<A>) {
    const int64_t first = begin < 0 ? 0 : begin;
    const int64_t end = Least(begin + kTileColumns<A>, chunk.features);
    work(first, end - first, (begin + shift) * chunk.panel_rows + first - begin);
  }
}

// Rows [first, first + count), all of one panel: MakeLogits takes vectors of rows, AddWeightGradient, where
// there are any, tiles.
template <class A>
static void PackHidden(const LinearChunk& chunk, int64_t first, int64_t count) {
  const int64_t panel = first / chunk.panel_rows * chunk.panel_rows;
  for (int64_t row = first; row < first + count; ++row) {
    const A* from = static_cast<const A*>(chunk.hidden) + row * chunk.features;
    A* lane = PanelOf<A>(chunk, panel) + row - panel;
    for (int64_t k = 0; k < chunk.features; ++k) lane[k * chunk.panel_rows] = from[k];
    if (chunk.tiles == nullptr) continue;
    A* tile = TilesOf<A>(chunk, panel) + (row - panel) * kTileColumns<A>;
    ForTiles<A>(chunk, [&](int64_t feature, int64_t features, int64_t offset) MS_CE_LAMBDA_INLINE {
      memcpy(tile + offset, from + feature, static_cast<size_t>(features) * sizeof(A));
    });
  }
}

// Rows of the weight from `row` on, features [begin, begin + width): where they lie, or converted.
template <class A>
struct WeightRows {
  const A* data;
  int64_t stride;
};

template <class A>
static inline WeightRows<A> ViewWeight(const LinearChunk& chunk, int64_t row, int64_t rows, int64_t begin,
                                       int64_t width, A* scratch) {
  const int64_t offset = row * chunk.features + begin;
  if (chunk.weight.dtype == DtypeOf(scratch)) return {At<A>(chunk.weight, offset), chunk.features};
  for (int64_t i = 0; i < rows; ++i) {
    Load(chunk.weight, offset + i * chunk.features, 1, width, scratch + i * kDepth);
  }
  return {scratch, kDepth};
}

// Of classes [first, first + count).
template <class A>
static void MakeLogits(const LinearChunk& chunk, int64_t first, int64_t count) {
  alignas(kCacheLine) A scratch[kTileRows * kDepth];
  alignas(kCacheLine) A sums[kTileRows * kMostPanelRows];  // whole tiles: panels are multiples of vectors
  const A* bias = static_cast<const A*>(chunk.bias);
  for (int64_t row = 0; row < chunk.rows; row += chunk.panel_rows) {
    const A* panel = PanelOf<A>(chunk, row);
    A* logits = static_cast<A*>(chunk.logits) + row * chunk.classes;
    const int64_t rows = Least(chunk.panel_rows, chunk.rows - row);
    for (int64_t c = first; c < first + count; c += kTileRows) {
      const int64_t group = Least(kTileRows, first + count - c);
      for (int64_t begin = 0; begin < chunk.features; begin += kDepth) {
        const int64_t depth = Least(kDepth, chunk.features - begin);
        const WeightRows<A> left = ViewWeight(chunk, c, group, begin, depth, scratch);
        Fetch fetch = FetchRows(chunk.weight, (c + kTileRows) * chunk.features + begin, kTileRows, depth,
                                chunk.features);
        for (int64_t column = 0; column < rows; column += kTileColumns<A>) {
          const int64_t columns = Least(kTileColumns<A>, rows - column);
          TileFor<A>(group, columns)(depth, left.data, left.stride, 1,
                                     panel + begin * chunk.panel_rows + column, chunk.panel_rows, fetch,
                                     begin != 0, sums + column, kMostPanelRows);
          fetch.lines = 0;
        }
      }
      for (int64_t j = 0; j < rows; ++j) {
        A* out = logits + j * chunk.classes + c;
        for (int64_t i = 0; i < group; ++i) {
          out[i] = sums[i * kMostPanelRows + j] + (bias != nullptr ? bias[c + i] : A(0));
        }
      }
    }
  }
}

// Of features [first, first + count), over all classes.
template <class A>
static void MakeHiddenGradient(const LinearChunk& chunk, int64_t first, int64_t count) {
  alignas(kCacheLine) A right[kGradientDepth * kTileColumns<A>] = {};
  const A* gradient = static_cast<const A*>(chunk.logits);
  A* out = static_cast<A*>(chunk.grad_hidden);
  const int64_t groups = (chunk.rows + kTileRows - 1) / kTileRows;
  for (int64_t c = 0; c < chunk.classes; c += kGradientDepth) {
    const int64_t depth = Least(kGradientDepth, chunk.classes - c);
    for (int64_t begin = first; begin < first + count; begin += kTileColumns<A>) {
      const int64_t columns = Least(kTileColumns<A>, first + count - begin);
      PackRight(chunk.weight, c * chunk.features + begin, depth, columns, chunk.features, right);
      // The next tile's rows, shared out over the row groups of this one.
      const bool last = begin + kTileColumns<A> >= first + count;
      const int64_t next =
          last ? (c + depth) * chunk.features + first : c * chunk.features + begin + columns;
      const int64_t share = (depth + groups - 1) / groups;
      for (int64_t row = 0, done = 0; row < chunk.rows; row += kTileRows, done += share) {
        const int64_t group = Least(kTileRows, chunk.rows - row);
        const Fetch fetch = FetchRows(chunk.weight, next + done * chunk.features,
                                      Least(share, depth - done), columns, chunk.features);
        AddTile(group, columns, depth, gradient + row * chunk.classes + c, chunk.classes, 1, right, fetch,
                c != 0, out + row * chunk.features + begin, chunk.features);
      }
    }
  }
}

// Of classes [first, first + count), added to what is there unless the chunk is the first.
template <class A>
static void AddWeightGradient(const LinearChunk& chunk, int64_t first, int64_t count) {
  A left[kMostPanelRows * kTileRows];
  const A* gradient = static_cast<const A*>(chunk.logits);
  A* out = static_cast<A*>(chunk.grad_weight.data);
  for (int64_t row = 0; row < chunk.rows; row += chunk.panel_rows) {
    const int64_t depth = Least(chunk.panel_rows, chunk.rows - row);
    const A* tiles = TilesOf<A>(chunk, row);
    for (int64_t c = first; c < first + count; c += kTileRows) {
      const int64_t group = Least(kTileRows, first + count - c);
      for (int64_t k = 0; k < depth; ++k) {
        const A* from = gradient + (row + k) * chunk.classes + c;
        for (int64_t i = 0; i < group; ++i) left[k * kTileRows + i] = from[i];
      }
      ForTiles<A>(chunk, [&](int64_t feature, int64_t features, int64_t offset) MS_CE_LAMBDA_INLINE {
        const int64_t at = c * chunk.features + feature;
        const Fetch next = FetchRows(chunk.grad_weight, at + kTileRows * chunk.features, kTileRows,
                                     features, chunk.features);
        AddTile(group, features, depth, left, 1, kTileRows, tiles + offset, next,
                chunk.accumulate || row != 0, out + at, chunk.features);
      });
    }
  }
}

template <class A>
static void ReadRun(const Array& from, int64_t first, int64_t count, void* out) {
  Load(from, first, 1, count, static_cast<A*>(out));
}

template <class A>
static void WriteRun(const void* from, int64_t count, const Array& to, int64_t first) {
  Store(static_cast<const A*>(from), to, first, 1, count, false);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINEAR_PRODUCTS_H_
