// The three products of the linear loss on one chunk of rows: logits = hidden W^T, and from their gradient
// G those of hidden, G W, and of W, G^T hidden. A chunk has a few dozen rows, so that the weight is read
// where it lies, once for each product: a packed copy of it, as libraries make, costs as much as the
// product.
#ifndef MS_CE_LINEAR_PRODUCTS_H_
#define MS_CE_LINEAR_PRODUCTS_H_

#include "linear/register_tiles.h"

namespace ms_ce {
namespace MS_CE_ISA {

// Sums over more than this many features are made of sums over so many: it bounds their rounding.
constexpr int64_t kDepth = 256;

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

// Rows [first, first + count), all of one panel: LogitsOfClasses takes vectors of rows,
// AddGradientOfClasses, where there are any, tiles.
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
static void LogitsOfClasses(const LinearChunk& chunk, int64_t first, int64_t count) {
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
static void GradientOfFeatures(const LinearChunk& chunk, int64_t first, int64_t count) {
  static_assert(kStripColumns<A> % kTileColumns<A> == 0, "a strip is made of whole tiles");
  alignas(kCacheLine) A right[kGradientDepth * kStripColumns<A>] = {};
  const A* gradient = static_cast<const A*>(chunk.logits);
  A* out = static_cast<A*>(chunk.grad_hidden);
  const int64_t groups = (chunk.rows + kTileRows - 1) / kTileRows;
  for (int64_t c = 0; c < chunk.classes; c += kGradientDepth) {
    const int64_t depth = Least(kGradientDepth, chunk.classes - c);
    for (int64_t begin = first; begin < first + count; begin += kStripColumns<A>) {
      const int64_t width = Least(kStripColumns<A>, first + count - begin);
      PackRight(chunk.weight, c * chunk.features + begin, depth, width, chunk.features, right);
      // The next strip's rows, shared out over the tiles of this one.
      const bool last = begin + width == first + count;
      const int64_t next = last ? (c + depth) * chunk.features + first : c * chunk.features + begin + width;
      const int64_t tiles = groups * ((width + kTileColumns<A> - 1) / kTileColumns<A>);
      const int64_t share = (depth + tiles - 1) / tiles;
      int64_t done = 0;
      for (int64_t j = 0; j < width; j += kTileColumns<A>) {
        const int64_t columns = Least(kTileColumns<A>, width - j);
        for (int64_t g = 0; g < groups; ++g, done += share) {
          // Groups of nearly as many rows each: the sums of one or two would wait for each other.
          const int64_t row = chunk.rows * g / groups, group = chunk.rows * (g + 1) / groups - row;
          const Fetch fetch = FetchRows(chunk.weight, next + done * chunk.features,
                                        Least(share, depth - done), width, chunk.features);
          AddTile(group, columns, depth, gradient + row * chunk.classes + c, chunk.classes, 1,
                  right + j * kGradientDepth, fetch, c != 0, out + row * chunk.features + begin + j,
                  chunk.features);
        }
      }
    }
  }
}

// Of classes [first, first + count), added to what is there unless the chunk is the first.
template <class A>
static void AddGradientOfClasses(const LinearChunk& chunk, int64_t first, int64_t count) {
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

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_LINEAR_PRODUCTS_H_
