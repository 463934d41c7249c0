// What one call computes, as plain data: shared by the argument checks, the kernels of every
// instruction set, and the entry points. Plain data only: an inline function here would be compiled
// once per instruction set, and the linker may keep the copy that this CPU cannot run.
#ifndef MS_CE_PROBLEM_H_
#define MS_CE_PROBLEM_H_

#include <cstdint>

#include "platform/array.h"

namespace ms_ce {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

constexpr int64_t kNoBadRow = INT64_MAX;
constexpr int32_t kNoClass = -1;  // predicted of a row that does not count or has no softmax

// Logits are viewed as (outer, classes, inner); row n = (outer, inner).
struct Sizes {
  int64_t outer = 1, classes = 0, inner = 1, rows = 0;
};

struct LossOptions {
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::kMean;
  bool has_weight = false, has_row_weight = false, has_grad_z_loss = false, has_entropy = false;
  double label_smoothing = 0.0, z_loss = 0.0, softcap = 0.0, logit_scale = 1.0;
  int64_t class_offset = 0, total_classes = 0;
  double beta = 0.0;  // of a teacher, see divergence.h

  bool probability = false;  // the target is no class: probabilities of the logits' shape, or a teacher

  // Derived: label_smoothing / total_classes, and the sum of the weights when smoothing needs it.
  double smooth = 0.0, weight_sum = 0.0;
};

// data is null where the operation has no such input.
struct LossInputs {
  Array logits, target, weight, grad_loss, grad_z_loss, grad_lse, grad_entropy, direction;
  Array row_weight;      // float64, per row: a factor of its loss; where it is 0 the row is ignored
  Array lse, entropy;    // float64, per row; entropy beside grad_entropy
  Array mass;            // float64, per row, over all blocks of classes
  Array teacher_logits;  // as the logits
  Array top_log_probs, top_classes;  // (rows, top): what is stored of a teacher, see top_k.h
  int64_t top = 0;
  double tail = 0.0;          // not 0 where the other classes count
  double total_weight = 1.0;  // what a mean divides by
};

// data is null where the operation has no such output.
struct LossOutputs {
  Array loss_rows, z_loss_rows, entropy_rows, grad_logits, grad_target;
  Array grad_grad_loss, grad_grad_z_loss;
  Array predicted;  // int32, per row: the class of its largest logit
  double* lse_out = nullptr;
  double* direction_mean = nullptr;
  double* partial = nullptr;
  double* top_logits = nullptr;  // room for (rows, top), beside top_classes
  bool statistics = false;       // also z_loss, entropy, num_correct and predicted
  bool stream_stores = false;    // grad_logits is too large to be worth a place in the cache
};

struct Problem : Sizes, LossOptions, LossInputs, LossOutputs {};

// Sums over one unit of work. Units are cut by shape alone and added in order, so that every result
// is bitwise the same for any number of threads.
struct UnitSums {
  double loss = 0.0, weight = 0.0, z_loss = 0.0, entropy = 0.0;
  double grad_grad_loss = 0.0, grad_grad_z_loss = 0.0;
  int64_t correct = 0, counted = 0;
  int64_t bad_row = kNoBadRow;  // first row whose target is out of range
};

}  // namespace ms_ce

#endif  // MS_CE_PROBLEM_H_
