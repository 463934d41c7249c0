// What the rows of a block sum to, and the losses that follow.
#ifndef MS_CE_COLUMN_SCAN_H_
#define MS_CE_COLUMN_SCAN_H_

#include <cmath>

#include "loss/column_chunk.h"
#include "loss/row_sums.h"

namespace ms_ce {
namespace MS_CE_ISA {

// Per lane, as RowSums of row_sums.h; the reference is the maximum, or 0 while that is -inf.
template <class A>
struct ColumnSums {
  alignas(64) A reference[kLanes];
  alignas(64) A target_logit[kLanes];
  alignas(64) double exp_sum[kLanes];
  alignas(64) double distance[kLanes];
  alignas(64) double mass[kLanes];
};

// Of the lanes of one class. A nan gives way: it reaches the sum through exp.
template <class A>
static inline void RaiseMaximum(const A* x, int64_t lanes, A* maximum) {
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) maximum[l] = x[l] > maximum[l] ? x[l] : maximum[l];
}

// What exponentials may be relative to.
template <class A>
MS_CE_INLINE A ReferenceOf(A maximum) {
  return maximum > -static_cast<A>(INFINITY) ? maximum : A(0);
}

// Raises the reference to the maximum over the chunk and moves the sums to it.
template <class A>
static inline void RaiseReference(const Chunk<A>& chunk, int64_t lanes, bool first, ColumnSums<A>* sums) {
  const A lowest = -static_cast<A>(INFINITY);
  alignas(64) A maximum[kLanes];
  for (int64_t l = 0; l < lanes; ++l) maximum[l] = lowest;
  for (int64_t c = 0; c < chunk.classes(); ++c) RaiseMaximum(chunk.x() + c * kLanes, lanes, maximum);
  if (first) {
    for (int64_t l = 0; l < lanes; ++l) {
      sums->reference[l] = ReferenceOf(maximum[l]);
      sums->exp_sum[l] = sums->distance[l] = sums->mass[l] = 0.0;
    }
    return;
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    const A old = sums->reference[l];
    // exp_sum 0: all of the row so far was -inf, and the reference only a stand-in.
    const A floor = sums->exp_sum[l] == 0.0 ? lowest : old;
    const A raised = maximum[l] > floor ? maximum[l] : old;
    const A shift = raised > old ? raised - old : A(0);
    sums->reference[l] = raised;
    sums->exp_sum[l] *= static_cast<double>(Exp(-shift));
    const double moved = (static_cast<double>(raised) - old) * sums->mass[l];
    sums->distance[l] += sums->mass[l] == 0.0 ? 0.0 : moved;  // raised may be inf
  }
}

// The lanes' sums stay in L1; the compiler vectorises loops over lanes better inside than outside.
template <class A>
static inline void AddExpSums(const Chunk<A>& chunk, int64_t lanes, ColumnSums<A>* sums) {
  alignas(64) A sum[kLanes];
  for (int64_t l = 0; l < lanes; ++l) sum[l] = A(0);
  const A* reference = sums->reference;
  for (int64_t c = 0; c < chunk.classes(); ++c) {
    const A* x = chunk.x() + c * kLanes;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) sum[l] += ExpScaled(x[l] - reference[l]);
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) sums->exp_sum[l] += Unscale(sum[l]);
}

// Too far below the maximum, or above it: then it stands in for a few classes that are all -inf. One
// comparison, since `a || b` keeps the loops over lanes out of vector registers.
template <class A>
MS_CE_INLINE bool IsFar(A maximum, A reference, A slack) {
  return std::abs(maximum - reference) > slack;
}

// Both of the above for a block's first classes in one loop over memory, which is copied into the chunk.
// The reference is the maximum of a few classes until all are known; lanes where that lies too far from
// the whole maximum are summed again.
template <class A>
static inline void ScanFirst(const ClassRuns<A>& runs, int64_t lanes, Chunk<A>* chunk,
                             ColumnSums<A>* sums) {
  constexpr int64_t kFirst = 4;
  const A lowest = -static_cast<A>(INFINITY), slack = static_cast<A>(kReferenceSlack);
  alignas(64) A maximum[kLanes], sum[kLanes], reference[kLanes];
  for (int64_t l = 0; l < lanes; ++l) {
    maximum[l] = lowest;
    sum[l] = A(0);
  }
  for (int64_t c = 0; c < kFirst && c < runs.classes; ++c) RaiseMaximum(runs.Class(c), lanes, maximum);
  for (int64_t l = 0; l < lanes; ++l) reference[l] = ReferenceOf(maximum[l]);
  for (int64_t c = 0; c < runs.classes; ++c) {
    const A *from = runs.Class(c), *later = runs.Later(c);
    A* to = chunk->x() + c * kLanes;
    for (int64_t group = 0; group < lanes; group += kLaneGroup) {
      __builtin_prefetch(later + group);
#pragma omp simd
      for (int64_t l = group; l < group + kLaneGroup; ++l) {
        const A value = from[l];
        to[l] = value;
        maximum[l] = value > maximum[l] ? value : maximum[l];
        sum[l] += ExpScaled(value - reference[l]);
      }
    }
  }
  int64_t far = 0;
#pragma omp simd reduction(+ : far)
  for (int64_t l = 0; l < lanes; ++l) far += IsFar(maximum[l], reference[l], slack) ? 1 : 0;
  if (far != 0) {
    RaiseReference(*chunk, lanes, true, sums);
    AddExpSums(*chunk, lanes, sums);
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    const bool is_far = IsFar(maximum[l], reference[l], slack);
    const A raised = ReferenceOf(maximum[l]);
    const double moved = Unscale(sum[l]) * static_cast<double>(Exp(reference[l] - raised));
    sums->reference[l] = is_far ? sums->reference[l] : raised;
    sums->exp_sum[l] = is_far ? sums->exp_sum[l] : moved;
    sums->distance[l] = sums->mass[l] = 0.0;
  }
}

