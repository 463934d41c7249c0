// What the products of the linear loss work on. Plain data only, see loss/problem.h.
#ifndef MS_CE_LINEAR_CHUNK_H_
#define MS_CE_LINEAR_CHUNK_H_

#include "platform/array.h"

namespace ms_ce {

// A chunk of rows of the linear loss, whose products Kernels makes. Matrices are row-major; what is not an
// Array holds the accumulation type.
constexpr int64_t kMostPanelRows = 96;  // a tile's depth that stays in the first-level cache
constexpr int64_t kPanelStep = 16;      // panels have a multiple of so many rows,
constexpr int64_t kFeatureStep = 64;    // and tiles divide so many features.
constexpr int64_t kTileRows = 6;        // A tile has so many rows of results.

struct LinearChunk {
  int64_t rows = 0, features = 0, classes = 0;
  const void* hidden = nullptr;  // (rows, features)
  // The same as the products take it, panel_rows rows at a time: transposed, and in tiles of features.
  int64_t panel_rows = 0, tile_features = 0;
  int64_t shift = 0;  // elements by which a row of grad_weight begins behind a cache line
  void *panels = nullptr, *tiles = nullptr;
  Array weight;                 // (classes, features)
  const void* bias = nullptr;   // (classes,), null where there is none
  void* logits = nullptr;       // (rows, classes), or their gradient
  void* grad_hidden = nullptr;  // (rows, features)
  Array grad_weight;            // (classes, features), of the accumulation type
  bool accumulate = false;      // adds to grad_weight
};

}  // namespace ms_ce

#endif  // MS_CE_LINEAR_CHUNK_H_
