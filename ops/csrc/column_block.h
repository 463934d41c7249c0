// A block of consecutive rows, one per vector lane: their targets, and their classes in chunks laid out
// [class][lane], whatever the layout in memory.
#ifndef MS_CE_COLUMN_BLOCK_H_
#define MS_CE_COLUMN_BLOCK_H_

#include "row_terms.h"
#include "transpose.h"

namespace ms_ce {
namespace MS_CE_ISA {

constexpr int64_t kLanes = 128;     // 512 bytes of fp32 of each class: long enough runs for the memory
constexpr int64_t kLaneGroup = 16;  // lanes are computed in whole groups, the surplus ones on zeros
constexpr int64_t kChunk = 64;      // classes at a time: 16 KB of fp32 stay in L1

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
    const bool ignored = target[l] == problem.ignore_index;
    const bool outside = !ignored & (static_cast<uint64_t>(target[l]) >= total);
    const int64_t local = target[l] - problem.class_offset;
    const int64_t owned = static_cast<uint64_t>(local) < classes ? local : kNoTarget;
    block->target[l] = (ignored | outside) ? kIgnored : owned;
    bad += outside;
    kept += !(ignored | outside);
  }
  for (int64_t l = 0; bad != 0 && l < block->count; ++l) {
    const bool outside = target[l] != problem.ignore_index && static_cast<uint64_t>(target[l]) >= total;
    if (outside && block->first + l < totals->bad_row) totals->bad_row = block->first + l;
  }
  TargetWeights(problem, target, block->target, block->count, weight);
  weights->AddRun(block->first, weight, block->count);
  const double keep = 1.0 - problem.label_smoothing;
  for (int64_t l = 0; l < block->count; ++l) {
    block->hot[l] = block->target[l] < 0 ? 0.0 : keep * weight[l];
  }
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
  }
  if (!problem.probability) return ResolveClasses(problem, block, weights, totals);
  for (int64_t l = 0; l < count; ++l) {
    block->target[l] = kNoTarget;
    block->hot[l] = 0.0;
    weights->Add(first + l, 1.0);
  }
  totals->counted += count;
  block->any_kept = true;
}

// Calls run(lane, length, offset) for each stretch of lanes that lie side by side in memory; offset is
// that of class 0, and the classes are `inner` apart.
template <class Run>
static inline void ForStretches(const Problem& problem, const Block& block, Run run) {
  int64_t lane = 0;
  int64_t outer = block.first / problem.inner;
  int64_t inner = block.first % problem.inner;
  while (lane < block.count) {
    const int64_t left = problem.inner - inner;
    const int64_t length = left < block.count - lane ? left : block.count - lane;
    run(lane, length, outer * problem.classes * problem.inner + inner);
    lane += length;
    inner = 0;
    ++outer;
  }
}

// Four rows of [lane][class] at a time, by way of A: the transposition itself knows one type only.
template <class T, class A>
static inline void TransposeIn(const T* source, int64_t row, int64_t count, int64_t classes, A* out) {
  alignas(64) A staged[4 * kChunk];
  for (int64_t l = 0; l < count; l += 4) {
    const int64_t rows = count - l < 4 ? count - l : 4;
    for (int64_t i = 0; i < rows; ++i) CopyIn(source + (l + i) * row, 1, classes, staged + i * kChunk);
    Transpose(staged, kChunk, rows, classes, out + l, kLanes);
  }
}

template <class A>
static inline void TransposeIn(const A* source, int64_t row, int64_t count, int64_t classes, A* out) {
  if (classes < 4) return TransposeEach(source, row, count, classes, out, kLanes);
  for (int64_t l = 0; l < count; l += 4) {
    Transpose(source + l * row, row, count - l < 4 ? count - l : 4, classes, out + l, kLanes);
  }
}

template <class T, class A>
static inline void CopyChunkIn(const Problem& problem, const Array& array, const Block& block,
                               int64_t begin, int64_t classes, A* out) {
  if (problem.inner == 1) {
    const T* source = At<T>(array, block.first * problem.classes + begin);
    return TransposeIn(source, problem.classes, block.count, classes, out);
  }
  ForStretches(problem, block, [&](int64_t lane, int64_t length, int64_t offset) {
    for (int64_t c = 0; c < classes; ++c) {
      CopyIn(At<T>(array, offset + (begin + c) * problem.inner), 1, length, out + c * kLanes + lane);
    }
  });
}

