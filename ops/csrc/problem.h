// What one call computes, as plain data: shared by the argument checks, the kernels of every
// instruction set, and the entry points. Plain data only: an inline function here would be compiled
// once per instruction set, and the linker may keep the copy that this CPU cannot run.
#ifndef MS_CE_PROBLEM_H_
#define MS_CE_PROBLEM_H_

#include <cstdint>

namespace ms_ce {

constexpr int64_t kCacheLine = 64;

enum class Dtype { kFloat16, kBfloat16, kFloat32, kFloat64, kInt32, kInt64, kUint8 };

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

struct Array {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};

constexpr int64_t kNoBadRow = INT64_MAX;

// Logits are viewed as (outer, classes, inner); row n = (outer, inner).
struct Problem {
  int64_t outer = 1, classes = 0, inner = 1, rows = 0;
  bool probability = false;  // target holds probabilities of the logits' shape

  int64_t ignore_index = -100;
  Reduction reduction = Reduction::kMean;
  bool has_weight = false, has_grad_z_loss = false;
  double label_smoothing = 0.0, z_loss = 0.0, softcap = 0.0, logit_scale = 1.0;
  int64_t class_offset = 0, total_classes = 0;

  // Derived: label_smoothing / total_classes, and the sum of the weights when smoothing needs it.
  double smooth = 0.0, weight_sum = 0.0;

  // Inputs; data is null where the symbol has no such input.
  Array logits, target, weight, grad_loss, grad_z_loss, grad_lse, direction;
  Array lse;                  // float64, per row
  Array mass;                 // float64, per row, over all shards
  double total_weight = 1.0;  // what a mean divides by

  // Outputs; data is null where the symbol has no such output.
  Array loss_rows, z_loss_rows, entropy_rows, grad_logits, grad_target;
  Array grad_grad_loss, grad_grad_z_loss;
  double* lse_out = nullptr;
  double* direction_mean = nullptr;
  double* partial = nullptr;
  bool statistics = false;     // also z_loss, entropy and num_correct
  bool stream_stores = false;  // grad_logits is too large to be worth a place in the cache
};

// Sums over one unit of work. Units are cut by shape alone and added in order, so that every result
// is bitwise the same for any number of threads.
struct UnitSums {
  double loss = 0.0, weight = 0.0, z_loss = 0.0, entropy = 0.0;
  double grad_grad_loss = 0.0, grad_grad_z_loss = 0.0;
  int64_t correct = 0, counted = 0;
  int64_t bad_row = kNoBadRow;  // first row whose target is out of range
};

// A chunk of rows of the linear loss, whose products Kernels makes. Matrices are row-major; what is not an
// Array holds the accumulation type.
constexpr int64_t kMostPanelRows = 96;  // a tile's depth that stays in the first-level cache
constexpr int64_t kPanelStep = 16;      // panels have a multiple of so many rows,
constexpr int64_t kFeatureStep = 64;    // and tiles divide so many features.
constexpr int64_t kTileStep = 6;        // A tile has so many rows of results.

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

// One instruction set's build of the kernels. Each works on rows [first, first + count).
struct Kernels {
  using RowRange = void (*)(const Problem&, int64_t first, int64_t count, UnitSums*);
  const char* name;
  RowRange forward, backward, value_and_grad, partial, partial_backward, double_backward, target_grad;
  RowRange count_weight, nll_forward, nll_backward;
  // Adds upstream * d row loss / d weight of classes [first, first + count) over all rows to grad_weight,
  // and the rows whose target is the class to hits.
  void (*weight_grad)(const Problem&, int64_t first, int64_t count, double* grad_weight, double* hits);
  // Of a chunk: each works on a range of its rows, classes or features.
  using ChunkRange = void (*)(const LinearChunk&, int64_t first, int64_t count);
  ChunkRange pack_hidden, logits_of_classes, gradient_of_features, add_gradient_of_classes;
  // Runs of elements, as the accumulation type.
  void (*read)(const Array& from, int64_t first, int64_t count, void* to);
  void (*write)(const void* from, int64_t count, const Array& to, int64_t first);
  void (*store)(double value, const Array&, int64_t index);
  double (*load)(const Array&, int64_t index);
  int64_t (*load_index)(const Array&, int64_t index);
  double (*sum)(const Array&, int64_t count);
  void (*exp)(const float*, float*, int64_t);
  void (*coarse_exp)(const float*, float*, int64_t);
  void (*log)(const float*, float*, int64_t);
  void (*tanh)(const float*, float*, int64_t);
  void (*exp_double)(const double*, double*, int64_t);
};

}  // namespace ms_ce

#endif  // MS_CE_PROBLEM_H_
