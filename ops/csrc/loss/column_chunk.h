// Some classes of a block: logits after scale and softcap, and coefficients.
#ifndef MS_CE_COLUMN_CHUNK_H_
#define MS_CE_COLUMN_CHUNK_H_

#include "loss/column_memory.h"

namespace ms_ce {
namespace MS_CE_ISA {

// The chunk at hand, class c of lane l at [c * kLanes + l]: logits after scale and softcap, and
// coefficients.
template <class A>
class Chunk {
 public:
  const A* x() const { return x_; }
  A* x() { return x_; }
  const A* a() const { return a_; }
  int64_t begin() const { return begin_; }
  int64_t classes() const { return classes_; }

  void Select(const Problem& problem, int64_t begin) {
    begin_ = begin;
    classes_ = CountFrom(problem, begin);
  }

  void ReadLogits(const Problem& problem, const Block& block) {
    LoadChunk(problem, problem.logits, block, begin_, classes_, x_);
    for (int64_t c = 0; c < classes_ && TransformsLogits(problem); ++c) {
      ApplyLogitTransform(problem, x_ + c * kLanes, block.lanes, x_ + c * kLanes);
    }
  }

  // Into the buffer, unless they can be read where they lie.
  ClassRuns<A> FindLogits(const Problem& problem, const Block& block) {
    const ClassRuns<A> runs = RunsInMemory<A>(problem, block, begin_, classes_);
    if (runs.first != nullptr) return runs;
    ReadLogits(problem, block);
    return {x_, kLanes, classes_};
  }

  void ReadCoefficients(const Problem& problem, const Block& block) {
    if (!problem.probability) return FillWeights(problem, block);
    LoadChunk(problem, problem.target, block, begin_, classes_, a_);
    if (problem.smooth != 0.0 || problem.weight.data != nullptr) SmoothAndWeigh(problem, block);
  }

 private:
  static int64_t CountFrom(const Problem& problem, int64_t begin) {
    return problem.classes - begin < kChunk ? problem.classes - begin : kChunk;
  }

  A Weight(const Problem& problem, int64_t c) const {
    if (problem.weight.data == nullptr) return A(1);
    return static_cast<A>(LoadScalar(problem.weight, problem.class_offset + begin_ + c));
  }

  void FillWeights(const Problem& problem, const Block& block) {
    for (int64_t c = 0; c < classes_; ++c) {
      const A w = Weight(problem, c);
      for (int64_t l = 0; l < block.lanes; ++l) a_[c * kLanes + l] = w;
    }
  }

  void SmoothAndWeigh(const Problem& problem, const Block& block) {
    const A keep = static_cast<A>(1.0 - problem.label_smoothing);
    const A spread = static_cast<A>(problem.smooth);
    for (int64_t c = 0; c < classes_; ++c) {
      const A w = Weight(problem, c);
      A* q = a_ + c * kLanes;
#pragma omp simd
      for (int64_t l = 0; l < block.lanes; ++l) q[l] = w * SmoothedProbability(q[l], keep, spread);
    }
  }

  alignas(64) A x_[kChunk * kLanes];
  alignas(64) A a_[kChunk * kLanes];
  int64_t begin_ = 0, classes_ = 0;
};

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_COLUMN_CHUNK_H_
