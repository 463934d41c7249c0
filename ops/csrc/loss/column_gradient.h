// The gradients of a block's logits.
#ifndef MS_CE_COLUMN_GRADIENT_H_
#define MS_CE_COLUMN_GRADIENT_H_

#include "loss/column_chunk.h"
#include "loss/row_sums.h"

namespace ms_ce {
namespace MS_CE_ISA {

// Per lane, as RowGradient of row_sums.h, the softmax's share as SoftmaxFactor there.
template <class A>
struct ColumnGradient {
  alignas(64) A high[kLanes], factor[kLanes], scale[kLanes], hot[kLanes];
  bool scaled = true;  // in every lane

  // lse in two parts, as Lse of row_sums.h.
  void SetSoftmax(int64_t lanes, const double* lse, const double* lse_low, const double* slope) {
    int64_t small = 0;
#pragma omp simd reduction(+ : small)
    for (int64_t l = 0; l < lanes; ++l) {
      const double size = slope[l] < 0.0 ? -slope[l] : slope[l];
      small += (size != 0.0) & (size < kSmallSlope) ? 1 : 0;
    }
    scaled = small == 0;
    const double unit = scaled ? Unscale(A(1)) : 1.0;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) {
      high[l] = static_cast<A>(lse[l]);
      const A low = static_cast<A>((lse[l] - static_cast<double>(high[l])) + lse_low[l]);
      factor[l] = static_cast<A>(slope[l] * unit) * Exp(-low);
    }
  }
};

template <class A, bool kScaled>
static inline void SoftmaxChunk(int64_t lanes, const ClassRuns<A>& runs, const A* coefficients,
                                const ColumnGradient<A>& gradient, A* out) {
  for (int64_t c = 0; c < runs.classes; ++c) {
    const A *x = runs.Class(c), *later = runs.Later(c);
    A* row = out + c * kLanes;
    for (int64_t group = 0; group < lanes; group += kLaneGroup) {
      __builtin_prefetch(later + group);
#pragma omp simd
      for (int64_t l = group; l < group + kLaneGroup; ++l) {
        row[l] = SoftmaxTerm<kScaled>(x[l], gradient.high[l], gradient.factor[l]);
      }
    }
    if (coefficients == nullptr) continue;
    const A* a = coefficients + c * kLanes;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) row[l] -= gradient.scale[l] * a[l];
  }
}

// The chunk holds its logits unless `runs` are in memory, and coefficients where there are any.
template <class A>
static inline void GradientChunk(const Problem& problem, const Block& block, const Chunk<A>& chunk,
                                 const ClassRuns<A>& runs, const ColumnGradient<A>& gradient) {
  alignas(64) A out[kChunk * kLanes];
  const A* coefficients = UsesCoefficients(problem) ? chunk.a() : nullptr;
  if (gradient.scaled) {
    SoftmaxChunk<A, true>(block.lanes, runs, coefficients, gradient, out);
  } else {
    SoftmaxChunk<A, false>(block.lanes, runs, coefficients, gradient, out);
  }
  for (int64_t l = 0; l < block.count; ++l) {
    const int64_t hit = block.target[l] - chunk.begin();
    if (block.target[l] < 0 || hit < 0 || hit >= chunk.classes()) continue;
    out[hit * kLanes + l] -= gradient.hot[l];
  }
  for (int64_t c = 0; c < chunk.classes(); ++c) {
    ChainLogitTransform(problem, chunk.x() + c * kLanes, out + c * kLanes, block.lanes);
  }
  for (int64_t l = 0; l < block.count; ++l) {
    if (block.target[l] != kIgnored) continue;
    for (int64_t c = 0; c < chunk.classes(); ++c) out[c * kLanes + l] = A(0);
  }
  StoreChunk(problem, problem.grad_logits, block, chunk.begin(), chunk.classes(), out);
}

// `loaded`: the chunk already holds the whole of the block.
template <class A>
static inline void GradientColumns(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                   const ColumnGradient<A>& gradient, bool loaded) {
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    if (loaded) {
      GradientChunk(problem, block, *chunk, {chunk->x(), kLanes, chunk->classes()}, gradient);
      continue;
    }
    chunk->Select(problem, begin);
    const ClassRuns<A> runs = chunk->FindLogits(problem, block);
    if (UsesCoefficients(problem)) chunk->ReadCoefficients(problem, block);
    GradientChunk(problem, block, *chunk, runs, gradient);
  }
}

// As LossGradient of row_sums.h; grad and grad_z hold each lane's upstream.
template <class A>
static inline void MakeGradient(const Problem& problem, const Block& block, const double* lse,
                                const double* lse_low, const double* mass, const double* grad,
                                const double* grad_z, ColumnGradient<A>* gradient) {
  const double scale = CoefficientScale(problem);
  alignas(64) double slope[kLanes] = {};
  for (int64_t l = 0; l < block.lanes; ++l) {
    slope[l] = LossSlope(grad[l], grad_z[l], block.hot[l] + scale * mass[l], problem.z_loss, lse[l]);
    gradient->scale[l] = static_cast<A>(grad[l] * scale);
    gradient->hot[l] = static_cast<A>(grad[l] * block.hot[l]);
  }
  gradient->SetSoftmax(block.lanes, lse, lse_low, slope);
}

// sum_c a_c of every lane, for the backward pass.
template <class A>
static inline void ColumnMass(const Problem& problem, const Block& block, Chunk<A>* chunk, double* mass) {
  for (int64_t l = 0; l < block.lanes; ++l) mass[l] = problem.weight_sum;
  if (!problem.probability) return;
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    chunk->Select(problem, begin);
    chunk->ReadCoefficients(problem, block);
    for (int64_t c = 0; c < chunk->classes(); ++c) {
      for (int64_t l = 0; l < block.lanes; ++l) mass[l] += chunk->a()[c * kLanes + l];
    }
  }
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_COLUMN_GRADIENT_H_