// Classes [begin, begin + classes) of every lane into out[class][lane]; surplus lanes become zeros.
template <class A>
static inline void LoadChunk(const Problem& problem, const Array& array, const Block& block, int64_t begin,
                             int64_t classes, A* out) {
  for (int64_t c = 0; c < classes && block.count < block.lanes; ++c) {
    for (int64_t l = block.count; l < block.lanes; ++l) out[c * kLanes + l] = A(0);
  }
  switch (array.dtype) {
    case Dtype::kFloat16:
      return CopyChunkIn<Half>(problem, array, block, begin, classes, out);
    case Dtype::kBfloat16:
      return CopyChunkIn<Brain>(problem, array, block, begin, classes, out);
    case Dtype::kFloat32:
      return CopyChunkIn<float>(problem, array, block, begin, classes, out);
    default:
      return CopyChunkIn<double>(problem, array, block, begin, classes, out);
  }
}

// Where the logits of a chunk are read, class after class. If they lie in memory, side by side and as they
// are wanted, the processor's own prefetching does not follow classes that are apart: what is used later is
// asked for while some classes before it are worked on.
template <class A>
struct ClassRuns {
  const A* first;
  int64_t stride, classes;
  int64_t ahead = 0;  // classes

  const A* Class(int64_t c) const { return first + c * stride; }

  // In the order of use, where the next block's classes follow the last of this one.
  const A* Later(int64_t c) const {
    const int64_t later = c + ahead;
    return later < classes ? Class(later) : Class((later - classes) % classes) + kLanes;
  }
};

constexpr int64_t kClassesAhead = 7;

// Those of memory, or of null.
template <class A>
static inline ClassRuns<A> RunsInMemory(const Problem& problem, const Block& block, int64_t begin,
                                        int64_t classes) {
  const A* data = nullptr;
  const int64_t outer = block.first / problem.inner, inner = block.first % problem.inner;
  const bool together = block.count == block.lanes && inner + block.count <= problem.inner;
  if (problem.inner > 1 && together && !TransformsLogits(problem) &&
      problem.logits.dtype == DtypeOf(data)) {
    data = At<A>(problem.logits, (outer * problem.classes + begin) * problem.inner + inner);
  }
  return {data, problem.inner, classes, kClassesAhead};
}

template <class A>
static inline void StoreRows(const Problem& problem, const Array& array, const Block& block, int64_t begin,
                             int64_t classes, const A* source) {
  alignas(kCacheLine) A rows[kChunk * kLanes];
  for (int64_t l = 0; l < block.count; l += 4) {
    const int64_t count = block.count - l < 4 ? block.count - l : 4;
    TransposeBack(source + l, kLanes, classes, count, rows + l * classes, classes);
  }
  const int64_t offset = block.first * problem.classes + begin;
  if (classes == problem.classes) {
    return Store(rows, array, offset, 1, block.count * classes, problem.stream_stores);
  }
  for (int64_t l = 0; l < block.count; ++l) {
    Store(rows + l * classes, array, offset + l * problem.classes, 1, classes, false);
  }
}

// The inverse of LoadChunk.
template <class A>
static inline void StoreChunk(const Problem& problem, const Array& array, const Block& block, int64_t begin,
                              int64_t classes, const A* source) {
  if (problem.inner == 1) return StoreRows(problem, array, block, begin, classes, source);
  ForStretches(problem, block, [&](int64_t lane, int64_t length, int64_t offset) {
    for (int64_t c = 0; c < classes; ++c) {
      Store(source + c * kLanes + lane, array, offset + (begin + c) * problem.inner, 1, length,
            problem.stream_stores);
    }
  });
}

static inline void StoreBlockZeros(const Problem& problem, const Block& block) {
  if (problem.inner == 1) {
    return StoreZeros(problem.grad_logits, block.first * problem.classes, 1, block.count * problem.classes,
                      problem.stream_stores);
  }
  ForStretches(problem, block, [&](int64_t, int64_t length, int64_t offset) {
    for (int64_t c = 0; c < problem.classes; ++c) {
      StoreZeros(problem.grad_logits, offset + c * problem.inner, 1, length, problem.stream_stores);
    }
  });
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_COLUMN_BLOCK_H_
