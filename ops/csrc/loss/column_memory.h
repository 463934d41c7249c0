// Classes of a block between memory, whatever the layout there, and [class][lane].
#ifndef MS_CE_COLUMN_MEMORY_H_
#define MS_CE_COLUMN_MEMORY_H_

#include "loss/column_block.h"
#include "loss/transpose.h"

namespace ms_ce {
namespace MS_CE_ISA {

constexpr int64_t kChunk = 64;  // classes at a time: 32 KB of fp32 of all lanes

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

#endif  // MS_CE_COLUMN_MEMORY_H_