template <class A>
static inline void AddDistances(const Chunk<A>& chunk, int64_t lanes, ColumnSums<A>* sums) {
  alignas(64) A distance[kLanes], mass[kLanes];
  for (int64_t l = 0; l < lanes; ++l) distance[l] = mass[l] = A(0);
  const A* reference = sums->reference;
  for (int64_t c = 0; c < chunk.classes(); ++c) {
    const A* x = chunk.x() + c * kLanes;
    const A* a = chunk.a() + c * kLanes;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) {
      distance[l] += DistanceTerm(a[l], reference[l], x[l]);
      mass[l] += a[l];
    }
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    sums->distance[l] += distance[l];
    sums->mass[l] += mass[l];
  }
}

template <class A>
static inline void PickTargets(const Chunk<A>& chunk, const Block& block, ColumnSums<A>* sums) {
  for (int64_t l = 0; l < block.count; ++l) {
    const int64_t hit = block.target[l] - chunk.begin();
    if (block.target[l] < 0 || hit < 0 || hit >= chunk.classes()) continue;
    sums->target_logit[l] = chunk.x()[hit * kLanes + l];
  }
}

// Reads the block once. Afterwards `chunk` holds its last classes.
template <class A>
static inline void ScanColumns(const Problem& problem, const Block& block, Chunk<A>* chunk,
                               ColumnSums<A>* sums) {
  for (int64_t l = 0; l < block.lanes; ++l) sums->target_logit[l] = A(0);
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    chunk->Select(problem, begin);
    if (begin == 0) {
      ScanFirst(chunk->FindLogits(problem, block), block.lanes, chunk, sums);
    } else {
      chunk->ReadLogits(problem, block);
      RaiseReference(*chunk, block.lanes, false, sums);
      AddExpSums(*chunk, block.lanes, sums);
    }
    PickTargets(*chunk, block, sums);
    if (!UsesCoefficients(problem)) continue;
    chunk->ReadCoefficients(problem, block);
    AddDistances(*chunk, block.lanes, sums);
  }
}

// Writes lse in its two parts and row losses, and adds the losses up; as RowLoss of row_kernel.h.
template <class A>
static inline void FinishForward(const Problem& problem, const Block& block, const ColumnSums<A>& sums,
                                 double* lse, double* lse_low, PlaceSums* losses) {
  alignas(64) A log_sum[kLanes];
  alignas(64) double loss[kLanes];
  for (int64_t l = 0; l < block.lanes; ++l) log_sum[l] = static_cast<A>(sums.exp_sum[l]);
#pragma omp simd
  for (int64_t l = 0; l < block.lanes; ++l) log_sum[l] = Log(log_sum[l]);
  const double scale = CoefficientScale(problem);
#pragma omp simd
  for (int64_t l = 0; l < block.lanes; ++l) {
    const double log_of_sum = log_sum[l];
    const double row_lse = WholeLse(sums.reference[l], sums.exp_sum[l], log_of_sum);
    const double distance = static_cast<double>(sums.reference[l] - sums.target_logit[l]) + log_of_sum;
    const double coefficients = CoefficientSum(sums.distance[l], sums.mass[l], log_of_sum);
    const double terms = TargetLoss(block.hot[l], distance) + (scale == 0.0 ? 0.0 : scale * coefficients);
    const double value = LossOfSoftmax(terms, row_lse) + ZLoss(problem.z_loss, row_lse);
    const bool kept = block.target[l] != kIgnored;
    lse[l] = kept ? row_lse : 0.0;
    lse_low[l] = kept ? LowOfLse(row_lse, sums.reference[l], log_of_sum) : 0.0;
    loss[l] = kept ? block.weight[l] * value : 0.0;
  }
  losses->AddRun(block.first, loss, block.count);
  for (int64_t l = 0; problem.lse_out != nullptr && l < block.count; ++l) {
    problem.lse_out[block.first + l] = lse[l];
  }
  if (problem.loss_rows.data != nullptr) Store(loss, problem.loss_rows, block.first, 1, block.count, false);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_COLUMN_SCAN_H_
