// A block of consecutive rows, one per vector lane: which rows, their targets and weights.
#ifndef MS_CE_COLUMN_BLOCK_H_
#define MS_CE_COLUMN_BLOCK_H_

#include "loss/row_terms.h"

namespace ms_ce {
namespace MS_CE_ISA {

constexpr int64_t kLanes = 128;     // 512 bytes of fp32 of each class: long enough runs for the memory
constexpr int64_t kLaneGroup = 16;  // lanes are computed in whole groups, the surplus ones on zeros

// A sum over rows that does not depend on how they are cut into blocks.
class PlaceSums {
 public:
  void Add(int64_t row, double value) { sums_[row % kPlaces] += value; }
  void AddRun(int64_t first, const double* values, int64_t count) {
    int64_t i = 0;
    for (; i < count && (first + i) % kPlaces != 0; ++i) Add(first + i, values[i]);
    for (; i + kPlaces <= count; i += kPlaces) {
#pragma omp simd
      for (int64_t k = 0; k < kPlaces; ++k) sums_[k] += values[i + k];
    }
    for (; i < count; ++i) Add(first + i, values[i]);
  }
  double Total() const {
    double total = 0.0;
    for (const double sum : sums_) total += sum;
    return total;
  }

 private:
  static constexpr int64_t kPlaces = 16;
  double sums_[kPlaces] = {};
};

struct Block {
  int64_t first, count, lanes;  // rows [first, first + count) in `lanes` lanes
  bool any_kept;
  alignas(64) int64_t target[kLanes];  // local class, kIgnored or kNoTarget
  alignas(64) double hot[kLanes];      // (1 - label_smoothing) w_y
  alignas(64) double weight[kLanes];   // of the row itself
};

template <class T>
static inline void CopyIntegers(const Array& array, int64_t first, int64_t count, int64_t* out) {
  const T* source = At<T>(array, first);
  for (int64_t l = 0; l < count; ++l) out[l] = source[l];
}

static inline void LoadTargets(const Problem& problem, int64_t first, int64_t count, int64_t* out) {
  switch (problem.target.dtype) {
    case Dtype::kInt32:
      return CopyIntegers<int32_t>(problem.target, first, count, out);
    case Dtype::kUint8:
      return CopyIntegers<uint8_t>(problem.target, first, count, out);
    default:
      return CopyIntegers<int64_t>(problem.target, first, count, out);
  }
}

template <class T>
static inline void GatherWeights(const Array& weight, const int64_t* target, const int64_t* status,
                                 int64_t count, double* out) {
  const T* source = At<T>(weight, 0);
  for (int64_t l = 0; l < count; ++l) {
    out[l] = status[l] == kIgnored ? 0.0 : static_cast<double>(ToFloat(source[target[l]]));
  }
}

// w_y of every kept lane, 0 of the others.
static inline void TargetWeights(const Problem& problem, const int64_t* target, const int64_t* status,
                                 int64_t count, double* out) {
  if (problem.weight.data == nullptr) {
    for (int64_t l = 0; l < count; ++l) out[l] = status[l] == kIgnored ? 0.0 : 1.0;
    return;
  }
  switch (problem.weight.dtype) {
    case Dtype::kFloat16:
      return GatherWeights<Half>(problem.weight, target, status, count, out);
    case Dtype::kBfloat16:
      return GatherWeights<Brain>(problem.weight, target, status, count, out);
    case Dtype::kFloat32:
      return GatherWeights<float>(problem.weight, target, status, count, out);
    default:
      return GatherWeights<double>(problem.weight, target, status, count, out);
  }
}

static inline void LoadRowWeights(const Problem& problem, int64_t first, int64_t count, double* out) {
  for (int64_t l = 0; l < count; ++l) out[l] = RowWeight(problem, first + l);
}

// As MakeRow of row_terms.h, for all lanes at once.
static inline void ResolveClasses(const Problem& problem, Block* block, PlaceSums* weights,
                                  UnitSums* totals) {
  alignas(64) int64_t target[kLanes];
  alignas(64) double weight[kLanes];
  LoadTargets(problem, block->first, block->count, target);
  const auto total = static_cast<uint64_t>(problem.total_classes);
  const auto classes = static_cast<uint64_t>(problem.classes);
  int64_t bad = 0, kept = 0;
  for (int64_t l = 0; l < block->count; ++l) {
    const bool ignored = (target[l] == problem.ignore_index) | (block->weight[l] == 0.0);
    const bool outside = !ignored & (static_cast<uint64_t>(target[l]) >= total);
    const int64_t local = target[l] - problem.class_offset;
    const int64_t owned = static_cast<uint64_t>(local) < classes ? local : kNoTarget;
    block->target[l] = (ignored | outside) ? kIgnored : owned;
    bad += outside;
    kept += !(ignored | outside);
  }
  for (int64_t l = 0; bad != 0 && l < block->count; ++l) {
    const bool counts = target[l] != problem.ignore_index && block->weight[l] != 0.0;
    if (counts && static_cast<uint64_t>(target[l]) >= total && block->first + l < totals->bad_row)
      totals->bad_row = block->first + l;
  }
  TargetWeights(problem, target, block->target, block->count, weight);
  const double keep = 1.0 - problem.label_smoothing;
  for (int64_t l = 0; l < block->count; ++l) {
    block->hot[l] = block->target[l] < 0 ? 0.0 : keep * weight[l];
    weight[l] *= block->weight[l];
  }
  weights->AddRun(block->first, weight, block->count);
  totals->counted += kept;
  block->any_kept = kept > 0;
}

static inline void MakeBlock(const Problem& problem, int64_t first, int64_t count, Block* block,
                             PlaceSums* weights, UnitSums* totals) {
  block->first = first;
  block->count = count;
  block->lanes = (count + kLaneGroup - 1) / kLaneGroup * kLaneGroup;
  for (int64_t l = count; l < block->lanes; ++l) {
    block->target[l] = kIgnored;
    block->hot[l] = 0.0;
    block->weight[l] = 1.0;
  }
  LoadRowWeights(problem, first, count, block->weight);
  if (!problem.probability) return ResolveClasses(problem, block, weights, totals);
  int64_t kept = 0;
  for (int64_t l = 0; l < count; ++l) {
    block->target[l] = block->weight[l] == 0.0 ? kIgnored : kNoTarget;
    block->hot[l] = 0.0;
    weights->Add(first + l, block->weight[l]);
    kept += block->weight[l] != 0.0;
  }
  totals->counted += kept;
  block->any_kept = kept > 0;
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_COLUMN_BLOCK_H_
