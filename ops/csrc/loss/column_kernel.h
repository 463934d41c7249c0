// Many rows at a time, one per vector lane: for layouts whose classes lie apart (inner > 1), and for so
// few classes that a row of its own would cost more than its terms. Each function works on one block.
#ifndef MS_CE_COLUMN_KERNEL_H_
#define MS_CE_COLUMN_KERNEL_H_

#include "loss/column_gradient.h"
#include "loss/column_scan.h"

namespace ms_ce {
namespace MS_CE_ISA {

// Up to here, rows are cheaper in lanes than one by one (docs/kernel.md).
constexpr int64_t kFewClasses = 64;

static inline bool UsesColumns(const Problem& problem) {
  return problem.inner > 1 || problem.classes <= kFewClasses;
}

static inline void LoadLanes(const Array& rows, const Block& block, double* out) {
  Load(rows, block.first, 1, block.count, out);
  for (int64_t l = block.count; l < block.lanes; ++l) out[l] = 0.0;
}

// As RowUpstream of row_terms.h.
static inline void LaneUpstream(const Problem& problem, const Array& upstream, const Block& block,
                                double* out) {
  if (upstream.data == nullptr || problem.reduction != Reduction::kNone) {
    const double value = SharedUpstream(problem, upstream);
    for (int64_t l = 0; l < block.lanes; ++l) out[l] = value;
  } else {
    LoadLanes(upstream, block, out);
  }
  for (int64_t l = 0; l < block.lanes; ++l) out[l] *= block.weight[l];
}

template <class A>
static inline void ForwardBlock(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                PlaceSums* losses) {
  ColumnSums<A> sums;
  double lse[kLanes], lse_low[kLanes];
  ScanColumns(problem, block, chunk, &sums);
  FinishForward(problem, block, sums, lse, lse_low, losses);
}

// As SavedLse of row_kernel.h.
template <class A>
static inline void SavedLses(const Problem& problem, const Block& block, Chunk<A>* chunk, double* lse,
                             double* lse_low) {
  LoadLanes(problem.lse, block, lse);
  int64_t coarse = 0;
  for (int64_t l = 0; l < block.lanes; ++l) {
    coarse += IsCoarse<A>(lse[l]) ? 1 : 0;
    lse_low[l] = 0.0;
  }
  if (coarse == 0) return;
  ColumnSums<A> sums;
  ScanColumns(problem, block, chunk, &sums);
  for (int64_t l = 0; l < block.count; ++l) {
    // Each lane by itself: no row's results may depend on the others of its block.
    if (block.target[l] == kIgnored || !IsCoarse<A>(lse[l])) continue;
    lse_low[l] = LowOfLse(lse[l], sums.reference[l], Log(static_cast<A>(sums.exp_sum[l])));
  }
}

template <class A>
static inline void BackwardBlock(const Problem& problem, const Block& block, Chunk<A>* chunk, PlaceSums*) {
  ColumnGradient<A> gradient;
  double lse[kLanes], lse_low[kLanes], mass[kLanes], grad[kLanes], grad_z[kLanes];
  SavedLses(problem, block, chunk, lse, lse_low);
  ColumnMass(problem, block, chunk, mass);
  LaneUpstream(problem, problem.grad_loss, block, grad);
  LaneUpstream(problem, problem.grad_z_loss, block, grad_z);
  MakeGradient(problem, block, lse, lse_low, mass, grad, grad_z, &gradient);
  GradientColumns(problem, block, chunk, gradient, false);
}

template <class A>
static inline void ValueAndGradBlock(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                     PlaceSums* losses) {
  ColumnSums<A> sums;
  ColumnGradient<A> gradient;
  double lse[kLanes], lse_low[kLanes], grad[kLanes], grad_z[kLanes];
  const bool loaded = problem.classes <= kChunk;
  ScanColumns(problem, block, chunk, &sums);
  FinishForward(problem, block, sums, lse, lse_low, losses);
  const double upstream = UnitUpstream(problem);
  for (int64_t l = 0; l < block.lanes; ++l) {
    grad[l] = block.weight[l] * upstream;
    grad_z[l] = 0.0;
  }
  MakeGradient(problem, block, lse, lse_low, sums.mass, grad, grad_z, &gradient);
  GradientColumns(problem, block, chunk, gradient, loaded);
}

template <class A>
static inline void PartialBackwardBlock(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                        PlaceSums*) {
  ColumnGradient<A> gradient;
  double grad[kLanes], grad_lse[kLanes], lse[kLanes], mass[kLanes];
  double lse_low[kLanes] = {}, slope[kLanes] = {};
  LoadLanes(problem.grad_loss, block, grad);
  LoadLanes(problem.grad_lse, block, grad_lse);
  LoadLanes(problem.lse, block, lse);
  LoadLanes(problem.mass, block, mass);
  const double scale = CoefficientScale(problem);
  for (int64_t l = 0; l < block.lanes; ++l) {
    slope[l] = PartialSlope(grad[l], grad_lse[l], mass[l]);
    gradient.scale[l] = static_cast<A>(grad[l] * scale);
    gradient.hot[l] = static_cast<A>(grad[l] * block.hot[l]);
  }
  gradient.SetSoftmax(block.lanes, lse, lse_low, slope);
  GradientColumns(problem, block, chunk, gradient, false);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_COLUMN_KERNEL_H_
